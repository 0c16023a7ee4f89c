"""Every Prometheus metric of afresh, in one list, and the registry that holds them.

Names, labels and types are promises to dashboards and alerts. No label holds a user or an item.
"""

import threading
from collections.abc import Callable, Mapping
from enum import Enum, unique
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.events.batch import TopicPartition
from pipeline.events.checks import REASONS
from pipeline.outcome import SKIPS, STAGES

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
    300.0, 600.0,
)  # fmt: skip
STAGE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
CHECKPOINT_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
MAX_EVENT_TYPES = 32  # with their own series: producers choose types freely, and series cost memory
OTHER_TYPES = "other"


class Spec(NamedTuple):
    """A metric without its name. `series` are the label values that exist from the start."""

    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    labels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()


def _counter(text: str, *labels: str, series: tuple[str, ...] = ()) -> Spec:
    return Spec(Counter, text, labels, series)


def _gauge(text: str, *labels: str) -> Spec:
    return Spec(Gauge, text, labels)


def _histogram(text: str, buckets_s: tuple[float, ...], *labels: str, series: tuple[str, ...] = ()) -> Spec:
    return Spec(Histogram, text, labels, series, buckets_s)


@unique
class Metric(Enum):
    """All metrics; the name on the wire is `afresh_` and the lower-case name, with `_total` for counters."""

    EVENTS_CONSUMED = _counter("Events consumed, by event type.", "type")
    EVENTS_REJECTED = _counter("Records that hold no valid event, by reason.", "reason", series=REASONS)
    EVENTS_IGNORED = _counter("Records of ignored event types, and records without a value.", "type")
    EVENTS_DUPLICATE = _counter("Events dropped because their event_id came before.")
    USER_MOVES = _counter("Events from another partition of their topic than the user's event before.")
    EVENTS_LATE = _counter("Events of a backlog; their users' lists wait for its end.")
    DEAD_LETTERS = _counter("Records sent to the dead-letter topic.", "reason", series=REASONS)
    EVENTS_LEARNED = _gauge("Events in the model and the users' state, restored ones included.")
    CONSUMER_LAG_RECORDS = _gauge("Records not consumed yet.", "topic", "partition")
    PARTITIONS_ASSIGNED = _gauge("Partitions that this worker owns.")
    REBALANCES = _counter("Rebalances of the consumer group.")
    LAST_EVENT_TIMESTAMP_SECONDS = _gauge("Time of the newest event learned.")
    LAST_COMMIT_TIMESTAMP_SECONDS = _gauge("Time of the last commit of offsets.")
    LIVE = _gauge("1 while the loop makes progress, as /live reports; 0 when it is stuck.")
    TRAIN_STEPS = _counter("Training steps taken.")
    TRAIN_STEPS_SKIPPED = _counter("Training steps not taken, by reason.", "reason", series=SKIPS)
    LOSS = _gauge("Mean loss of the last training step's targets.")
    GRADIENT_NORM = _gauge("Norm of the last training step's gradient.")
    TABLE_ROWS = _gauge("Live rows.", "table")
    ROWS_ADMITTED = _counter("Rows given to new ids.", "table")
    ROWS_EVICTED = _counter("Rows taken from ids that expired or were evicted.", "table")
    QUALITY_RATIO = _gauge(
        "Ranking quality on the live stream, over recent tests.", "model", "measure", "segment"
    )
    CATALOGUE_COVERAGE_RATIO = _gauge("Share of the known items on recently published rankings.")
    DRIFT_DETECTIONS = _counter("Drift alarms.", "detector", "signal")
    LAST_DRIFT_TIMESTAMP_SECONDS = _gauge("Time of the last drift alarm; 0: none.")
    DRIFT_REACTION = _gauge("1 while the model reacts to a drift alarm, else 0.")
    MODEL_VERSION = _gauge("Version of the model that ranks now.")
    BUILD_INFO = _gauge("Always 1; the versions are the labels.", "version", "python", "torch")
    RANKINGS_DUE = _gauge("Users with a pending ranking that no event of theirs asks for.")
    RANKINGS_PUBLISHED = _counter("Rankings acknowledged by the broker.")
    PUBLISH_FAILURES = _counter("Records that the broker did not acknowledge.")
    RECORDS_TOO_LARGE = _counter("Records larger than their topic accepts.", "topic", "outcome")
    LAST_CHECKPOINT_TIMESTAMP_SECONDS = _gauge("Time of the last checkpoint; 0: none.")
    END_TO_END_LATENCY_SECONDS = _histogram(
        "From an event's record to the acknowledged ranking that includes it.", LATENCY_BUCKETS_S
    )
    STAGE_SECONDS = _histogram("Time of a batch in each stage.", STAGE_BUCKETS_S, "stage", series=STAGES)
    CHECKPOINT_SECONDS = _histogram("Time that the loop stood still for a checkpoint.", CHECKPOINT_BUCKETS_S)


class BatchHistogram(Collector):
    """A Prometheus histogram that takes whole arrays: one call a batch instead of one an event."""

    def __init__(self, name: str, documentation: str, buckets_s: tuple[float, ...]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.array(buckets_s, np.float64)
        self._names = [repr(bound) for bound in self._bounds.tolist()] + ["+Inf"]
        self._counts = np.zeros(len(self._names), np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()  # a scrape must see counts and sum of the same moment

    def observe(self, values: npt.NDArray[np.floating]) -> None:
        """Count `values`. Non-finite ones are left out; negative ones (clocks differ) count as zero."""
        clean = np.maximum(values[np.isfinite(values)], 0.0)
        places = np.searchsorted(self._bounds, clean, side="left")  # a bucket holds its upper bound
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(clean.sum())

    def describe(self) -> list[Family]:
        """Name the family, so that a registry rejects a second one."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> list[Family]:
        """Return the cumulative counts."""
        with self._lock:
            counts, total = self._counts.cumsum().tolist(), self._sum
        buckets = list(zip(self._names, counts, strict=True))
        return [HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)]


class Metrics:
    """The metrics of one worker, in their own registry unless one is given.

    Methods are called by the loop, once a batch or less; scrapes read from other threads. Label values come
    in the order of the metric's labels.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self._counters: dict[Metric, Counter] = {}
        self._gauges: dict[Metric, Gauge] = {}
        self._histograms: dict[Metric, Histogram] = {}
        latency = Metric.END_TO_END_LATENCY_SECONDS
        self._latency = BatchHistogram(_name(latency), latency.value.help, latency.value.buckets_s)
        registry.register(self._latency)
        for metric in Metric:
            if metric is not latency:
                self._create(metric)
        self._types: set[str] = set()
        self._partitions: set[TopicPartition] = set()

    def _create(self, metric: Metric) -> None:
        spec, name = metric.value, _name(metric)
        made: Counter | Gauge | Histogram
        if spec.kind is Counter:
            made = self._counters[metric] = Counter(name, spec.help, spec.labels, registry=self.registry)
        elif spec.kind is Gauge:
            made = self._gauges[metric] = Gauge(name, spec.help, spec.labels, registry=self.registry)
        else:
            made = self._histograms[metric] = Histogram(
                name, spec.help, spec.labels, buckets=spec.buckets_s, registry=self.registry
            )
        for value in spec.series:  # a rate over a series that begins at 1 misses the first
            made.labels(value)

    def add(self, metric: Metric, n: float = 1, *labels: str) -> None:
        """Increase a counter."""
        counter = self._counters[metric]
        (counter.labels(*labels) if labels else counter).inc(n)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        gauge = self._gauges[metric]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Add a duration to a histogram."""
        histogram = self._histograms[metric]
        (histogram.labels(*labels) if labels else histogram).observe(seconds)

    def observe_latency(self, seconds_B: npt.NDArray[np.floating]) -> None:
        """Add the end-to-end latency of each event of a batch."""
        self._latency.observe(seconds_B)

    def add_types(self, metric: Metric, counts: Mapping[str, int]) -> None:
        """Increase a counter by event type; the 33rd type and all after it count as "other"."""
        for name, count in counts.items():
            if len(self._types) < MAX_EVENT_TYPES and name != OTHER_TYPES:
                self._types.add(name)
            self.add(metric, count, name if name in self._types else OTHER_TYPES)

    def set_lag(self, records: Mapping[TopicPartition, int]) -> None:
        """Set the lag of each assigned partition; those no longer assigned lose their series."""
        for lost in self._partitions - records.keys():
            self._gauges[Metric.CONSUMER_LAG_RECORDS].remove(lost.topic, str(lost.partition))
        self._partitions = set(records)
        for source, count in records.items():
            self.set(Metric.CONSUMER_LAG_RECORDS, count, source.topic, str(source.partition))

    def set_live(self, live: Callable[[], bool]) -> None:
        """Set the function that is called at each scrape; a stuck loop could not report it."""
        self._gauges[Metric.LIVE].set_function(live)


def _name(metric: Metric) -> str:
    return f"afresh_{metric.name.lower()}"

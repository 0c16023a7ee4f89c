"""Every Prometheus metric of afresh, in one list, and the registry that holds them.

Names, labels and types are promises to dashboards and alerts. No label holds a user or an item.
"""

import threading
from collections.abc import Callable, Mapping
from enum import Enum, unique
from typing import Any, NamedTuple

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
from pipeline.events.decode import TOMBSTONE
from pipeline.outcome import SKIPS, STAGES

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
    300.0, 600.0,
)  # fmt: skip
STAGE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
CHECKPOINT_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
MAX_EVENT_TYPES = 32  # with their own series: producers choose types freely, and series cost memory
OTHER_TYPES = "other"


class BatchHistogram(Collector):
    """A Prometheus histogram that takes whole arrays: one call a batch instead of one an event."""

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...], *,
        buckets: tuple[float, ...], registry: CollectorRegistry,
    ) -> None:  # fmt: skip
        self._name, self._documentation = name, documentation
        self._bounds = np.array(buckets, np.float64)
        self._names = [repr(bound) for bound in self._bounds.tolist()] + ["+Inf"]
        self._counts = np.zeros(len(self._names), np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()  # a scrape must see counts and sum of the same moment
        registry.register(self)

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


class Spec(NamedTuple):
    """A metric without its name. `series` are the label values that exist from the start."""

    kind: type[Any]
    help: str
    labels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()


@unique
class Metric(Enum):
    """All metrics; the name on the wire is `afresh_` and the lower-case name, with `_total` for counters."""

    EVENTS_CONSUMED = Spec(Counter, "Events consumed, by event type.", ("type",))
    EVENTS_REJECTED = Spec(Counter, "Records that hold no valid event, by reason.", ("reason",), REASONS)
    EVENTS_IGNORED = Spec(
        Counter, "Records of ignored event types, and records without a value.", ("type",), (TOMBSTONE,)
    )
    EVENTS_DUPLICATE = Spec(Counter, "Events dropped because their event_id came before.")
    USER_MOVES = Spec(Counter, "Events from another partition of their topic than the user's event before.")
    EVENTS_LATE = Spec(Counter, "Events of a backlog; their users' lists wait for its end.")
    DEAD_LETTERS = Spec(Counter, "Records sent to the dead-letter topic.", ("reason",), REASONS)
    EVENTS_LEARNED = Spec(Gauge, "Events in the model and the users' state, restored ones included.")
    CONSUMER_LAG_RECORDS = Spec(Gauge, "Records not consumed yet.", ("topic", "partition"))
    PARTITIONS_ASSIGNED = Spec(Gauge, "Partitions that this worker owns.")
    REBALANCES = Spec(Counter, "Rebalances of the consumer group.")
    LAST_EVENT_TIMESTAMP_SECONDS = Spec(Gauge, "Time of the newest event learned.")
    LAST_COMMIT_TIMESTAMP_SECONDS = Spec(Gauge, "Time of the last commit of offsets.")
    LIVE = Spec(Gauge, "1 while the loop makes progress, as /live reports; 0 when it is stuck.")
    TRAIN_STEPS = Spec(Counter, "Training steps taken.")
    TRAIN_STEPS_SKIPPED = Spec(Counter, "Training steps not taken, by reason.", ("reason",), SKIPS)
    LOSS = Spec(Gauge, "Mean loss of the last training step's targets.")
    GRADIENT_NORM = Spec(Gauge, "Norm of the last training step's gradient.")
    TABLE_ROWS = Spec(Gauge, "Live rows.", ("table",))
    ROWS_ADMITTED = Spec(Counter, "Rows given to new ids.", ("table",))
    ROWS_EVICTED = Spec(Counter, "Rows taken from ids that expired or were evicted.", ("table",))
    QUALITY_RATIO = Spec(
        Gauge, "Ranking quality on the live stream, over recent tests.", ("model", "measure", "segment")
    )
    CATALOGUE_COVERAGE_RATIO = Spec(Gauge, "Share of the known items on recently published rankings.")
    DRIFT_DETECTIONS = Spec(Counter, "Drift alarms.", ("detector", "signal"))
    LAST_DRIFT_TIMESTAMP_SECONDS = Spec(Gauge, "Time of the last drift alarm; 0: none.")
    DRIFT_REACTION = Spec(Gauge, "1 while the model reacts to a drift alarm, else 0.")
    MODEL_VERSION = Spec(Gauge, "Version of the model that ranks now.")
    BUILD_INFO = Spec(Gauge, "Always 1; the versions are the labels.", ("version", "python", "torch"))
    RANKINGS_DUE = Spec(Gauge, "Users with a pending ranking that no event of theirs asks for.")
    RANKINGS_PUBLISHED = Spec(Counter, "Rankings acknowledged by the broker.")
    PUBLISH_FAILURES = Spec(Counter, "Records that the broker did not acknowledge.")
    RECORDS_TOO_LARGE = Spec(Counter, "Records larger than their topic accepts.", ("topic", "outcome"))
    LAST_CHECKPOINT_TIMESTAMP_SECONDS = Spec(Gauge, "Time of the last checkpoint; 0: none.")
    END_TO_END_LATENCY_SECONDS = Spec(
        BatchHistogram, "From an event's record to the acknowledged ranking that includes it.",
        buckets_s=LATENCY_BUCKETS_S,
    )  # fmt: skip
    STAGE_SECONDS = Spec(Histogram, "Time of a batch in each stage.", ("stage",), STAGES, STAGE_BUCKETS_S)
    CHECKPOINT_SECONDS = Spec(
        Histogram, "Time that the loop stood still for a checkpoint.", buckets_s=CHECKPOINT_BUCKETS_S
    )


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Methods are called by the loop, once a batch or less; scrapes read from other threads. Label values come
    in the order of the metric's labels.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._made = {metric: self._make(metric) for metric in Metric}
        self._types: set[str] = set()
        self._partitions: set[TopicPartition] = set()

    def _make(self, metric: Metric) -> Any:
        spec, name = metric.value, f"afresh_{metric.name.lower()}"
        options = {"buckets": spec.buckets_s} if spec.buckets_s else {}
        made = spec.kind(name, spec.help, spec.labels, registry=self.registry, **options)
        for value in spec.series:  # a rate over a series that begins at 1 misses the first
            made.labels(value)
        return made

    def _series(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        return self._made[metric].labels(*labels) if labels else self._made[metric]

    def add(self, metric: Metric, n: float = 1, *labels: str) -> None:
        """Increase a counter."""
        self._series(metric, labels).inc(n)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._series(metric, labels).set(value)

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Add a duration to a histogram."""
        self._series(metric, labels).observe(seconds)

    def observe_latency(self, seconds_B: npt.NDArray[np.floating]) -> None:
        """Add the end-to-end latency of each event of a batch."""
        self._made[Metric.END_TO_END_LATENCY_SECONDS].observe(seconds_B)

    def add_types(self, metric: Metric, counts: Mapping[str, int]) -> None:
        """Increase a counter by event type; the 33rd type and all after it count as "other"."""
        for name, count in sorted(counts.items(), key=lambda pair: -pair[1]):
            if len(self._types) < MAX_EVENT_TYPES and name != OTHER_TYPES:
                self._types.add(name)
            self.add(metric, count, name if name in self._types else OTHER_TYPES)

    def set_lag(self, records: Mapping[TopicPartition, int]) -> None:
        """Set the lag of each assigned partition; those no longer assigned lose their series."""
        for lost in self._partitions - records.keys():
            self._made[Metric.CONSUMER_LAG_RECORDS].remove(lost.topic, str(lost.partition))
        self._partitions = set(records)
        for source, count in records.items():
            self.set(Metric.CONSUMER_LAG_RECORDS, count, source.topic, str(source.partition))

    def set_live(self, live: Callable[[], bool]) -> None:
        """Set the function that is called at each scrape; a stuck loop could not report it."""
        self._made[Metric.LIVE].set_function(live)

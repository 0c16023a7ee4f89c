"""Every Prometheus name of afresh: what the loop says, batch by batch, becomes metrics `afresh_*`.

Names, labels and types are promises to dashboards and alerts. No user and no item stands in a label.
"""

import threading
from collections.abc import Callable, Iterable, Mapping

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
MAX_TYPES = (
    32  # event types with a series of their own; producers choose them freely, Prometheus can't hold all
)
OTHER = "other"


class BatchHistogram(Collector):
    """A Prometheus histogram that takes whole arrays: one count a batch instead of one call an event."""

    def __init__(self, name: str, documentation: str, buckets_s: Iterable[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.fromiter(buckets_s, np.float64)
        self._names = [repr(bound) for bound in self._bounds.tolist()] + ["+Inf"]
        self._counts = np.zeros(len(self._names), np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()  # a scrape must see counts and sum of the same moment

    def observe(self, values: npt.NDArray[np.floating]) -> None:
        """Count `values`. What isn't finite is left out; below zero (clocks disagree) counts as zero."""
        clean = np.maximum(values[np.isfinite(values)], 0.0)
        places = np.searchsorted(self._bounds, clean, side="left")  # a bucket holds its upper bound
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(clean.sum())

    def describe(self) -> list[Family]:
        """Name the family, so that a registry notices a second one."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> list[Family]:
        """Return the cumulative counts."""
        with self._lock:
            counts, total = self._counts.cumsum().tolist(), self._sum
        buckets = list(zip(self._names, counts, strict=True))
        return [HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)]


class Metrics:
    """All metrics of one worker, in a registry of their own unless one is given.

    Methods are called by the loop, once a batch or less; scrapes read from other threads. Times (`at_s`) are
    seconds since 1970.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self._make_event_metrics()
        self._make_model_metrics()
        self._make_output_metrics()
        self._types: set[str] = set()
        self._partitions: set[TopicPartition] = set()
        self._newest_ms = 0

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"afresh_{name}", documentation, labels, registry=self.registry)  # appends _total

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"afresh_{name}", documentation, labels, registry=self.registry)

    def _make_event_metrics(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._consumed = counter("events_consumed", "Events consumed, by event type.", "type")
        self._rejected = counter("events_rejected", "Records that are no event, by reason.", "reason")
        self._ignored = counter(
            "events_ignored", "Records of event types to ignore, and records without a value.", "type"
        )
        self._duplicates = counter("events_duplicate", "Events dropped because their event_id came before.")
        self._moves = counter(
            "user_moves", "Events from another partition of their topic than their user's event before."
        )
        self._late = counter("events_late", "Events of a backlog: their users' lists wait for its end.")
        self._dead_letters = counter("dead_letters", "Records sent to the dead-letter topic.", "reason")
        for reason in REASONS:  # a rate over a series that begins at 1 misses the first
            self._rejected.labels(reason)
            self._dead_letters.labels(reason)
        self._learned = gauge(
            "events_learned", "Events in the model and the users' state, restored ones included."
        )
        self._lag = gauge("consumer_lag_records", "Records not consumed yet.", "topic", "partition")
        self._assigned = gauge("partitions_assigned", "Partitions that this worker owns.")
        self._rebalances = counter("rebalances", "Times that the partitions were handed out anew.")
        self._newest_event = gauge("last_event_timestamp_seconds", "Time of the newest event learned.")
        self._committed = gauge("last_commit_timestamp_seconds", "Time of the last commit of offsets.")
        self._live = gauge("live", "1 while the loop goes round, as /live says; 0 when it is stuck.")

    def _make_model_metrics(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._trained = counter("train_steps", "Training steps taken.")
        self._skipped = counter("train_steps_skipped", "Training steps not taken, by reason.", "reason")
        for reason in SKIPS:
            self._skipped.labels(reason)
        self._loss = gauge("loss", "Mean loss of the last training step's targets.")
        self._gradient_norm = gauge("gradient_norm", "Norm of the last training step's gradient.")
        self._rows = gauge("table_rows", "Live rows.", "table")
        self._admitted = counter("rows_admitted", "Rows given to new ids.", "table")
        self._evicted = counter("rows_evicted", "Rows taken from ids that expired or gave way.", "table")
        self._quality = gauge(
            "quality_ratio",
            "Ranking quality on the live stream, of the last tests.",
            "model",
            "measure",
            "segment",
        )
        self._coverage = gauge(
            "catalogue_coverage_ratio", "Share of the known items in rankings lately published."
        )
        self._drifts = counter("drift_detections", "Drift alarms.", "detector", "signal")
        self._last_drift = gauge("last_drift_timestamp_seconds", "Time of the last drift alarm; 0: none.")
        self._reaction = gauge("drift_reaction", "1 while the model reacts to a drift alarm, else 0.")
        self._version = gauge("model_version", "Version of the model that ranks now.")
        self._build = gauge(
            "build_info", "Always 1; the versions are the labels.", "version", "python", "torch"
        )

    def _make_output_metrics(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._due = gauge("rankings_due", "Users whose list is to be made without an event of theirs.")
        self._published = counter("rankings_published", "Rankings acknowledged by the broker.")
        self._publish_failures = counter("publish_failures", "Records that the broker did not acknowledge.")
        self._too_large = counter(
            "records_too_large", "Records larger than their topic takes.", "topic", "outcome"
        )
        self._last_checkpoint = gauge(
            "last_checkpoint_timestamp_seconds", "Time of the last checkpoint; 0: none."
        )
        self._latency = BatchHistogram(
            "afresh_end_to_end_latency_seconds",
            "From the event's record to the acknowledged ranking that knows it.",
            LATENCY_BUCKETS_S,
        )
        self.registry.register(self._latency)
        stages = Histogram(
            "afresh_stage_seconds", "Time of a batch in each stage.", ["stage"],
            buckets=STAGE_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._checkpoints = Histogram(
            "afresh_checkpoint_seconds", "Time that the loop stood still for a checkpoint.",
            buckets=CHECKPOINT_BUCKETS_S, registry=self.registry,
        )  # fmt: skip

    # Events

    def consumed(self, types: Mapping[str, int]) -> None:
        """Count events by type; the 33rd type and all after it are counted as "other"."""
        for name, count in types.items():
            self._consumed.labels(self._type_label(name)).inc(count)

    def ignored(self, types: Mapping[str, int]) -> None:
        """Count what was ignored by type, "tombstone" for records without a value; the rest as `consumed`."""
        for name, count in types.items():
            self._ignored.labels(self._type_label(name)).inc(count)

    def _type_label(self, name: str) -> str:
        if name not in self._types and name != OTHER:
            if len(self._types) == MAX_TYPES:
                return OTHER
            self._types.add(name)
        return name

    def rejected(self, reason: str, n: int = 1) -> None:
        """Count records that are no event; `reason` is one of a few fixed words."""
        self._rejected.labels(reason).inc(n)

    def duplicates(self, n: int) -> None:
        """Count events that were dropped as known."""
        self._duplicates.inc(n)

    def late(self, n: int) -> None:
        """Count events whose users' lists wait for the end of a backlog."""
        self._late.inc(n)

    def user_moves(self, n: int) -> None:
        """Count events that came from another partition of their topic than their user's event before."""
        self._moves.inc(n)

    def dead_letters(self, reason: str, n: int = 1) -> None:
        """Count records that went to the dead-letter topic."""
        self._dead_letters.labels(reason).inc(n)

    def learned(self, total: int) -> None:
        """Set how many events the state has learned in all."""
        self._learned.set(total)

    def lag(self, records: Mapping[TopicPartition, int]) -> None:
        """Set the lag of each assigned partition; partitions that went away lose their series."""
        for gone in self._partitions - records.keys():
            self._lag.remove(gone.topic, str(gone.partition))
        self._partitions = set(records)
        for source, count in records.items():
            self._lag.labels(source.topic, str(source.partition)).set(count)

    def assigned(self, n: int) -> None:
        """Set how many partitions this worker owns."""
        self._assigned.set(n)

    def rebalanced(self) -> None:
        """Count a rebalance."""
        self._rebalances.inc()

    def newest_event(self, ms: int) -> None:
        """Tell the event time of a batch's newest event; an older one changes nothing."""
        self._newest_ms = max(self._newest_ms, ms)
        self._newest_event.set(self._newest_ms / 1000)

    def committed(self, at_s: float) -> None:
        """Set the time of the last commit."""
        self._committed.set(at_s)

    def ask_live(self, live: Callable[[], bool]) -> None:
        """Ask at each scrape whether the loop goes round; a stuck loop could not tell it itself."""
        self._live.set_function(live)

    # Model

    def trained(self, loss: float, gradient_norm: float) -> None:
        """Count a training step."""
        self._trained.inc()
        self._loss.set(loss)
        self._gradient_norm.set(gradient_norm)

    def skipped(self, reason: str) -> None:
        """Count a training step that was not taken."""
        self._skipped.labels(reason).inc()

    def rows(self, table: str, live: int, admitted: int, evicted: int) -> None:
        """Set the rows of a table; `admitted` and `evicted` are those of this batch."""
        self._rows.labels(table).set(live)
        self._admitted.labels(table).inc(admitted)
        self._evicted.labels(table).inc(evicted)

    def quality(self, model: str, measure: str, segment: str, value: float) -> None:
        """Set a figure of a model: measure hr, ndcg, mrr or served_hr; segment all, cold or warm."""
        self._quality.labels(model, measure, segment).set(value)

    def coverage(self, ratio: float) -> None:
        """Set the share of the known items that rankings show."""
        self._coverage.set(ratio)

    def drift(self, detector: str, signal: str, at_s: float) -> None:
        """Count a drift alarm."""
        self._drifts.labels(detector, signal).inc()
        self._last_drift.set(at_s)

    def reacting(self, reacting: bool) -> None:
        """Say whether a reaction to drift runs."""
        self._reaction.set(reacting)

    def version(self, version: int) -> None:
        """Set the version of the model that ranks."""
        self._version.set(version)

    def build_info(self, version: str, python: str, torch: str) -> None:
        """Name the versions that run."""
        self._build.labels(version, python, torch).set(1)

    # Output

    def stage(self, stage: str, seconds: float) -> None:
        """Observe the time of one batch in a stage of `STAGES`."""
        self._stages[stage].observe(seconds)

    def latency(self, seconds_B: npt.NDArray[np.floating]) -> None:
        """Observe the latency of each event of a batch, [B] seconds."""
        self._latency.observe(seconds_B)

    def published(self, n: int) -> None:
        """Count acknowledged rankings."""
        self._published.inc(n)

    def due(self, users: int) -> None:
        """Set how many users wait for a list that no event of theirs asks for."""
        self._due.set(users)

    def too_large(self, topic: str, outcome: str, n: int = 1) -> None:
        """Count records that were `truncated` (dead letters) or `dropped`, since their topic takes no larger
        ones."""
        self._too_large.labels(topic, outcome).inc(n)

    def publish_failed(self, n: int = 1) -> None:
        """Count records that were not acknowledged."""
        self._publish_failures.inc(n)

    def checkpoint(self, seconds: float, at_s: float) -> None:
        """Observe a checkpoint that took `seconds` and was whole at `at_s`."""
        self._checkpoints.observe(seconds)
        self._last_checkpoint.set(at_s)

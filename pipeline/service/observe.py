"""The metrics and the health of one worker, from what the loop reports."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.events.batch import RawBatch, TopicPartition
from pipeline.outcome import Learner, Outcome
from pipeline.service.health import Health
from pipeline.service.metrics import Metric, Metrics
from pipeline.service.ports import Clock, Delivered, Observer, State

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Quality and progress of the worker, restored or learned."""

    quality: Mapping[tuple[str, str, str], float]  # (model, measure, segment) -> mean over recent tests
    coverage: float  # share of items on recent lists
    events_learned: int
    version: int  # batches learned


class MetricsObserver(Observer):
    """Keep the metrics and the health of one worker."""

    def __init__(
        self, metrics: Metrics, health: Health, clock: Clock, status: Callable[[], ModelStatus] | None = None
    ) -> None:
        """`status` is called with each commit: about once a second."""
        self._metrics, self._health, self._clock, self._status = metrics, health, clock, status
        self._since_s = clock.monotonic_s()
        self._newest_event_ms = 0

    def became(self, state: State) -> None:
        self._health.become(state)

    def ticked(self) -> None:
        self._health.tick()

    def busy(self, reason: str, limit_s: float) -> None:
        self._health.busy(reason, limit_s)

    def begin(self) -> None:
        self._since_s = self._clock.monotonic_s()

    def mark(self, stage: str) -> None:
        now_s = self._clock.monotonic_s()
        self._metrics.observe(Metric.STAGE_SECONDS, now_s - self._since_s, stage)
        self._since_s = now_s

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        self._count_events(raw, outcome)
        metrics, figures = self._metrics, outcome.metrics
        metrics.set(Metric.EVENTS_LEARNED, learner.events_learned)
        metrics.set(Metric.MODEL_VERSION, learner.seq)
        metrics.set(Metric.RANKINGS_DUE, figures.due)
        if figures.skipped:
            metrics.add(Metric.TRAIN_STEPS_SKIPPED, 1, figures.skipped)
        else:
            metrics.add(Metric.TRAIN_STEPS)
            metrics.set(Metric.LOSS, figures.loss)
            metrics.set(Metric.GRADIENT_NORM, figures.gradient_norm)
        for table, rows in figures.tables.items():
            metrics.set(Metric.TABLE_ROWS, rows.live, table)
            metrics.add(Metric.ROWS_ADMITTED, rows.admitted, table)
            metrics.add(Metric.ROWS_EVICTED, rows.evicted, table)
        for alarm in outcome.alarms:
            logger.info(
                "drift: %s %.3f -> %.3f at event %d%s", alarm.signal, alarm.before, alarm.after,
                alarm.at_event, f"; reaction {alarm.reaction:.2f}" if alarm.reaction else "",
            )  # fmt: skip
            metrics.add(Metric.DRIFT_DETECTIONS, 1, alarm.detector, alarm.signal)
            metrics.set(Metric.LAST_DRIFT_TIMESTAMP_SECONDS, alarm.detected_at_ms / 1000)
        metrics.set(Metric.DRIFT_REACTION, figures.reacting)

    def _count_events(self, raw: RawBatch, outcome: Outcome) -> None:
        metrics, figures = self._metrics, outcome.metrics
        metrics.add_types(Metric.EVENTS_CONSUMED, figures.types)
        metrics.add_types(Metric.EVENTS_IGNORED, raw.ignored)
        for reason, count in reasons(raw).items():
            metrics.add(Metric.EVENTS_REJECTED, count, reason)
        metrics.add(Metric.EVENTS_DUPLICATE, figures.duplicates)
        metrics.add(Metric.USER_MOVES, figures.moved)
        metrics.add(Metric.EVENTS_LATE, figures.late)
        self._newest_event_ms = max(self._newest_event_ms, figures.newest_event_ms)
        metrics.set(Metric.LAST_EVENT_TIMESTAMP_SECONDS, self._newest_event_ms / 1000)

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        self._metrics.add(Metric.RANKINGS_PUBLISHED, batch.rankings)
        for reason, count in batch.dead_letters.items():
            self._metrics.add(Metric.DEAD_LETTERS, count, reason)
        known = batch.append_ms_B[batch.append_ms_B > 0]
        if len(known):
            self._metrics.observe_latency((at_ms - known.astype(np.float64)) / 1000)

    def undelivered(self, records: int) -> None:
        self._metrics.add(Metric.PUBLISH_FAILURES, records)

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        self._metrics.set(Metric.LAST_COMMIT_TIMESTAMP_SECONDS, at_ms / 1000)
        self._metrics.set_lag(lag)
        if self._status is not None:
            status = self._status()
            for labels, value in status.quality.items():
                self._metrics.set(Metric.QUALITY_RATIO, value, *labels)
            self._metrics.set(Metric.CATALOGUE_COVERAGE_RATIO, status.coverage)
            # after a restart, before the first batch
            self._metrics.set(Metric.EVENTS_LEARNED, status.events_learned)
            self._metrics.set(Metric.MODEL_VERSION, status.version)

    def rebalanced(self) -> None:
        self._metrics.add(Metric.REBALANCES)

    def holds(self, partitions: int) -> None:
        self._metrics.set(Metric.PARTITIONS_ASSIGNED, partitions)

    def checkpointed(self, seconds: float, at_ms: int) -> None:
        self._metrics.observe(Metric.CHECKPOINT_SECONDS, seconds)
        self._metrics.set(Metric.LAST_CHECKPOINT_TIMESTAMP_SECONDS, at_ms / 1000)


def reasons(raw: RawBatch) -> Counter[str]:
    """Count a batch's rejects by reason."""
    return Counter(reject.reason for reject in raw.rejects)

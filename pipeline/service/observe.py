"""What the loop tells about itself, and its translation into metrics and health."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.events.batch import IntArray, RawBatch, TopicPartition
from pipeline.outcome import Learner, Outcome
from pipeline.service.health import Health, State
from pipeline.service.metrics import Metrics
from pipeline.service.ports import Clock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A batch that has left: how many rankings, which dead letters, and when its events were appended."""

    rankings: int
    dead_letters: Mapping[str, int]  # by reason
    append_ms_B: IntArray  # 0 where not plausible


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where the worker stands, restored or learned.

    `quality`: how well the models do of late, (model, measure, segment) -> mean. `coverage`: the share of
    items shown. `version` counts batches.
    """

    quality: Mapping[tuple[str, str, str], float]
    coverage: float
    events_learned: int
    version: int


class Observer(Protocol):
    """Told by the loop what happens, as it happens. Must not fail and must be quick."""

    def became(self, state: State) -> None:
        """The worker does something else now."""

    def ticked(self) -> None:
        """The loop goes round."""

    def busy(self, reason: str, limit_s: float) -> None:
        """A long step begins: the next tick may take this long."""

    def begin(self) -> None:
        """A batch has come; the time of its first stage counts from now."""

    def mark(self, stage: str) -> None:
        """A stage has ended, and the next one begins."""

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        """A batch was learned, for the first time or again."""

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        """Everything of a batch is acknowledged."""

    def undelivered(self, records: int) -> None:
        """The broker did not take a batch."""

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        """Offsets were committed."""

    def rebalanced(self) -> None:
        """The group handed the partitions out anew."""

    def holds(self, partitions: int) -> None:
        """The worker owns so many partitions now."""

    def checkpointed(self, seconds: float, at_ms: int) -> None:
        """A checkpoint is whole."""


class Unobserved:
    """An observer that does nothing."""

    def became(self, state: State) -> None: ...
    def ticked(self) -> None: ...
    def busy(self, reason: str, limit_s: float) -> None: ...
    def begin(self) -> None: ...
    def mark(self, stage: str) -> None: ...
    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None: ...
    def delivered(self, batch: Delivered, at_ms: int) -> None: ...
    def undelivered(self, records: int) -> None: ...
    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None: ...
    def rebalanced(self) -> None: ...
    def holds(self, partitions: int) -> None: ...
    def checkpointed(self, seconds: float, at_ms: int) -> None: ...


class MetricsObserver:
    """An observer that keeps the metrics and the health of one worker."""

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        clock: Clock,
        standing: Callable[[], ModelStatus] | None = None,
    ) -> None:
        """`standing` is asked with each commit: about once a second."""
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._standing = standing
        self._since_s = clock.monotonic_s()

    def became(self, state: State) -> None:
        """Show the state on /ready."""
        self._health.become(state)

    def ticked(self) -> None:
        """Show the tick on /live."""
        self._health.tick()

    def busy(self, reason: str, limit_s: float) -> None:
        """Excuse the loop on /live for a while."""
        self._health.busy(reason, limit_s)

    def begin(self) -> None:
        """Start the stages' stopwatch."""
        self._since_s = self._clock.monotonic_s()

    def mark(self, stage: str) -> None:
        """Observe the time since the last mark as that of `stage`."""
        now_s = self._clock.monotonic_s()
        self._metrics.stage(stage, now_s - self._since_s)
        self._since_s = now_s

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        """Count the events of a batch, its training step, its rows and its alarms."""
        metrics, figures = self._metrics, outcome.metrics
        metrics.consumed(figures.types)
        metrics.ignored(raw.ignored)
        for reason, count in reasons(raw).items():
            metrics.rejected(reason, count)
        metrics.duplicates(figures.duplicates)
        metrics.user_moves(figures.moved)
        metrics.late(figures.late)
        metrics.due(figures.due)
        metrics.learned(learner.events_learned)
        metrics.newest_event(figures.newest_event_ms)
        metrics.version(learner.seq)
        if figures.skipped:
            metrics.skipped(figures.skipped)
        else:
            metrics.trained(figures.loss, figures.gradient_norm)
        for table, rows in figures.tables.items():
            metrics.rows(table, rows.live, rows.admitted, rows.evicted)
        for alarm in outcome.alarms:
            logger.info(
                "drift: %s %.3f -> %.3f at event %d%s", alarm.signal, alarm.before, alarm.after,
                alarm.at_event, f"; reaction {alarm.reaction:.2f}" if alarm.reaction else "",
            )  # fmt: skip
            metrics.drift(alarm.detector, alarm.signal, alarm.detected_at_ms / 1000)
        metrics.reacting(figures.reacting)

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        """Count what was published; observe the latency of events whose record has a plausible time."""
        self._metrics.published(batch.rankings)
        for reason, count in batch.dead_letters.items():
            self._metrics.dead_letters(reason, count)
        known = batch.append_ms_B[batch.append_ms_B > 0]
        if len(known):
            self._metrics.latency((at_ms - known.astype(np.float64)) / 1000)

    def undelivered(self, records: int) -> None:
        """Count the records of a batch that the broker did not take."""
        self._metrics.publish_failed(records)

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        """Set the time of the last commit, the lag, and where the worker stands."""
        self._metrics.committed(at_ms / 1000)
        self._metrics.lag(lag)
        if self._standing is not None:
            standing = self._standing()
            for labels, value in standing.quality.items():
                self._metrics.quality(*labels, value)
            self._metrics.coverage(standing.coverage)
            self._metrics.learned(standing.events_learned)  # after a restart, before the first batch
            self._metrics.version(standing.version)

    def rebalanced(self) -> None:
        """Count a rebalance."""
        self._metrics.rebalanced()

    def holds(self, partitions: int) -> None:
        """Set the number of partitions."""
        self._metrics.assigned(partitions)

    def checkpointed(self, seconds: float, at_ms: int) -> None:
        """Observe a checkpoint."""
        self._metrics.checkpoint(seconds, at_ms / 1000)


def reasons(raw: RawBatch) -> Counter[str]:
    """Count a batch's rejects by reason."""
    return Counter(reject.reason for reject in raw.rejects)

"""What the demo sees of the loop: counts, latency, alarms, one user's list; small however long it runs."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.app.demo.quality import Course, ModelLine
from pipeline.app.demo.uplift import Arm
from pipeline.events.batch import IntArray, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.outcome import Learner, Outcome
from pipeline.service.health import State
from pipeline.service.observe import Delivered, Observer
from pipeline.service.ports import Clock

LONGEST_MS = 60_000
FOLLOW_S = 4.0  # for how long one user's list stays in view at least
MOST_ALARMS = 1_000  # that are kept, the newest
SPEED_S = 2.0  # the time that the speed in view is taken over, at least


class Latency:
    """Times in whole milliseconds, counted: record stamps have no finer ones. The longest is a minute."""

    def __init__(self) -> None:
        self._counts = np.zeros(LONGEST_MS + 1, np.int64)

    def add(self, ms_B: IntArray) -> None:
        """Count times; those below zero, where clocks disagree, count as zero."""
        self._counts += np.bincount(np.clip(ms_B, 0, LONGEST_MS), minlength=LONGEST_MS + 1)

    def percentile(self, share: float) -> float | None:
        """Return the least time that a share of all times don't exceed, 0 < share <= 1; None without any.

        >>> latency = Latency()
        >>> latency.add(np.arange(1, 101))
        >>> latency.percentile(0.99)
        99.0
        """
        running = np.cumsum(self._counts)
        if not running[-1]:
            return None
        return float(np.searchsorted(running, np.ceil(share * running[-1])))


@dataclass(frozen=True, slots=True)
class Progress:
    """The demo at one moment."""

    events: int  # learned, or sent to the dead letters
    total: int | None  # to come in all; None: not known
    events_per_s: float
    lag: int
    p50_ms: float | None
    p99_ms: float | None
    models: tuple[ModelLine, ...]
    course: Course
    change_at: int | None  # the event at which taste changes; None: never
    alarms: tuple[DriftAlarm, ...]
    arms: tuple[Arm, ...]  # empty without a closed loop
    ranking: Ranking | None


class DemoWatch(Observer):
    """An observer that looks over the shoulder of another one.

    `on_ready` is called once, when the worker has its partitions; `on_tick` whenever the loop goes round.
    """

    def __init__(
        self, inner: Observer, clock: Clock, on_ready: Callable[[], None], on_tick: Callable[[], None]
    ) -> None:
        self._inner, self._clock = inner, clock
        self._on_ready, self._on_tick = on_ready, on_tick
        self._ready = False
        self.records = 0  # taken off the topic: events, duplicates and dead letters
        self.rankings = 0
        self.dead_letters = 0
        self.alarms: deque[DriftAlarm] = deque(maxlen=MOST_ALARMS)
        self.latency = Latency()
        self.lag = 0
        self.followed: Ranking | None = None
        self._followed_s = 0.0
        self._first_s = self._last_s = 0.0
        self._speed = Speed()

    @property
    def learning_s(self) -> float:
        """Seconds from the first batch to the last acknowledgement."""
        return self._last_s - self._first_s

    def speed(self) -> float:
        """Return records a second of late."""
        return self._speed.over(self.records, self._clock.monotonic_s())

    def became(self, state: State) -> None:
        """Pass it on."""
        self._inner.became(state)

    def ticked(self) -> None:
        """Pass it on; let the demo look round."""
        self._inner.ticked()
        self._on_tick()

    def busy(self, reason: str, limit_s: float) -> None:
        """Pass it on."""
        self._inner.busy(reason, limit_s)

    def begin(self) -> None:
        """Pass it on."""
        self._inner.begin()

    def mark(self, stage: str) -> None:
        """Pass it on."""
        self._inner.mark(stage)

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        """Count a batch and keep its alarms and one of its lists."""
        self._inner.learned(raw, outcome, learner)
        now_s = self._clock.monotonic_s()
        if not self.records:
            self._first_s = now_s
        self.records += len(raw.events) + len(raw.rejects)
        self.alarms.extend(outcome.alarms)
        self._follow(outcome.rankings, now_s)

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        """Count what was acknowledged, and how long it took."""
        self._inner.delivered(batch, at_ms)
        self.rankings += batch.rankings
        self.dead_letters += sum(batch.dead_letters.values())
        stamped = batch.append_ms_B[batch.append_ms_B > 0]
        self.latency.add(at_ms - stamped.astype(np.int64))
        self._last_s = self._clock.monotonic_s()

    def undelivered(self, records: int) -> None:
        """Pass it on."""
        self._inner.undelivered(records)

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        """Keep the lag."""
        self._inner.committed(at_ms, lag)
        self.lag = sum(lag.values())

    def rebalanced(self) -> None:
        """Pass it on."""
        self._inner.rebalanced()

    def holds(self, partitions: int) -> None:
        """Say once that the worker is there."""
        self._inner.holds(partitions)
        if partitions and not self._ready:
            self._ready = True
            self._on_ready()

    def checkpointed(self, seconds: float, at_ms: int) -> None:
        """Pass it on."""
        self._inner.checkpointed(seconds, at_ms)

    def _follow(self, rankings: list[Ranking], now_s: float) -> None:
        """Keep the newest list of one user, and turn to another one now and then."""
        for ranking in rankings:
            if self.followed is not None and ranking.user_id == self.followed.user_id:
                self.followed = ranking
        if self.followed is None or now_s - self._followed_s >= FOLLOW_S:
            with_reasons = [ranking for ranking in rankings if any(item.because for item in ranking.items)]
            if with_reasons:
                self.followed, self._followed_s = with_reasons[-1], now_s


class Speed:
    """Records a second, over the last few looks."""

    def __init__(self) -> None:
        self._looks: list[tuple[int, float]] = []

    def over(self, records: int, now_s: float) -> float:
        """Note a count; return the speed since the newest look at least `SPEED_S` old, or the first."""
        self._looks.append((records, now_s))
        while len(self._looks) > 2 and now_s - self._looks[1][1] >= SPEED_S:
            del self._looks[0]
        before, at_s = self._looks[0]
        return (records - before) / (now_s - at_s) if now_s > at_s else 0.0

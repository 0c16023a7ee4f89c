"""What the demo observes of the loop, in bounded memory: counts, latency, alarms, one user's list."""

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from pipeline.events.batch import IntArray, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.outcome import Learner, Outcome
from pipeline.service.ports import Clock, Delivered, Observer

MAX_LATENCY_MS = 60_000
FOLLOW_S = 4.0  # for how long one user's list is shown at least
MAX_ALARMS = 1_000  # that are kept, the newest
SPEED_S = 2.0  # the least time that the speed is measured over


class Latency:
    """A histogram of whole milliseconds, the resolution of record timestamps; longer times are cut."""

    def __init__(self) -> None:
        self._counts = np.zeros(MAX_LATENCY_MS + 1, np.int64)

    def add(self, ms_B: IntArray) -> None:
        """Count times; those below zero, where clocks disagree, count as zero."""
        self._counts += np.bincount(np.clip(ms_B, 0, MAX_LATENCY_MS), minlength=MAX_LATENCY_MS + 1)

    def percentile(self, share: float) -> float | None:
        """Return the least time that `share` of all times don't exceed, 0 < share <= 1; None without any.

        >>> latency = Latency()
        >>> latency.add(np.arange(1, 101))
        >>> latency.percentile(0.99)
        99.0
        """
        running = np.cumsum(self._counts)
        if not running[-1]:
            return None
        return float(np.searchsorted(running, np.ceil(share * running[-1])))


class DemoWatch(Observer):
    """An observer of the loop.

    `on_ready` is called once, when the worker has its partitions; `on_tick` in every round of the loop.
    """

    def __init__(self, clock: Clock, on_ready: Callable[[], None], on_tick: Callable[[], None]) -> None:
        self._clock = clock
        self._on_ready, self._on_tick = on_ready, on_tick
        self._ready = False
        self.records = 0  # read from the topic: events, duplicates and dead letters
        self.rankings = 0
        self.dead_letters = 0
        self.alarms: deque[DriftAlarm] = deque(maxlen=MAX_ALARMS)
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
        """Return the records a second of the last seconds."""
        return self._speed.over(self.records, self._clock.monotonic_s())

    def ticked(self) -> None:
        """Call `on_tick`."""
        self._on_tick()

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        """Count a batch and keep its alarms and one of its lists."""
        now_s = self._clock.monotonic_s()
        if not self.records:
            self._first_s = now_s
        self.records += len(raw.events) + len(raw.rejects)
        self.alarms.extend(outcome.alarms)
        self._follow(outcome.rankings, now_s)

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        """Count what is acknowledged, and its latency."""
        self.rankings += batch.rankings
        self.dead_letters += sum(batch.dead_letters.values())
        stamped = batch.append_ms_B[batch.append_ms_B > 0]
        self.latency.add(at_ms - stamped.astype(np.int64))
        self._last_s = self._clock.monotonic_s()

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        """Keep the lag."""
        self.lag = sum(lag.values())

    def holds(self, partitions: int) -> None:
        """Call `on_ready` once, with the first partitions."""
        if partitions and not self._ready:
            self._ready = True
            self._on_ready()

    def _follow(self, rankings: list[Ranking], now_s: float) -> None:
        """Keep the newest list of one user, and switch to another user after `FOLLOW_S`."""
        for ranking in rankings:
            if self.followed is not None and ranking.user_id == self.followed.user_id:
                self.followed = ranking
        if self.followed is None or now_s - self._followed_s >= FOLLOW_S:
            explained = [ranking for ranking in rankings if any(item.because for item in ranking.items)]
            if explained:
                self.followed, self._followed_s = explained[-1], now_s


class Speed:
    """Records a second, over the last few samples."""

    def __init__(self) -> None:
        self._samples: list[tuple[int, float]] = []

    def over(self, records: int, now_s: float) -> float:
        """Add a count; return the speed since the newest sample at least `SPEED_S` old, or the first."""
        self._samples.append((records, now_s))
        while len(self._samples) > 2 and now_s - self._samples[1][1] >= SPEED_S:
            del self._samples[0]
        before, at_s = self._samples[0]
        return (records - before) / (now_s - at_s) if now_s > at_s else 0.0

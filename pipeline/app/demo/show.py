"""One run of the demo: the sender starts when the pipeline is ready, the loop ends when all is learned."""

import signal
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline.app.console import signals_to
from pipeline.app.demo.progress import Progress, arms_of, course_of, delay_of
from pipeline.app.demo.view import View
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.evaluation.timeline import Track
from pipeline.events.batch import IntArray, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.outcome import Learner, Outcome
from pipeline.service.loop import Loop
from pipeline.service.ports import Clock, Delivered, Observer
from producers.sender_process import SenderProcess

MAX_LATENCY_MS = 60_000
FOLLOW_S = 4.0  # for how long one user's list is shown at least
MAX_ALARMS = 1_000  # that are kept, the newest


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


class Demo(Observer):
    """An observer that shows the progress of its loop, and ends it when all that was sent is learned.

    `total` is the number of events to come, None where it is not known; preferences change at event
    `change_at`. What it keeps is bounded.
    """

    def __init__(
        self, view: View, clock: Clock, sender: SenderProcess, total: int | None, change_at: int | None
    ) -> None:
        self._view, self._clock, self._sender = view, clock, sender
        self._total, self._change_at = total, change_at
        self._began_s = clock.monotonic_s()
        self._first_s = self._last_s = self._followed_s = 0.0  # first batch, last acknowledgement
        self._running: tuple[Loop, Callable[[], Track]] | None = None
        self._ready = False
        self._records = self._rankings = self._dead_letters = self._lag = 0
        self._alarms: deque[DriftAlarm] = deque(maxlen=MAX_ALARMS)
        self._followed: Ranking | None = None
        self.latency = Latency()

    def play(self, loop: Loop, quality: RankMetrics, track: Callable[[], Track]) -> dict[str, Any]:
        """Run the loop to the end, or to a first SIGINT or SIGTERM; return the summary, the last JSON line.

        `track` returns the metrics so far. Raise KeyboardInterrupt on a second signal, and `AfreshError` as
        the loop does, or when the sender failed.
        """
        self._running = loop, track
        with signals_to(lambda number, frame: loop.stop(), signal.default_int_handler):
            loop.run()
        self._sender.stop()
        self._show(track(), self._clock.monotonic_s())
        self._view.close()
        return self._summary(loop.learner.events_learned, quality)

    def ticked(self) -> None:
        """Show the progress where it is time, and stop the loop when the last event is learned."""
        if self._running is None:
            return
        loop, track = self._running
        now_s = self._clock.monotonic_s()
        if self._records and self._view.due(now_s):
            self._show(track(), now_s)
        sent = self._sender.sent()
        if sent is not None and self._records >= sent:
            loop.stop()

    def holds(self, partitions: int) -> None:
        """Start the sender with the first partitions."""
        if partitions and not self._ready:
            self._ready = True
            self._sender.start()

    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None:
        """Count a batch and keep its alarms and one of its lists."""
        now_s = self._clock.monotonic_s()
        if not self._records:
            self._first_s = now_s
        self._records += len(raw.events) + len(raw.rejects)
        self._alarms.extend(outcome.alarms)
        self._follow(outcome.rankings, now_s)

    def delivered(self, batch: Delivered, at_ms: int) -> None:
        """Count what is acknowledged, and its latency."""
        self._rankings += batch.rankings
        self._dead_letters += sum(batch.dead_letters.values())
        stamped = batch.append_ms_B[batch.append_ms_B > 0]
        self.latency.add(at_ms - stamped.astype(np.int64))
        self._last_s = self._clock.monotonic_s()

    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None:
        """Keep the lag."""
        self._lag = sum(lag.values())

    def _follow(self, rankings: list[Ranking], now_s: float) -> None:
        """Keep one list with reasons, and take another one after `FOLLOW_S`."""
        if self._followed is None or now_s - self._followed_s >= FOLLOW_S:
            explained = [ranking for ranking in rankings if any(item.because for item in ranking.items)]
            if explained:
                self._followed, self._followed_s = explained[-1], now_s

    def _show(self, track: Track, now_s: float) -> None:
        progress = Progress(
            events=self._records,
            total=self._total,
            events_per_s=_per_second(self._records, now_s - self._first_s),
            lag=self._lag,
            p50_ms=self.latency.percentile(0.5),
            p99_ms=self.latency.percentile(0.99),
            course=course_of(track),
            change_at=self._change_at,
            alarms=tuple(self._alarms),
            arms=arms_of(self._uplift()),
            ranking=self._followed,
        )
        self._view.show(progress, now_s)

    def _uplift(self) -> dict[str, Any] | None:
        """Return the uplift of the lists, so far or in the end; None without a closed loop."""
        figures = self._sender.figures()
        return self._sender.progress() if figures is None else figures.get("uplift")

    def _summary(self, events: int, quality: RankMetrics) -> dict[str, Any]:
        uplift = self._uplift()
        return {
            "events": events,
            "rankings": self._rankings,
            "dead_letters": self._dead_letters,
            "events_per_s": round(_per_second(events, self._last_s - self._first_s), 1),
            "latency_p50_ms": self.latency.percentile(0.5),
            "latency_p99_ms": self.latency.percentile(0.99),
            "models": {
                name: {"hr@10": metrics["hr@10"], "ndcg@10": metrics["ndcg@10"]}
                for name, metrics in quality.cumulative().items()
            },
            "drift_alarms": [
                {
                    "signal": alarm.signal,
                    "at_event": alarm.at_event,
                    "delay_events": delay_of(alarm, self._change_at),
                }
                for alarm in self._alarms
            ],
            "uplift": uplift and {name: part for name, part in uplift.items() if name != "windows"},
            "seconds": round(self._clock.monotonic_s() - self._began_s, 1),
        }


def _per_second(events: int, seconds: float) -> float:
    return events / seconds if seconds > 0 else 0.0

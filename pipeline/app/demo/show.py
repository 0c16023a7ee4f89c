"""One run of the demo: the sender starts when the pipeline is ready, the loop ends when all is learned."""

import signal
from typing import Any

from pipeline.app.console import signals_to
from pipeline.app.demo.progress import Progress, arms_of
from pipeline.app.demo.quality import QualityCourse
from pipeline.app.demo.view import View
from pipeline.app.demo.watch import DemoWatch
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.service.loop import Loop
from pipeline.service.ports import Clock
from producers.sender_process import SenderProcess


class Demo:
    """Shows the progress of a loop, and ends it when everything that was sent is learned.

    `total` is the number of events to come, None where it is not known; preferences change at event
    `change_at`. The loop is built with the observer `watch`.
    """

    def __init__(
        self, view: View, clock: Clock, sender: SenderProcess, total: int | None, change_at: int | None
    ) -> None:
        self._view, self._clock, self._sender = view, clock, sender
        self._total, self._change_at = total, change_at
        self._began_s = clock.monotonic_s()
        self._running: tuple[Loop, QualityCourse] | None = None
        self.watch = DemoWatch(clock, sender.start, self._tick)

    def play(self, loop: Loop, quality: RankMetrics) -> dict[str, Any]:
        """Run the loop to the end, or to a first SIGINT or SIGTERM; return the summary, the last JSON line.

        Raise KeyboardInterrupt on a second signal, and `AfreshError` as the loop does, or when the sender
        failed.
        """
        course = QualityCourse(quality)
        self._running = loop, course
        with signals_to(lambda number, frame: loop.stop(), signal.default_int_handler):
            loop.run()
        self._sender.stop()
        self._view.show(self._progress(course), self._clock.monotonic_s())
        self._view.close()
        return self._summary(loop.learner.events_learned, quality)

    def _tick(self) -> None:
        """Show the progress where it is time, and stop the loop when the last event is learned."""
        if self._running is None:
            return
        loop, course = self._running
        course.look(loop.learner.events_learned)
        now_s = self._clock.monotonic_s()
        if self._view.due(now_s) and self.watch.records:
            self._view.show(self._progress(course), now_s)
        sent = self._sender.sent()
        if sent is not None and self.watch.records >= sent:
            loop.stop()

    def _progress(self, course: QualityCourse) -> Progress:
        watch = self.watch
        return Progress(
            events=watch.records,
            total=self._total,
            events_per_s=watch.speed(),
            lag=watch.lag,
            p50_ms=watch.latency.percentile(0.5),
            p99_ms=watch.latency.percentile(0.99),
            models=course.models(),
            course=course.course(),
            change_at=self._change_at,
            alarms=tuple(watch.alarms),
            arms=arms_of(self._uplift()),
            ranking=watch.followed,
        )

    def _uplift(self) -> dict[str, Any] | None:
        """Return the uplift of the lists, so far or in the end; None without a closed loop."""
        figures = self._sender.figures()
        return self._sender.progress() if figures is None else figures.get("uplift")

    def _summary(self, events: int, quality: RankMetrics) -> dict[str, Any]:
        watch, uplift = self.watch, self._uplift()
        change_at = float("inf") if self._change_at is None else self._change_at
        return {
            "events": events,
            "rankings": watch.rankings,
            "dead_letters": watch.dead_letters,
            "events_per_s": round(events / watch.learning_s, 1) if watch.learning_s > 0 else 0.0,
            "latency_p50_ms": watch.latency.percentile(0.5),
            "latency_p99_ms": watch.latency.percentile(0.99),
            "models": {
                name: {"hr@10": metrics["hr@10"], "ndcg@10": metrics["ndcg@10"]}
                for name, metrics in quality.cumulative().items()
            },
            "drift_alarms": [
                {
                    "signal": alarm.signal,
                    "at_event": alarm.at_event,
                    "delay_events": alarm.at_event - change_at if alarm.at_event > change_at else None,
                }
                for alarm in watch.alarms
            ],
            "uplift": uplift and {name: part for name, part in uplift.items() if name != "windows"},
            "seconds": round(self._clock.monotonic_s() - self._began_s, 1),
        }

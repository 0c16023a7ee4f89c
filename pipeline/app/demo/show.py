"""One showing of the demo: the sender starts when the pipeline is ready, and all ends when all is learned."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypedDict

from pipeline.app.demo.quality import QualityCourse
from pipeline.app.demo.text import ratio, uplift_lines
from pipeline.app.demo.uplift import arms_of, kept
from pipeline.app.demo.view import View
from pipeline.app.demo.watch import DemoWatch, Progress
from pipeline.app.interruption import ENDS, signals_to
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.events.records import DriftAlarm
from pipeline.outcome import Learner
from pipeline.service.observe import Observer
from pipeline.service.ports import Clock


class Sender(Protocol):
    """Who sends the events; `producers.child.SenderProcess` is one."""

    def start(self) -> None: ...
    def sent(self) -> int | None: ...
    def progress(self) -> dict[str, Any] | None: ...
    def figures(self) -> dict[str, Any] | None: ...
    def stop(self) -> None: ...


class Runner(Protocol):
    """The loop, as far as the demo drives it; `pipeline.service.loop.Loop` is one."""

    learner: Learner

    def run(self) -> None: ...
    def stop(self) -> None: ...


ModelSummary = TypedDict("ModelSummary", {"hr@10": float, "ndcg@10": float})


class AlarmSummary(TypedDict):
    """An alarm; `delay_events`: learned events since the planted change, None before it or without one."""

    signal: str
    at_event: int
    delay_events: int | None


class Summary(TypedDict):
    """The last line of stdout. Latencies are None when no record had a plausible time.

    `uplift` is what the sender told of its closed loop (`producers.simulator.uplift`), None without one.
    """

    events: int
    rankings: int
    dead_letters: int
    events_per_s: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    models: dict[str, ModelSummary]
    drift_alarms: list[AlarmSummary]
    uplift: dict[str, Any] | None
    seconds: float


class Demo:
    """Watches a loop, shows it, and ends it when everything that was sent is learned.

    `total` is the number of events to come, None when it isn't known; at event `change_at` the taste changes.
    """

    def __init__(
        self, view: View, clock: Clock, sender: Sender, total: int | None, change_at: int | None
    ) -> None:
        self._view, self._clock, self._sender = view, clock, sender
        self._total, self._change_at = total, change_at
        self._began_s = clock.monotonic_s()
        self._watch: DemoWatch | None = None
        self._runner: Runner | None = None
        self._course: QualityCourse | None = None

    def observe(self, inner: Observer) -> DemoWatch:
        """Return the observer that the loop is to be built with."""
        self._watch = DemoWatch(inner, self._clock, self._sender.start, self._look)
        return self._watch

    def play(self, runner: Runner, quality: RankMetrics) -> Summary:
        """Run the loop to the end, or to a first SIGINT or SIGTERM; return what came of it.

        Raises RuntimeError when `observe` was not called, KeyboardInterrupt on a second signal, and
        AfreshError as the loop does, or when the sender failed.
        """
        if self._watch is None:
            raise RuntimeError(
                "the loop doesn't report to this demo: build it with the observer of observe()"
            )
        self._runner, self._course = runner, QualityCourse(quality)
        with stopped_by_signals(runner):
            runner.run()
        self._sender.stop()
        self._view.show(self.progress(), self._clock.monotonic_s())
        self._view.close()
        return self._summary(self._watch, runner.learner, quality)

    def progress(self) -> Progress:
        """Return the state of things."""
        assert self._watch is not None
        assert self._course is not None
        watch = self._watch
        return Progress(
            events=watch.records,
            total=self._total,
            events_per_s=watch.speed(),
            lag=watch.lag,
            p50_ms=watch.latency.percentile(0.5),
            p99_ms=watch.latency.percentile(0.99),
            models=self._course.models(),
            course=self._course.course(),
            change_at=self._change_at,
            alarms=tuple(watch.alarms),
            arms=arms_of(self._uplift()),
            ranking=watch.followed,
        )

    def _look(self) -> None:
        """Show what there is to show, and stop the loop when the last event is in."""
        if self._runner is None or self._watch is None or self._course is None:
            return
        self._course.look(self._runner.learner.events_learned)
        now_s = self._clock.monotonic_s()
        if self._view.due(now_s) and self._watch.records:
            self._view.show(self.progress(), now_s)
        sent = self._sender.sent()
        if sent is not None and self._watch.records >= sent:
            self._runner.stop()

    def _uplift(self) -> dict[str, Any] | None:
        """Return what came of the shoppers' lists, so far or in the end; None without a closed loop."""
        figures = self._sender.figures()
        return self._sender.progress() if figures is None else figures.get("uplift")

    def _summary(self, watch: DemoWatch, learner: Learner, quality: RankMetrics) -> Summary:
        learning_s = watch.learning_s
        return {
            "events": learner.events_learned,
            "rankings": watch.rankings,
            "dead_letters": watch.dead_letters,
            "events_per_s": round(learner.events_learned / learning_s, 1) if learning_s > 0 else 0.0,
            "latency_p50_ms": watch.latency.percentile(0.5),
            "latency_p99_ms": watch.latency.percentile(0.99),
            "models": {
                name: {"hr@10": figures["hr@10"], "ndcg@10": figures["ndcg@10"]}
                for name, figures in quality.cumulative().items()
            },
            "drift_alarms": [self._alarm(alarm) for alarm in watch.alarms],
            "uplift": kept(self._uplift()),
            "seconds": round(self._clock.monotonic_s() - self._began_s, 1),
        }

    def _alarm(self, alarm: DriftAlarm) -> AlarmSummary:
        after = self._change_at is not None and alarm.at_event > self._change_at
        delay = alarm.at_event - self._change_at if after and self._change_at is not None else None
        return {"signal": alarm.signal, "at_event": alarm.at_event, "delay_events": delay}


@contextmanager
def stopped_by_signals(runner: Runner) -> Iterator[None]:
    """Stop the loop on a first SIGINT or SIGTERM; a second one raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in ENDS:
            signal.signal(one, signal.default_int_handler)
        runner.stop()

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    with signals_to(stop):
        yield


def closing_words(summary: Summary) -> list[str]:
    """Return the summary for a human, line by line."""
    lines = [
        f"{summary['events']:,} events learned and {summary['rankings']:,} rankings acknowledged "
        f"in {summary['seconds']:.0f} s, {summary['events_per_s']:,.0f} events/s"
    ]
    if summary["latency_p50_ms"] is not None:
        lines.append(
            "from the event's record to the acknowledged ranking: "
            f"p50 {summary['latency_p50_ms']:.0f} ms, p99 {summary['latency_p99_ms']:.0f} ms"
        )
    for name, model in summary["models"].items():
        lines.append(
            f"{name}: hit rate@10 {ratio(model['hr@10'])}, NDCG@10 {ratio(model['ndcg@10'])}, whole stream"
        )
    lines += uplift_lines(arms_of(summary["uplift"]))
    known = (summary["uplift"] or {}).get("lists_up_to_date")
    if known is not None:  # lists that come late are worth less
        slow = (
            "; this machine is too slow or too busy for the rate: try a lower --rate" if known < 0.5 else ""
        )
        lines.append(f"{known:.0%} of the recommended lists knew all that their shopper had done{slow}")
    if not summary["drift_alarms"]:
        lines.append("no drift alarm")
    for alarm in summary["drift_alarms"]:
        after = (
            "" if alarm["delay_events"] is None else f", {alarm['delay_events']:,} after the change of taste"
        )
        lines.append(f"drift alarm: {alarm['signal']} at event {alarm['at_event']:,}{after}")
    return lines

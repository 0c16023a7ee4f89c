"""How the demo shows itself: a live table on a terminal, a line every few seconds anywhere else."""

import sys
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.app.demo_watch import ModelLine, Progress
from pipeline.event.records import DriftAlarm, Ranking

REFRESH_S = 0.25  # of the table
LINE_S = 3.0  # between plain lines


def alarm_text(alarm: DriftAlarm, change_at: int | None) -> str:
    """Return one line about an alarm, and how long after the planted change it came.

    >>> alarm_text(DriftAlarm("adwin", "hit_rate", 30420, 0.374, 0.061, 0), 30000)
    'drift: hit_rate .374 -> .061 at event 30,420, 420 after the change of taste'
    """
    text = f"drift: {alarm.signal} {ratio(alarm.before)} -> {ratio(alarm.after)} at event {alarm.at_event:,}"
    if change_at is not None and alarm.at_event > change_at:
        text += f", {alarm.at_event - change_at:,} after the change of taste"
    return text


def ratio(value: float | None) -> str:
    """Return a share with three digits and no leading zero; "-" for None.

    >>> ratio(0.25), ratio(1.0), ratio(None)
    ('.250', '1.000', '-')
    """
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def counts(progress: Progress) -> str:
    """Return events, speed, lag and latency in one line."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    parts = [f"{progress.events:,}{of} events", f"{progress.events_per_s:,.0f}/s", f"lag {progress.lag:,}"]
    if progress.p50_ms is not None and progress.p99_ms is not None:
        parts.append(f"latency p50 {progress.p50_ms:.0f} ms, p99 {progress.p99_ms:.0f} ms")
    return " | ".join(parts)


def line(progress: Progress) -> str:
    """Return the whole progress in one line, without the user's list."""
    models = [f"{model.name} {ratio(model.hr)}/{ratio(model.ndcg)}" for model in progress.models]
    return " | ".join([counts(progress), "HR/NDCG@10: " + ", ".join(models)])


def screen(progress: Progress) -> RenderableType:
    """Return the live view."""
    parts: list[RenderableType] = [Text(counts(progress), style="bold"), _models(progress.models)]
    parts.extend(Text(alarm, style="bold red") for alarm in progress.alarms[-4:])
    if progress.ranking is not None:
        parts.append(_ranking(progress.ranking))
    return Group(*parts)


class View:
    """Shows progress on a stream, as often as suits it. A context manager: it gives the terminal back."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._shown_s = float("-inf")
        self._alarms = 0

    def __enter__(self) -> "View":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the live view; what it showed last stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def due(self, now_s: float) -> bool:
        """Say whether the last showing is long enough ago."""
        return now_s - self._shown_s >= (REFRESH_S if self._console.is_terminal else LINE_S)

    def show(self, progress: Progress, now_s: float) -> None:
        """Show progress; `now_s` is monotonic."""
        self._shown_s = now_s
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
                self._live.start()
            self._live.update(screen(progress), refresh=True)
            return
        for alarm in progress.alarms[self._alarms :]:
            self.say(alarm)
        self._alarms = len(progress.alarms)
        self.say(line(progress))


def _models(models: tuple[ModelLine, ...]) -> Table:
    table = Table("model", title="over the last 10,000 tests", title_justify="left", title_style="dim")
    table.add_column("hit rate@10", justify="right")
    table.add_column("NDCG@10", justify="right")
    for place, model in enumerate(models):
        table.add_row(model.name, ratio(model.hr), ratio(model.ndcg), style="bold green" if not place else "")
    return table


def _ranking(ranking: Ranking) -> Table:
    # Text, since ids come from a stream and may look like rich's markup
    table = Table(title=Text(f"ranking of {ranking.user_id}", style="dim"), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("item")
    table.add_column("score", justify="right")
    table.add_column("because of")
    for place, item in enumerate(ranking.items[:10], 1):
        table.add_row(str(place), Text(item.item_id), f"{item.score:.2f}", Text(", ".join(item.because)))
    return table

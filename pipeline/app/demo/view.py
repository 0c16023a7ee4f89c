"""How the demo shows itself: a live screen on a terminal, a line every few seconds anywhere else."""

import logging
import sys
from collections import deque
from time import perf_counter
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live

from pipeline.app.demo.screen import screen
from pipeline.app.demo.text import alarm_text, line
from pipeline.app.demo.watch import Progress
from pipeline.events.records import DriftAlarm

REFRESH_S = 0.25  # of the screen, at least
MOST_SHARE = 0.02  # of the time that the screen may take from the loop: a slow terminal is drawn less often
LINE_S = 3.0  # between plain lines
KEPT_LINES = 100  # of the log, while the screen is taken


class View:
    """Shows progress on a stream, as often as suits it. A context manager: it gives the terminal back.

    On a terminal it takes a screen of its own, so that nothing is torn when the window changes its size; the
    last picture and what was logged meanwhile come on the terminal's own screen at the end.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        self._console = Console(file=stream, highlight=False)
        # Asked of the stream: rich also takes a file for a terminal where FORCE_COLOR is set.
        drawable = self._console.encoding.startswith("utf") and not self._console.is_dumb_terminal
        self._draws = stream.isatty() and drawable
        self._live: Live | None = None
        self._log = _KeptLog()
        self._progress: Progress | None = None
        self._shown_s = float("-inf")
        self._pause_s = REFRESH_S if self._draws else LINE_S
        self._told: DriftAlarm | None = None

    def __enter__(self) -> "View":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the live view; what it showed last stays."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if self._progress is not None:
            width, height = self._console.size
            self._console.print(screen(self._progress, width, height), soft_wrap=True)
        for text in self._log.give_back():
            self.say(text)

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def due(self, now_s: float) -> bool:
        """Say whether the last showing is long enough ago."""
        return now_s - self._shown_s >= self._pause_s

    def show(self, progress: Progress, now_s: float) -> None:
        """Show progress; `now_s` is monotonic."""
        self._shown_s, self._progress = now_s, progress
        if self._draws:
            self._draw(progress)
            return
        for alarm in self._untold(progress.alarms):
            self.say(alarm_text(alarm, progress.change_at))
        self.say(line(progress))

    def _draw(self, progress: Progress) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._log.take()
            self._live.start()
        began_s = perf_counter()
        width, height = self._console.size
        self._live.update(screen(progress, width, height), refresh=True)
        self._pause_s = max(REFRESH_S, (perf_counter() - began_s) / MOST_SHARE)

    def _untold(self, alarms: tuple[DriftAlarm, ...]) -> tuple[DriftAlarm, ...]:
        """Return the alarms after the last one that was told."""
        start = alarms.index(self._told) + 1 if self._told in alarms else 0
        if alarms:
            self._told = alarms[-1]
        return alarms[start:]


class _KeptLog(logging.Handler):
    """Keeps the newest lines of the log while they would be lost on a screen that is drawn over."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._others: list[logging.Handler] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def take(self) -> None:
        """Stand in for the root logger's handlers."""
        root = logging.getLogger()
        self._others = root.handlers
        self.setFormatter(next((one.formatter for one in self._others if one.formatter), None))
        root.handlers = [self]

    def give_back(self) -> list[str]:
        """Let them log again; return what was kept."""
        logging.getLogger().handlers = self._others
        lines = list(self._lines)
        self._lines.clear()
        return lines

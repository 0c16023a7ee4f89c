"""The view of the demo: a live screen on a terminal, a line every few seconds anywhere else."""

import logging
from logging.handlers import BufferingHandler
from typing import TextIO

from rich.console import Console
from rich.live import Live

from pipeline.app.demo.progress import Progress, alarm_text, line
from pipeline.app.demo.screen import screen
from pipeline.events.records import DriftAlarm

REFRESH_S = 0.25  # of the screen
LINE_S = 3.0  # between plain lines
MAX_LOG_RECORDS = 10_000  # kept while the live screen would overwrite them; more are dropped


class View:
    """Shows progress on a stream. A context manager that restores the terminal.

    On a terminal it uses the alternate screen, which a resized window does not damage; at the end the last
    picture and what was logged meanwhile are printed on the normal screen.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        # the stream itself: for rich a file is a terminal too where FORCE_COLOR is set
        drawable = self._console.encoding.startswith("utf") and not self._console.is_dumb_terminal
        self._draws = stream.isatty() and drawable
        self._live: Live | None = None
        self._log, self._handlers = BufferingHandler(MAX_LOG_RECORDS), logging.getLogger().handlers
        self._progress: Progress | None = None
        self._shown_s = float("-inf")
        self._printed: DriftAlarm | None = None

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live view; the last picture stays."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if self._progress is not None:
            self._console.print(screen(self._progress, *self._console.size), soft_wrap=True)
        root = logging.getLogger()
        root.handlers = self._handlers
        for record in self._log.buffer:
            root.handle(record)

    def print(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def due(self, now_s: float) -> bool:
        """Return whether it is time to show progress again."""
        return now_s - self._shown_s >= (REFRESH_S if self._draws else LINE_S)

    def show(self, progress: Progress, now_s: float) -> None:
        """Show progress; `now_s` is monotonic."""
        self._shown_s, self._progress = now_s, progress
        if self._draws:
            self._draw(progress)
            return
        alarms = progress.alarms
        for alarm in alarms[alarms.index(self._printed) + 1 if self._printed in alarms else 0 :]:
            self.print(alarm_text(alarm, progress.change_at))
            self._printed = alarm
        self.print(line(progress))

    def _draw(self, progress: Progress) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console, screen=True, auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            logging.getLogger().handlers = [self._log]
            self._live.start()
        self._live.update(screen(progress, *self._console.size), refresh=True)

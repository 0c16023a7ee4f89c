"""Standard streams, signals and the progress bar of a command.

`afresh train ... | head -1` saves its checkpoint although stdout is closed: a failed write raises nothing,
and `main` turns it into an exit code at the end.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, cast

STDOUT, STDERR = 1, 2  # file descriptors
ENDS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]


class _Output(io.FileIO):
    """A file that accepts every write; after `failed` the data is discarded."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
        return len(data)


def guard_streams() -> None:
    """Replace stdout and stderr by streams that never raise, unless a caller has replaced them.

    A closed stream becomes one that discards: else the next file that is opened would get its number.
    """
    for number in range(STDERR + 1):
        try:
            os.fstat(number)
        except OSError:  # os.open returns the lowest free number: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.stdout, STDOUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.stderr, STDERR)


def stdout_error() -> OSError | None:
    """Return the error after which stdout discards; None while it accepts writes."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failed if isinstance(raw, _Output) else None


def _guarded(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that encodes as this one does, or as Python would have made it."""
    own = cast(io.TextIOWrapper | None, stream)
    if own is not None:
        own.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=own.encoding if own else "utf-8",
        errors=own.errors if own else "backslashreplace",
        line_buffering=own.line_buffering if own else False,
        write_through=own.write_through if own else False,
    )


@contextmanager
def signals_to(first: Handler, later: Handler | None = None) -> Iterator[None]:
    """Handle the first SIGINT or SIGTERM with `first`, and every later one with `later` (default: `first`).

    For the main thread. SIGINT is handled even where a shell started the job with SIGINT ignored.
    """
    handlers = [first]

    def handle(number: int, frame: FrameType | None) -> None:
        handler, handlers[0] = handlers[0], later or first
        handler(number, frame)

    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in ENDS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Return a function that reports whether a first signal came; a second one raises KeyboardInterrupt."""
    came: list[int] = []
    with signals_to(lambda number, frame: came.append(number), signal.default_int_handler):
        yield lambda: bool(came)


@contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """Show a bar on stderr, where that is a terminal.

    The function that it yields moves it: `move(share, events)`, with more text as third argument.
    """
    from rich.console import Console  # help needs no rich
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console, began_s = Console(stderr=True), time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=1.0)

        def move(share: float, events: int, more: str = "") -> None:
            rate = events / max(time.monotonic() - began_s, 1e-3)
            bar.update(task, completed=share, description=f"{events:,} events, {rate:,.0f}/s{more}")

        yield move

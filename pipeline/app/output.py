"""Standard streams that can't end a command: what they don't take is discarded, and the error is kept.

A command's work must not depend on its reader: `afresh train ... | head -1` saves its checkpoint, whatever
becomes of stdout. A failed write raises nothing; `main` turns it into an exit code at the end.
"""

import io
import os
import sys
from typing import Any, TextIO, cast

STDOUT, STDERR = 1, 2  # file descriptors


class _Output(io.FileIO):
    """A file that takes everything; `failed` is the error after which the rest was discarded."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
        return len(data)


def guard_streams() -> None:
    """Put streams that never raise in the place of stdout and stderr, unless a caller has replaced them.

    A stream that was closed before the process began becomes one that discards: else the next file that is
    opened would get its number, and what is printed with it.
    """
    for number in range(STDERR + 1):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # it gets the lowest free number: this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.stdout, STDOUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.stderr, STDERR)


def stdout_error() -> OSError | None:
    """Return the error after which stdout took nothing more; None while it takes what is written."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failed if isinstance(raw, _Output) else None


def _guarded(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that writes as this one does, or as Python would have made it."""
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

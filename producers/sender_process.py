"""A process that sends events and ends when its parent does, even when the parent is killed."""

import os
import signal
import subprocess
import tempfile
from typing import Any, BinaryIO

import msgspec

from pipeline.errors import AfreshError

STOP_WAIT_S = 3.0
TAIL_BYTES = 65_536  # of the output that are read
EXIT_CODES = (2, 3, 4)  # of errors that explain themselves: the parent ends with the same code


class SenderProcess:
    """A command that sends events and prints a JSON line with their number, `sent`, when all are sent.

    The command must end when its standard input is closed. A context manager: leaving it ends the process.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        # Files, since a full pipe without a reader would block the process.
        self._out: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._err: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> "SenderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._out.close()
        self._err.close()

    def start(self) -> None:
        """Start the command with the default configuration, in a session of its own: Ctrl-C on the terminal
        goes to the parent."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AFRESH_")}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=self._out, stderr=self._err, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def sent(self) -> int | None:
        """Return how many events were sent; None until all are. Raise `AfreshError` when the command
        failed."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        figures = self.figures()
        if figures is not None:
            return int(figures["sent"])
        last_line = (_tail(self._err).strip().splitlines() or [b"no message"])[-1].decode(errors="replace")
        error = AfreshError(f"the process that sends the events ended with code {code}: {last_line}")
        error.exit_code = code if code in EXIT_CODES else error.exit_code
        raise error

    def figures(self) -> dict[str, Any] | None:
        """Return the JSON of the last line of stdout; None until the command has succeeded."""
        if self._process is None or self._process.poll() != 0:
            return None
        lines = _tail(self._out).splitlines()
        return msgspec.json.decode(lines[-1], type=dict[str, Any]) if lines else None

    def progress(self) -> dict[str, Any] | None:
        """Return the content of the newest line {"progress": ...} so far, without waiting; None: no line."""
        for line in reversed(_tail(self._out).splitlines(keepends=True)):
            if line.startswith(b'{"progress"') and line.endswith(b"\n"):
                return msgspec.json.decode(line, type=dict[str, dict[str, Any]])["progress"]
        return None

    def stop(self) -> None:
        """End the process: close its input, then kill it. May be called twice."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tail(file: BinaryIO) -> bytes:
    """Return the end of a file, from where the process writes without moving that position."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))

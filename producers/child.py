"""A sender in a process of its own, which ends when its parent does, however that dies."""

import json
import os
import signal
import subprocess
import tempfile
from types import TracebackType
from typing import Any, BinaryIO

from pipeline.errors import AfreshError

STOP_WAIT_S = 3.0
TAIL_BYTES = 65_536  # of its output that hold a line of progress, the last line of figures behind it
EXIT_CODES = (2, 3, 4)  # of errors that say themselves what is wrong: a parent ends with the same


class SenderProcess:
    """A command that sends events and prints a JSON line with their number, `sent`, when all are in.

    It must end when its standard input does: nobody else could stop it once this process is killed. A context
    manager: leaving it ends the process.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._figures: dict[str, Any] | None = None
        # Files, since a pipe that nobody reads stops the writer when it is full.
        self._out: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._err: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> "SenderProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._out.close()
        self._err.close()

    def start(self) -> None:
        """Start it, in a session of its own: a Ctrl-C on the terminal is for the parent to answer."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=self._out, stderr=self._err, start_new_session=True
        )

    @property
    def pid(self) -> int | None:
        """Id of the process and its group; None before the start."""
        return None if self._process is None else self._process.pid

    def sent(self) -> int | None:
        """Return how many events were sent, None before all are. Raise `AfreshError` when it ended badly."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        figures = self.figures()
        if figures is not None:
            return int(figures["sent"])
        said = _text(self._err).strip().splitlines() or ["it said nothing"]
        error = AfreshError(f"the process that sends the events ended with code {code}: {said[-1]}")
        error.exit_code = code if code in EXIT_CODES else error.exit_code
        raise error

    def figures(self) -> dict[str, Any] | None:
        """Return the JSON of its last line, once it has ended well; None otherwise."""
        if self._figures is None and self._process is not None and self._process.poll() == 0:
            lines = _text(self._out).splitlines()
            self._figures = json.loads(lines[-1]) if lines else None
        return self._figures

    def progress(self) -> dict[str, Any] | None:
        """Return the newest {"progress": ...} that it printed, without waiting; None before the first one."""
        # The file's position is shared with the process: moving it would move where that writes.
        size = os.fstat(self._out.fileno()).st_size
        tail = os.pread(self._out.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        for line in reversed(tail.splitlines(keepends=True)):
            if line.startswith(b'{"progress"') and line.endswith(b"\n"):
                progress: dict[str, Any] = json.loads(line)["progress"]
                return progress
        return None

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of the process. Raise `subprocess.TimeoutExpired` when it takes longer."""
        if self._process is not None:
            self._process.wait(timeout_s)

    def stop(self) -> None:
        """End the process, if it runs: first by closing its input, then by force. Twice does nothing."""
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


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")

"""The embedded broker for development, demo and tests: noida-db as a child process, on loopback only.

It keeps its data in memory and writes changes to disk. Not for production: nothing is claimed about the loss
of its disk or process.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.errors import UsageError

READY_WAIT_S = 15.0
STOP_WAIT_S = 5.0
LOOPBACK = "127.0.0.1"
# The broker and a watcher of a pipe to this process, in one process group: when this process dies, even by
# SIGKILL, the pipe closes, the watcher ends the broker, and the shell removes the folder.
GUARD = """
scratch=$1; shift
exec 3<&0
"$@" 3<&- </dev/null &
broker=$!
(read -r _ <&3; : >"$scratch/orphaned"; kill "$broker") 2>/dev/null &
watcher=$!
trap 'kill "$broker"' TERM
while kill -0 "$broker" 2>/dev/null; do wait "$broker"; done
kill "$watcher" 2>/dev/null
wait
[ -e "$scratch/orphaned" ] && rm -rf "$scratch"
"""


class EmbeddedBroker:
    """A broker that ends with this process at the latest.

    `port` 0 takes a free one; without `data` it gets a temporary folder that `stop` removes. A context
    manager, or call `start` and `stop`. `bootstrap_servers` is the address.
    """

    def __init__(self, port: int = 0, data: Path | None = None) -> None:
        self._wanted_port = port
        self._data = data
        self._scratch: Path | None = None
        self._log: BinaryIO | None = None  # unnamed: the guard of a failed launch can't remove it
        self._process: subprocess.Popen[bytes] | None = None
        self.bootstrap_servers = ""

    def start(self) -> "EmbeddedBroker":
        """Start the broker and return when it answers. Raise `UsageError` when it can't be started."""
        binary = _binary()
        if self._wanted_port and _listening(self._wanted_port):
            raise UsageError(f"--port {self._wanted_port}: the port is in use; choose another one")
        if self._data is not None and self._data.exists() and not self._data.is_dir():
            raise UsageError(
                f"--data {self._data}: not a folder; expected a folder, or a path where one can be made"
            )
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
            port = self._find_port(binary)
        except OSError as error:
            self.stop()
            raise UsageError(f"the embedded broker can't be started: {error}") from error
        except BaseException:
            self.stop()
            raise
        self.bootstrap_servers = f"{LOOPBACK}:{port}"
        return self

    def stop(self) -> None:
        """End the broker's process group and remove the temporary folder. May be called twice."""
        self._end()
        if self._log is not None:
            self._log.close()
            self._log = None

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process group. Raises `RuntimeError` when it doesn't run."""
        if self._process is None:
            raise RuntimeError("the broker isn't running; call start()")
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end of the process; return its exit code."""
        return 0 if self._process is None else self._process.wait()

    def __enter__(self) -> "EmbeddedBroker":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _find_port(self, binary: Path) -> int:
        """Launch the broker and return its port; try again when another process has taken a free port."""
        for _ in range(1 if self._wanted_port else 3):
            port = self._wanted_port or _free_port()
            self._launch(binary, port)
            if self._ready(port):
                return port
            stuck = self.alive()
            self._end()
            if stuck:
                break
        raise UsageError(
            f"the embedded broker did not become ready on port {port}: {self._last_line() or 'no message'}"
        )

    def _launch(self, binary: Path, port: int) -> None:
        # a folder for each launch: the guard of the previous one may still be removing its own
        self._scratch = Path(tempfile.mkdtemp(prefix="afresh-broker-"))
        data = self._data or self._scratch / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = [str(binary), "start", "--only", "kafka", "--host", LOOPBACK]
        command += ["--kafka-port", str(port), "--data-dir", str(data)]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "sh", str(self._scratch), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _ready(self, port: int) -> bool:
        """Wait until a metadata request is answered."""
        until = time.monotonic() + READY_WAIT_S
        while time.monotonic() < until and self.alive():
            if not _listening(port):
                time.sleep(0.02)
                continue
            with contextlib.suppress(KafkaError):
                admin = KafkaAdminClient(bootstrap_servers=f"{LOOPBACK}:{port}", bootstrap_timeout_ms=2_000)
                admin.close()
                return self.alive()
        return False

    def _last_line(self) -> str:
        """Return the last line of the broker's output."""
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _end(self) -> None:
        """End the launched process and remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            _end_group(process)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    _signal_group(process.pid, signal.SIGKILL)  # the rest of the group
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _binary() -> Path:
    try:
        path = Path(str(files("noida_db"))) / "noida-db"
    except ModuleNotFoundError:
        raise UsageError(
            "the embedded broker is not installed: pip install 'afresh[broker]', or name a Kafka broker"
        ) from None
    if not os.access(path, os.X_OK):
        path.chmod(0o755)  # some wheel installers drop the bit
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)

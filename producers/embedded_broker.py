"""The embedded broker for development, demo and tests: noida-db as a child process, on loopback only.

It keeps its data in memory and writes changes to disk. Not for production: nothing is claimed about the loss
of its disk or process.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.errors import UsageError

READY_WAIT_S = 15.0
STOP_WAIT_S = 5.0
ATTEMPTS = 3  # another process may take the port that was found free
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
        self._port, self._data = port, data
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()
        self.bootstrap_servers = ""

    def start(self) -> "EmbeddedBroker":
        """Start the broker and return when it answers. Raise `UsageError` when it can't be started."""
        binary, data = _binary(), self._data
        if self._port and _listening(self._port):
            raise UsageError(f"--port {self._port}: the port is in use; choose another one")
        if data is not None and data.exists() and not data.is_dir():
            raise UsageError(f"--data {data}: not a folder; expected one, or a path where one can be made")
        try:
            for _ in range(1 if self._port else ATTEMPTS):
                port = self._port or _free_port()
                with contextlib.ExitStack() as resources:
                    process, log = _launch(binary, port, data, resources)
                    if _ready(process, port):
                        self._process, self._resources = process, resources.pop_all()
                        self.bootstrap_servers = f"{LOOPBACK}:{port}"
                        return self
                    problem = _last_line(log)
                    if process.poll() is None:  # the port is not the problem
                        break
        except OSError as error:
            raise UsageError(f"the embedded broker can't be started: {error}") from error
        raise UsageError(f"the embedded broker did not become ready on port {port}: {problem}")

    def stop(self) -> None:
        """End the broker's process group and remove the temporary folder. May be called twice."""
        self._process = None
        self._resources.close()

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process group. Raises `RuntimeError` when it doesn't run."""
        if self._process is None:
            raise RuntimeError("the broker isn't running; call start()")
        return self._process.pid

    def __enter__(self) -> "EmbeddedBroker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _launch(
    binary: Path, port: int, data: Path | None, resources: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """Start the broker; return its process and its output. `resources` end it and remove its folder."""
    # a folder for each launch: the guard of the previous one may still be removing its own
    scratch = resources.enter_context(
        tempfile.TemporaryDirectory(prefix="afresh-broker-", ignore_cleanup_errors=True)
    )
    log = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # unnamed: the guard can't remove it
    data = data or Path(scratch) / "data"
    data.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "start", "--only", "kafka", "--host", LOOPBACK]
    command += ["--kafka-port", str(port), "--data-dir", str(data)]
    process = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "sh", scratch, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    resources.callback(_end_group, process)
    return process, log


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a metadata request is answered; return whether the process still runs then."""
    until = time.monotonic() + READY_WAIT_S
    while time.monotonic() < until and process.poll() is None:
        if not _listening(port):
            time.sleep(0.02)
            continue
        with contextlib.suppress(KafkaError):
            KafkaAdminClient(bootstrap_servers=f"{LOOPBACK}:{port}", bootstrap_timeout_ms=2_000).close()
            return process.poll() is None
    return False


def _last_line(log: BinaryIO) -> str:
    log.seek(0)
    return (log.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_WAIT_S)
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

"""Commands as processes, started, observed and stopped as a user does it: by /metrics, log and signals."""

import contextlib
import functools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self, TypeVar

from contracts.toy_model import TOY

from pipeline.app import cli
from pipeline.models.registry import MODELS

WAIT_S = 60.0  # deadline of a wait on a busy machine
POLL_S = 0.05  # between two evaluations of a condition
STOP_S = 10.0  # the service promises to stop in less

Answer = TypeVar("Answer")


def until(met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
    """Evaluate `met` until its result is true, and return it. Raise AssertionError at the deadline."""
    deadline = time.monotonic() + wait_s
    while not (answer := met()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {wait_s:g} s: {what}")
        time.sleep(POLL_S)
    return answer


@functools.cache
def fork_server() -> ForkServerContext:
    """Start the process that commands are forked from, once; the tests' folder is on its path."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.preloaded", "harness.process"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    ensure_running()
    os.environ["PYTHONPATH"] = before
    return context


def run_forked(args: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    """Run a command in a fork as a shell would start it: its own session, environment, stdout and stderr."""
    os.setsid()
    for descriptor, path in enumerate((Path(os.devnull), out, err)):
        os.dup2(os.open(path, os.O_RDWR), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    MODELS["toy"] = TOY  # as a file of a newcomer's would be
    sys.exit(cli.main(args))


class Process:
    """`afresh COMMAND` in a process group of its own, its output in files; `log` is the file of stderr.

    `program` "-m" starts a new interpreter; a file is run with the module and the arguments. Otherwise, where
    `forks` is set, the command runs in a fork of a process with all code: four CPU seconds less.
    """

    forks = False

    def __init__(self, *args: str, folder: Path, name: str, program: str = "") -> None:
        self.log, self._out, self._address = folder / f"{name}.log", folder / f"{name}.out", ""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AFRESH_")}
        self._process: subprocess.Popen[bytes] | BaseProcess
        with self.log.open("wb") as err, self._out.open("wb") as out:
            if self.forks and not program:
                self._process = fork_server().Process(
                    target=run_forked, args=(args, environment, self._out, self.log), daemon=True
                )
                self._process.start()
            else:
                self._process = subprocess.Popen(
                    [sys.executable, program or "-m", "pipeline.app.cli", *args],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True,
                )  # fmt: skip
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        print(f"the end of {self.log.name}:\n{self.said()[-2_000:]}", file=sys.stderr)  # with a failed test

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def said(self) -> str:
        """Return what it has written to stderr."""
        return self.log.read_text("utf-8", "replace")

    def printed(self) -> str:
        """Return what it has written to stdout."""
        return self._out.read_text("utf-8", "replace")

    def tell(self, number: int) -> None:
        """Send a signal to the process, as a supervisor does."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the whole process group with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:  # a fork that does not lead its group yet
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, wait_s: float = WAIT_S) -> int:
        until(lambda: self.code is not None, f"the end of the process; {self.log.name}", wait_s)
        assert self.code is not None
        return self.code

    def end(self, number: int = signal.SIGTERM) -> float:
        """Stop the process by a signal; return the seconds. Raise AssertionError unless it exits with 0."""
        began = time.monotonic()
        self.tell(number)
        code = self.wait(2 * STOP_S)
        assert code == 0, f"exit code {code}; stderr ends:\n{self.said()[-2_000:]}"
        return time.monotonic() - began

    def until(self, met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
        """Wait as the function `until` does. Raise AssertionError at once when the process ends."""

        def checked() -> Answer:
            if self.code is not None:
                end = self.said()[-2_000:]
                raise AssertionError(f"exit code {self.code} before {what}; stderr ends:\n{end}")
            return met()

        return until(checked, what, wait_s)

    def wait_said(self, text: str) -> None:
        self.until(lambda: text in self.said(), f"{text!r} on stderr")

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of an HTTP path; (0, "") while the process does not listen."""
        if not self._address:
            found = re.search(r"serving /metrics, /live and /ready on (\S+)", self.said())
            if found is None:
                return 0, ""
            self._address = found[1]
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:  # the process has stopped listening
            return 0, ""

    def state(self) -> str:
        """Return the state of /ready; "" while the process does not listen."""
        status, body = self.ask("/ready")
        state: str = json.loads(body)["state"] if status else ""
        assert status in (0, 200 if state == "ready" else 503), f"/ready is {status} when {state}"
        return state

    def wait_state(self, state: str) -> None:
        self.until(lambda: self.state() == state, state)

    def metrics(self) -> dict[str, float]:
        """Return every series of /metrics by its name with labels; empty while it does not listen."""
        series = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return {name: float(value) for name, value in series}

    def held(self) -> int:
        return int(self.metrics().get("afresh_partitions_assigned", 0))

    def learned(self) -> int:
        """Return the number of learned events; 0 while it does not listen."""
        return int(self.metrics().get("afresh_events_learned", 0))

    def wait_learned(self, events: int, wait_s: float = WAIT_S) -> None:
        self.until(lambda: self.learned() >= events, f"{events} events learned", wait_s)

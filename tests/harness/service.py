"""The service under test: commands as processes, started, observed and stopped as a user does it.

Nothing here looks inside the service: it is observed through the broker, /metrics and its log, and ended by
signals. Every wait polls a condition until a deadline.
"""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from contracts.toy_model import TOY
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import MemberToRemove
from kafka.consumer.fetcher import ConsumerRecord

from harness.clients import QUICK, lying_on
from pipeline.app import cli
from pipeline.app.config import load_settings
from pipeline.app.inspection import Opened, describe, open_newest
from pipeline.models.registry import MODELS
from pipeline.persistence.journal import Journal
from pipeline.settings import Settings
from producers.kafka.client import producer_options
from producers.kafka.records import key_hash
from producers.kafka.topics import create_topics

WAIT_S = 60.0  # deadline of a wait on a busy machine
POLL_S = 0.05  # between two evaluations of a condition
STOP_S = 10.0  # the service promises to stop in less

Answer = TypeVar("Answer")


def until(met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
    """Evaluate `met` until its result is true, and return it. Raise AssertionError that names `what` at the
    deadline."""
    deadline = time.monotonic() + wait_s
    while not (answer := met()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {wait_s:g} s: {what}")
        time.sleep(POLL_S)
    return answer


class Sent(NamedTuple):
    """A record to send; the value None is a tombstone."""

    key: bytes
    value: bytes | None


@functools.cache
def fork_server() -> ForkServerContext:
    """Start the process that commands are forked from, once; the tests' folder is on its path."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.preloaded", "harness.service"])
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

    `program` "-m" starts a new interpreter, a file is run with the module and the arguments. Otherwise, where
    `forks` is set, the command runs in a fork of a process that has loaded all code: four CPU seconds less.
    As a context manager it kills the process at the end.
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
        """Stop the process by a signal; return the seconds that it took. Raise AssertionError unless the
        exit code is 0."""
        began = time.monotonic()
        self.tell(number)
        code = self.wait(2 * STOP_S)
        assert code == 0, f"exit code {code}; stderr ends:\n{self.said()[-2_000:]}"
        return time.monotonic() - began

    def until(self, met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
        """Wait as the function `until` does. Raise AssertionError at once when the process ends."""

        def checked() -> Answer:
            if self.code is not None:
                raise AssertionError(
                    f"exit code {self.code} before {what}; stderr ends:\n{self.said()[-2_000:]}"
                )
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


@dataclass
class Site:
    """Broker, topics, consumer group and folder of one test. As a context manager it kills its processes.

    `settings` are further keys of every worker: {"batch.max_events": 128}.
    """

    broker: str
    stem: str
    folder: Path
    partitions: int = 4
    settings: Mapping[str, object] = field(default_factory=dict)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _started: int = 0

    def __post_init__(self) -> None:
        self.events, self.group = f"{self.stem}-events", f"{self.stem}-group"
        self.state = self.folder / "state"  # checkpoints, shards and journals

    def sets(self, worker: str = "worker-0") -> list[str]:
        """Return a worker's configuration as texts for `--set`."""
        topics = ("items", "recommendations", "dead_letters", "drift")
        values: dict[str, object] = {
            "kafka.bootstrap_servers": self.broker,
            "kafka.group_id": self.group,
            "kafka.worker_id": worker,
            **{f"kafka.options.{key}": value for key, value in QUICK.items()},
            "topics.events": [self.events],
            **{f"topics.{name}": f"{self.stem}-{name}" for name in topics},
            "checkpoint.path": str(self.state),
            "metrics.address": "127.0.0.1:0",
            **self.settings,
        }
        return [f"{key}={value}" for key, value in values.items()]

    def options(self, worker: str = "worker-0") -> list[str]:
        """Return a worker's configuration as arguments of any command."""
        return [word for text in self.sets(worker) for word in ("--set", text)]

    def configured(self, worker: str = "worker-0") -> Settings:
        return load_settings(None, self.sets(worker), {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def create_topics(self) -> None:
        settings = self.configured()
        create_topics(settings.kafka, settings.topics, self.partitions, 1)

    def start(self, command: str, *args: str, worker: str = "worker-0", program: str = "") -> Process:
        """Start a command with this site's configuration; `args` may set other values."""
        self._started += 1
        name = f"{self._started:02d}-{command}-{worker}"
        process = Process(
            command, *self.options(worker), *args, folder=self.folder, name=name, program=program
        )
        return self._open.enter_context(process)

    def run(self, worker: str = "worker-0") -> Process:
        return self.start("run", worker=worker)

    def call(self, command: str, *args: str, wait_s: float = WAIT_S) -> str:
        """Run a command to its end; return its stdout. Raise AssertionError unless the exit code is 0."""
        with self.start(command, *args) as process:
            code = process.wait(wait_s)
            assert code == 0, f"{command}: exit code {code}; stderr:\n{process.said()}"
            return process.printed()

    def opened(self, worker: str = "worker-0") -> Opened:
        """Restore a worker's newest checkpoint, as `afresh inspect` does."""
        return open_newest(str(self.state), self.configured(worker))

    def inspect(self) -> dict[str, Any]:
        """Return the document of `afresh inspect --json` for the newest checkpoint."""
        report: dict[str, Any] = json.loads(json.dumps(describe(self.opened(), None, None)))
        return report

    def keep_first_segment(self, worker: str = "worker-0") -> None:
        """Create a worker's journal, and keep its first segment under a second name.

        With a `checkpoint.keep` that no test reaches, the service deletes this segment alone, after its
        first checkpoint.
        """
        journal = Journal(self.state / worker)
        journal.open(0)
        journal.close()
        self.whole_journal(worker)

    def whole_journal(self, worker: str = "worker-0") -> Path:
        """Return a folder with every segment that a worker has written."""
        kept = self.folder / "kept" / worker
        kept.mkdir(parents=True, exist_ok=True)
        for segment in Journal(self.state / worker).segments():
            if not (kept / segment.name).exists():
                os.link(segment, kept / segment.name)
        return kept

    def send(self, records: Iterable[Sent], places: list[tuple[int, int]] | None = None) -> int:
        """Send records as `replay` does, with the current time; return how many.

        `places` receives the partition and offset of each.
        """
        producer = KafkaProducer(**producer_options(self.configured().kafka))
        futures = [
            producer.send(
                self.events, key=record.key, value=record.value,
                partition=key_hash(record.key) % self.partitions,
            )
            for record in records
        ]  # fmt: skip
        for future in futures:
            metadata = future.get(timeout=WAIT_S)
            if places is not None:
                places.append((metadata.partition, metadata.offset))
        producer.close()
        return len(futures)

    def read(self, topic: str) -> list[ConsumerRecord]:
        return lying_on(self.broker, topic)

    def newest(self) -> dict[str, dict[str, Any]]:
        """Return every user's newest ranking, the default list included."""
        records = self.read(f"{self.stem}-recommendations")
        return {record.key.decode(): json.loads(record.value) for record in records}

    @functools.cached_property
    def _onlooker(self) -> KafkaConsumer:
        """A consumer that queries the group's offsets and does not join the group."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker, group_id=self.group, enable_auto_commit=False)
        self._open.callback(consumer.close, autocommit=False)
        return consumer

    def partitions_there(self) -> int:
        return len(self._onlooker.partitions_for_topic(self.events))

    def _event_partitions(self) -> list[KafkaPartition]:
        return [KafkaPartition(self.events, number) for number in range(self.partitions)]

    def commits(self) -> dict[int, int]:
        """Return the group's committed offset of each partition of the events topic; 0: none."""
        return {each.partition: self._onlooker.committed(each) or 0 for each in self._event_partitions()}

    def ends(self) -> dict[int, int]:
        """Return the end offset of every partition of the events topic."""
        ends = self._onlooker.end_offsets(self._event_partitions())
        return {each.partition: end for each, end in ends.items()}

    def all_committed(self) -> bool:
        return self.commits() == self.ends()

    def remove_member(self, worker: str) -> None:
        """Remove a dead worker from the group, as an operator can."""
        admin = KafkaAdminClient(bootstrap_servers=self.broker)
        admin.remove_group_members(self.group, [MemberToRemove(group_instance_id=worker)])
        admin.close()

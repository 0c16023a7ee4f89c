"""The service from outside, for tests and benchmarks: commands as processes, topics by plain clients.

Nothing here looks into the service: it is started as a user starts it, watched through the broker, /metrics
and its log, and ended by signals. Every wait asks for a condition until a deadline.
"""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from brokers.clients import QUICK
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import MemberToRemove
from kafka.consumer.fetcher import ConsumerRecord

from pipeline.app.config import load_settings
from pipeline.app.inspection import open_newest
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from producers.kafka.client import producer_options
from producers.kafka.records import key_hash
from producers.kafka.topics import create_topics

WAIT_S = 60.0  # for anything that a busy machine may take its time with
LOOK_S = 0.1  # between two looks at what is waited for
STOP_S = 10.0  # the service promises to end in less
STATES = ("starting", "resuming", "rebalancing", "ready", "stopping")

Answer = TypeVar("Answer")


def until(met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
    """Ask until the answer is true, and return it. Raise AssertionError that names `what` at the deadline."""
    deadline = time.monotonic() + wait_s
    while not (answer := met()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {wait_s:g} s: {what}")
        time.sleep(LOOK_S)
    return answer


class Sent(NamedTuple):
    """A record to send: the value None is a tombstone."""

    key: bytes
    value: bytes | None


class Process:
    """`afresh COMMAND` in a process group of its own, its output in files; `log` is the file of stderr.

    `program`: a file that is run with the module and the arguments instead. A context manager: it leaves no
    process behind.
    """

    def __init__(self, *args: str, folder: Path, name: str, program: str = "-m") -> None:
        self.log = folder / f"{name}.log"
        self._out = folder / f"{name}.out"
        self._address = ""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AFRESH_")}
        with self.log.open("wb") as err, self._out.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, program, "pipeline.app.cli", *args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"the end of {self.log.name}:\n{self._end()}")

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """What it has written to stderr."""
        return self.log.read_text("utf-8", "replace")

    def printed(self) -> str:
        """What it has written to stdout."""
        return self._out.read_text("utf-8", "replace")

    def tell(self, number: int) -> None:
        """Send a signal to the process, as a supervisor does."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the whole process group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, wait_s: float = WAIT_S) -> int:
        """Return the exit code. Raise AssertionError when it takes longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(wait_s)
        raise AssertionError(f"still running after {wait_s:g} s; it said:\n{self._end()}")

    def end(self, number: int = signal.SIGTERM) -> float:
        """Ask it to end; return the seconds that it took. Raise AssertionError unless the exit code is 0."""
        began = time.monotonic()
        self.tell(number)
        code = self.wait(2 * STOP_S)
        assert code == 0, f"exit code {code}; it said:\n{self._end()}"
        return time.monotonic() - began

    def until(self, met: Callable[[], Answer], what: str, wait_s: float = WAIT_S) -> Answer:
        """As the function `until`, but a process that ends meanwhile is an AssertionError at once."""

        def asked() -> Answer:
            if self.code is not None:
                raise AssertionError(f"ended with {self.code} before {what}; it said:\n{self._end()}")
            return met()

        return until(asked, what, wait_s)

    def _end(self) -> str:
        return self.said()[-2_000:]

    def wait_said(self, text: str) -> None:
        """Wait for text on stderr."""
        self.until(lambda: text in self.said(), f"{text!r} on stderr")

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of an HTTP path; (0, "") while it doesn't listen."""
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
        except OSError:  # not any more, or not in the middle of an answer
            return 0, ""

    def state(self) -> str:
        """Return what /ready says; "" while it doesn't listen."""
        status, body = self.ask("/ready")
        state: str = json.loads(body)["state"] if status else ""
        assert status in (0, 200 if state == "ready" else 503), f"/ready is {status} when {state}"
        return state

    def wait_state(self, state: str) -> None:
        """Wait until /ready tells a state."""
        self.until(lambda: self.state() == state, state)

    def metrics(self) -> dict[str, float]:
        """Return every series of /metrics by its name with labels; empty while it doesn't listen."""
        series = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return {name: float(value) for name, value in series}

    def held(self) -> int:
        """Return how many partitions it owns."""
        return int(self.metrics().get("afresh_partitions_assigned", 0))

    def learned(self) -> int:
        """Return how many events it has learned; 0 while it doesn't listen."""
        return int(self.metrics().get("afresh_events_learned", 0))

    def wait_learned(self, events: int, wait_s: float = WAIT_S) -> None:
        """Wait until so many events are learned, restored ones included."""
        self.until(lambda: self.learned() >= events, f"{events} events learned", wait_s)


@dataclass
class Site:
    """A broker, the topics and the group of one test, and a folder. A context manager.

    `settings` are further keys for every worker: {"batch.max_events": 128}.
    """

    broker: str
    stem: str
    folder: Path
    partitions: int = 4
    settings: Mapping[str, object] = field(default_factory=dict)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _started: int = 0

    @property
    def events(self) -> str:
        """Name of the events topic."""
        return f"{self.stem}-events"

    @property
    def state(self) -> Path:
        """The folder of checkpoints, shards and journals."""
        return self.folder / "state"

    def sets(self, worker: str = "worker-0") -> list[str]:
        """Return a worker's configuration as texts for `--set`."""
        values: dict[str, object] = {
            "kafka.bootstrap_servers": self.broker,
            "kafka.group_id": f"{self.stem}-group",
            "kafka.worker_id": worker,
            **{f"kafka.options.{key}": value for key, value in QUICK.items()},
            "topics.events": [self.events],
            **{
                f"topics.{name}": f"{self.stem}-{name}"
                for name in ("items", "recommendations", "dead_letters", "drift")
            },
            "checkpoint.path": str(self.state),
            "metrics.address": "127.0.0.1:0",
            **self.settings,
        }
        return [f"{key}={value}" for key, value in values.items()]

    def options(self, worker: str = "worker-0") -> list[str]:
        """Return a worker's configuration as arguments of any command."""
        return [word for text in self.sets(worker) for word in ("--set", text)]

    def configured(self, worker: str = "worker-0") -> Settings:
        """Return a worker's settings."""
        return load_settings(None, self.sets(worker), {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def create_topics(self) -> None:
        """Create the topics."""
        settings = self.configured()
        create_topics(settings.kafka, settings.topics, self.partitions, 1)

    def start(self, command: str, *args: str, worker: str = "worker-0", program: str = "-m") -> Process:
        """Start a command with this site's configuration; it is killed with the site at the latest."""
        self._started += 1
        name = f"{self._started:02d}-{command}-{worker}"
        arguments = (command, *args, *self.options(worker))
        process = Process(*arguments, folder=self.folder, name=name, program=program)
        return self._open.enter_context(process)

    def run(self, worker: str = "worker-0") -> Process:
        """Start a worker."""
        return self.start("run", worker=worker)

    def call(self, command: str, *args: str, wait_s: float = WAIT_S) -> str:
        """Run a command to its end; return what it printed. Raise AssertionError unless its code is 0."""
        with self.start(command, *args) as process:
            code = process.wait(wait_s)
            assert code == 0, f"{command}: exit code {code}; it said:\n{process.said()}"
            return process.printed()

    def inspect(self) -> dict[str, Any]:
        """Return what `afresh inspect --json` tells of the newest checkpoint."""
        report: dict[str, Any] = json.loads(self.call("inspect", "--json").splitlines()[-1])
        return report

    def newest_state(self, worker: str = "worker-0") -> Recommender:
        """Return the learner of a worker's newest checkpoint, as `afresh inspect` opens it."""
        return open_newest(str(self.state), self.configured(worker)).learner

    def keep_first_segment(self, worker: str = "worker-0") -> None:
        """Begin a worker's journal, and hold on to its first segment.

        With a `checkpoint.keep` that no test reaches, the service deletes this one alone, after its first
        checkpoint. A second name keeps it.
        """
        journal = Journal(self.state / worker)
        journal.open(0)
        journal.close()
        (segment,) = journal.segments()
        kept = self.kept(worker)
        kept.mkdir(parents=True)
        os.link(segment, kept / segment.name)

    def kept(self, worker: str = "worker-0") -> Path:
        """Where a worker's segments are kept."""
        return self.folder / "kept" / worker

    def whole_journal(self, worker: str = "worker-0") -> Path:
        """Return a folder with every segment that a worker has ever written."""
        kept = self.kept(worker)
        for segment in Journal(self.state / worker).segments():
            if not (kept / segment.name).exists():
                os.link(segment, kept / segment.name)
        return kept

    def send(self, records: Iterable[Sent], places: list[tuple[int, int]] | None = None) -> int:
        """Send records as `replay` does, stamped when they are sent; return how many.

        `places` gets the partition and offset of each.
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

    def read(self, topic: str) -> Iterator[ConsumerRecord]:
        """Yield every record that a topic holds now, partition by partition, read by a plain consumer."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker, isolation_level="read_committed")
        try:
            partitions = [KafkaPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
            ends = consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.assign([partition])
                consumer.seek_to_beginning(partition)
                while consumer.position(partition) < ends[partition]:
                    for record in consumer.poll(timeout_ms=500).get(partition, []):
                        if record.offset < ends[partition]:
                            yield record
        finally:
            consumer.close(autocommit=False)

    def newest(self) -> dict[str, dict[str, Any]]:
        """Return every user's newest ranking, the list for people without events included."""
        newest: dict[str, dict[str, Any]] = {}
        for record in self.read(f"{self.stem}-recommendations"):
            newest[record.key.decode()] = json.loads(record.value)
        return newest

    @functools.cached_property
    def _onlooker(self) -> KafkaConsumer:
        """A consumer that asks about the group and never joins it."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.broker, group_id=f"{self.stem}-group", enable_auto_commit=False
        )
        self._open.callback(consumer.close, autocommit=False)
        return consumer

    def partitions_there(self) -> int:
        """Return how many partitions the events topic has, whoever made it."""
        return len(self._onlooker.partitions_for_topic(self.events))

    def commits(self) -> dict[int, int]:
        """Return the group's committed offset of each partition of the events topic; 0: none."""
        partitions = [KafkaPartition(self.events, number) for number in range(self.partitions)]
        return {each.partition: self._onlooker.committed(each) or 0 for each in partitions}

    def remove_member(self, worker: str) -> None:
        """Take a worker out of the group, as an operator may with one that is dead."""
        admin = KafkaAdminClient(bootstrap_servers=self.broker)
        admin.remove_group_members(f"{self.stem}-group", [MemberToRemove(group_instance_id=worker)])
        admin.close()

    def ends(self) -> dict[int, int]:
        """Return the end of every partition of the events topic."""
        partitions = [KafkaPartition(self.events, number) for number in range(self.partitions)]
        ends = self._onlooker.end_offsets(partitions)
        return {each.partition: end for each, end in ends.items()}

    def all_committed(self) -> bool:
        """Say whether the group has committed everything that the events topic holds."""
        return self.commits() == self.ends()

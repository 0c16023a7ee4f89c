"""A service under test with its broker, topics and folder; observed through these alone."""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import MemberToRemove
from kafka.consumer.fetcher import ConsumerRecord

from harness.clients import QUICK, lying_on
from harness.process import STOP_S, WAIT_S, Process, until
from pipeline.app.config import load_settings
from pipeline.app.inspection import Opened, describe, open_newest
from pipeline.persistence.journal import Journal
from pipeline.settings import Settings
from producers.kafka.client import producer_options
from producers.kafka.records import key_hash
from producers.kafka.topics import create_topics

__all__ = ["STOP_S", "WAIT_S", "Process", "Sent", "Site", "until"]


class Sent(NamedTuple):
    """A record to send; the value None is a tombstone."""

    key: bytes
    value: bytes | None


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
        name, args = f"{self._started:02d}-{command}-{worker}", (*self.options(worker), *args)
        process = Process(command, *args, folder=self.folder, name=name, program=program)
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
        """Keep a journal's first segment under a second name: it is deleted after the first checkpoint."""
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
        """Send records as `replay` does; return how many. `places` receives partitions and offsets."""
        producer = KafkaProducer(**producer_options(self.configured().kafka))
        futures = []
        for key, value in records:
            partition = key_hash(key) % self.partitions
            futures.append(producer.send(self.events, key=key, value=value, partition=partition))
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

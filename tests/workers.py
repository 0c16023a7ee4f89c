"""Workers of one group for tests: loops over one log, one outbox and one folder, driven tick by tick."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from learners import CountingLearner

from consumers.memory import MemoryItems, MemoryLog, MemorySource
from pipeline.events.batch import TopicPartition
from pipeline.events.decode import Decoder
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.service.clock import ManualClock
from pipeline.service.loop import Adapters, Durability, Loop
from pipeline.service.observe import Observer
from pipeline.settings import BatchConfig, CheckpointConfig, KafkaConfig, LimitsConfig, Settings
from producers.memory import MemorySink, Outbox

START_MS = 1_700_000_000_000
P0, P1, P2 = (TopicPartition("events", number) for number in range(3))


def publish(log: MemoryLog, users: Iterable[str], source: TopicPartition = P0, start: int = 0) -> None:
    """Append one event a user, each of another item."""
    for number, user in enumerate(users, start):
        value = msgspec.json.encode({"user_id": user, "item_id": f"item-{number}"})
        log.append(value, topic=source.topic, partition=source.partition, timestamp=START_MS + number)


def settings_for(folder: Path | None, worker: str = "worker-0", **limits: Any) -> Settings:
    """Return settings with small batches; no checkpoints without a folder."""
    path = "" if folder is None else str(folder)
    return Settings(
        kafka=KafkaConfig(worker_id=worker),
        batch=BatchConfig(max_events=4),
        checkpoint=CheckpointConfig(path=path, journal=path, interval_s=60.0, keep=2),
        limits=LimitsConfig(**limits),
    )


class Worker:
    """One worker: its parts are there to be looked at."""

    def __init__(
        self,
        log: MemoryLog,
        settings: Settings,
        outbox: Outbox | None = None,
        assigned: Iterable[TopicPartition] | None = None,
        wrap: Callable[[str, Any], Any] = lambda name, part: part,
        observer: Observer | None = None,
        items: MemoryLog | None = None,
    ) -> None:
        """`wrap` may put something around a part ("source", "sink", "learner") before the loop gets it."""
        self.log = log
        self.settings = settings
        self.learner = CountingLearner(settings)
        self.source = MemorySource(log, assigned=assigned)
        self.sink = MemorySink(outbox)
        self.clock = ManualClock(START_MS + 1_000_000)
        edges = Adapters(
            wrap("source", self.source),
            Decoder(settings.events, settings.topics, settings.limits.record_bytes),
            wrap("sink", self.sink),
            self.clock,
            observer or Observer(),
            None if items is None else MemoryItems(items, at_a_time=2),
        )
        self.survival: Durability | None = None
        if settings.checkpoint.path:
            journal = Journal(Path(settings.checkpoint.journal) / settings.kafka.worker_id, keep_all=True)
            self.survival = Durability(Checkpoints(UrlFolder(settings.checkpoint.path), settings), journal)
        self.loop = Loop(wrap("learner", self.learner), edges, settings, self.survival)

    @property
    def outbox(self) -> Outbox:
        """What the broker has taken."""
        return self.sink.outbox

    def finish(self, most: int = 100) -> None:
        """Tick until nothing is left to read."""
        for _ in range(most):
            self.loop.tick()
            if not any(self.source.lag().values()):
                return
        raise AssertionError(f"still behind after {most} ticks: {self.source.lag()}")

    def settle(self) -> None:
        """Commit what is acknowledged."""
        self.clock.advance(1.5)
        self.loop.tick()

    def kill(self) -> None:
        """End as a killed process does: the kernel closes its files."""
        if self.survival is not None:
            self.survival.journal.close()

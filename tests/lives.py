"""Lives of a real worker for tests: the service's own loop and recommender over a log in memory."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import TopicPartition
from pipeline.events.decode import Decoder
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.service.clock import ManualClock
from pipeline.service.loop import Adapters, Durability, Loop
from pipeline.service.observe import Observer
from pipeline.settings import BatchConfig, CheckpointConfig, ModelConfig, RankConfig, Settings
from producers.memory import MemorySink, Outbox

START_MS = 1_700_000_000_000
NOW_MS = START_MS + 10**9  # eleven days later


class Life:
    """One life of a worker, from its start to `end` or `kill`."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        log: MemoryLog,
        outbox: Outbox | None = None,
        assigned: Iterable[TopicPartition] | None = None,
    ) -> None:
        self.learner = Recommender(settings)
        self.source = MemorySource(log, assigned=assigned)
        self.outbox = Outbox() if outbox is None else outbox
        self.clock = ManualClock(NOW_MS)
        decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
        self.journal = Journal(folder / settings.kafka.worker_id)
        self.checkpoints = Checkpoints(UrlFolder(str(folder)), settings)
        edges = Adapters(self.source, decoder, MemorySink(self.outbox), self.clock, Observer())
        self.loop = Loop(self.learner, edges, settings, Durability(self.checkpoints, self.journal))
        self.loop.start()

    def read(self, most: int = 200) -> "Life":
        """Learn all that the log holds."""
        for _ in range(most):
            self.loop.tick()
            if not any(self.source.lag().values()):
                return self
        raise AssertionError(f"still behind after {most} ticks: {self.source.lag()}")

    def end(self) -> None:
        """Stop in good order."""
        self.loop.leave()
        self.journal.close()

    def kill(self) -> None:
        """End as a killed process does: the kernel closes its files."""
        self.journal.close()

    def user(self, user_id: str) -> dict[str, Any]:
        """Return what is held of a user, their ranking left out."""
        told = self.learner.describe_user(user_id)
        assert told is not None, user_id
        return kept(told)

    def history(self, user_id: str) -> list[str]:
        """Return the items of a user's history, newest first."""
        return [item for item, _ in self.user(user_id)["history"]]


def kept(told: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a user that does not hang on the model."""
    history = [(each["item_id"], each["timestamp_ms"]) for each in told["history"]]
    return {"history": history, **{name: told[name] for name in ("user_id", "partition", "consumed")}}


class Past(NamedTuple):
    """A folder, topic and committed offsets as a worker left them, killed 3 batches after a checkpoint.

    `tested` is how often the served model was tested up to the checkpoint; `users` and `events_learned` are
    of the end.
    """

    folder: Path
    log: MemoryLog
    tested: int
    events_learned: int
    users: dict[str, dict[str, Any]]


PAST = Settings(
    batch=BatchConfig(max_events=16),
    model=ModelConfig(tables={"attention": {"dim": 4, "history": 4}}),
    rank=RankConfig(k=3, exclude_event_types=["buy"]),
    checkpoint=CheckpointConfig(path="state"),
)


def past(where: Path) -> Past:
    """Live it: 208 events of 8 users in 2 partitions, 160 of them in the checkpoint."""
    chance, log = random.Random(5), MemoryLog({"events": 2})
    life = Life(where / "state", PAST, log)
    for number in range(208):
        user, time_ms = chance.randrange(8), START_MS + number * 60_000
        value = {
            "user_id": f"u{user}", "item_id": f"i{min(19, int(chance.expovariate(0.25)))}",
            "event_type": chance.choice(["buy", "click", "view"]), "timestamp_ms": time_ms,
            "event_id": f"e{number}",
        }  # fmt: skip
        log.append(msgspec.json.encode(value), partition=user % 2, timestamp=time_ms)
        if number == 159:
            life.read().loop.checkpoint()
            committed = dict(log.committed)
            tested = int(life.learner.quality.cumulative()["attention"]["tests"])
    life.read().kill()
    assert life.learner.seq == life.checkpoints.saved_seq + 3
    log.committed = committed
    users = {f"u{user}": life.user(f"u{user}") for user in range(8)}
    return Past(where / "state", log, tested, life.learner.events_learned, users)


def append(
    log: MemoryLog, user: str, item: str, partition: int = 0, topic: str = "events", minute: int = 10_000
) -> None:
    """Append one event of so many minutes after the start; its record is of this very moment."""
    time_ms = START_MS + minute * 60_000
    value = {"user_id": user, "item_id": item, "timestamp_ms": time_ms}
    log.append(msgspec.json.encode(value), topic=topic, partition=partition, timestamp=NOW_MS)


def changed(settings: Settings, **keys: object) -> Settings:
    """Return settings with some keys changed: `changed(settings, model__dim=8)`."""
    for name, value in keys.items():
        table, key = name.split("__")
        new = msgspec.structs.replace(getattr(settings, table), **{key: value})
        settings = msgspec.structs.replace(settings, **{table: new})
    return settings

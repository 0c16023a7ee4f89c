"""Workers of one group in memory: the service's own loop, of which a test calls `tick` itself."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from consumers.memory import MemoryItems, MemoryLog, MemorySource
from harness.clock import ManualClock
from harness.learners import CountingLearner
from harness.streams import START_MS
from pipeline.events.batch import NOTHING_POLLED, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.events.records import Ranking
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.service.loop import Adapters, Durability, Loop, with_catalog
from pipeline.service.ports import Observer
from pipeline.settings import (
    BatchConfig,
    CheckpointConfig,
    KafkaConfig,
    LimitsConfig,
    ModelConfig,
    RankConfig,
    Settings,
)
from producers.memory import MemorySink, Outbox

NOW_MS = START_MS + 10**9  # eleven days later
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


def changed(settings: Settings, **keys: object) -> Settings:
    """Return settings with some keys changed: `changed(settings, model__dim=8)`."""
    for name, value in keys.items():
        table, key = name.split("__")
        new = msgspec.structs.replace(getattr(settings, table), **{key: value})
        settings = msgspec.structs.replace(settings, **{table: new})
    return settings


def repeat(journal: Journal, learner: Any, source: Any, decoder: Decoder) -> dict[str, Ranking]:
    """Learn a journal's batches with a new learner; return each user's newest ranking."""
    newest: dict[str, Ranking] = {}
    for entry in journal.entries(0):
        polled = source.read(entry.spans, entry.order_R) if entry.spans else NOTHING_POLLED
        raw = with_catalog(decoder.decode(entry.seq, entry.now_ms, polled), entry.catalog)
        newest |= {ranking.user_id: ranking for ranking in learner.step(raw).rankings}
    return newest


class Worker:
    """One worker, its parts open to inspection; it learns with `CountingLearner` unless another is given."""

    now_ms, keep_all = START_MS + 1_000_000, True

    def __init__(
        self,
        log: MemoryLog,
        settings: Settings,
        outbox: Outbox | None = None,
        assigned: Iterable[TopicPartition] | None = None,
        wrap: Callable[[str, Any], Any] = lambda name, part: part,
        *,
        learner: Any = None,
        folder: str = "",
        observer: Observer | None = None,
        items: MemoryLog | None = None,
    ) -> None:
        """`wrap` may replace the "source", "sink" or "learner" of the loop; `folder` is `checkpoint.path`."""
        self.log, self.settings = log, settings
        self.learner = CountingLearner(settings) if learner is None else learner
        self.source = MemorySource(log, assigned=assigned)
        self.sink = MemorySink(outbox)
        self.clock = ManualClock(self.now_ms)
        decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
        wrapped = wrap("source", self.source), decoder, wrap("sink", self.sink)
        catalog = None if items is None else MemoryItems(items, max_records=2)
        adapters = Adapters(*wrapped, self.clock, observer or Observer(), catalog)
        self.survival: Durability | None = None
        if path := folder or settings.checkpoint.path:
            journal_folder = Path(settings.checkpoint.journal or path) / settings.kafka.worker_id
            journal = Journal(journal_folder, keep_all=self.keep_all)
            self.survival = Durability(Checkpoints(UrlFolder(path), settings), journal)
        self.loop = Loop(wrap("learner", self.learner), adapters, settings, self.survival)

    @property
    def outbox(self) -> Outbox:
        return self.sink.outbox

    def finish(self, max_ticks: int = 200) -> None:
        """Tick until nothing is left to read."""
        for _ in range(max_ticks):
            self.loop.tick()
            if not any(self.source.lag().values()):
                return
        raise AssertionError(f"still behind after {max_ticks} ticks: {self.source.lag()}")

    def settle(self) -> None:
        self.clock.advance(1.5)
        self.loop.tick()

    def kill(self) -> None:
        """End as a killed process does: the kernel closes its files."""
        if self.survival is not None:
            self.survival.journal.close()


class Life(Worker):
    """A worker with the recommender, from its start to `end` or `kill`."""

    now_ms, keep_all = NOW_MS, False

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        log: MemoryLog,
        outbox: Outbox | None = None,
        assigned: Iterable[TopicPartition] | None = None,
    ) -> None:
        super().__init__(log, settings, outbox, assigned, learner=Recommender(settings), folder=str(folder))
        assert self.survival is not None
        self.checkpoints = self.survival.checkpoints
        self.loop.start()

    def read(self) -> Self:
        self.finish()
        return self

    def end(self) -> None:
        """Stop as after SIGTERM."""
        self.loop.leave()
        self.kill()

    def user(self, user_id: str) -> dict[str, Any]:
        """Return a user's state, without what depends on the model."""
        described = self.learner.describe_user(user_id)
        assert described is not None, user_id
        kept = {name: described[name] for name in ("user_id", "partition", "consumed")}
        history = [(each["item_id"], each["timestamp_ms"]) for each in described["history"]]
        return kept | {"history": history}

    def history(self, user_id: str) -> list[str]:
        """Return the items of a user's history, newest first."""
        return [item for item, _ in self.user(user_id)["history"]]


class Past(NamedTuple):
    """What a worker that was killed 3 batches after a checkpoint left; `tested` is of the checkpoint."""

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
    """Make one of 208 events of 8 users in 2 partitions, 160 of them in the checkpoint."""
    chance, log = random.Random(5), MemoryLog({"events": 2})
    life = Life(where / "state", PAST, log)
    for number in range(208):
        user, time_ms = chance.randrange(8), START_MS + number * 60_000
        value = {"user_id": f"u{user}", "item_id": f"i{min(19, int(chance.expovariate(0.25)))}"}
        value |= {"event_type": chance.choice(["buy", "click", "view"]), "event_id": f"e{number}"}
        value |= {"timestamp_ms": time_ms}
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
    """Append one event of so many minutes after the start, in a record of the current time."""
    value = {"user_id": user, "item_id": item, "timestamp_ms": START_MS + minute * 60_000}
    log.append(msgspec.json.encode(value), topic=topic, partition=partition, timestamp=NOW_MS)

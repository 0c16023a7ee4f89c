"""A world in which the loop can be killed at any operation.

Topics, commits, the checkpoints' folder and the journal survive a crash; all else is created again.
"""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from harness.clock import ManualClock

from consumers.memory import MemoryItems, MemoryLog, MemorySource
from pipeline.events.batch import NO_UPDATE, CatalogUpdate, Polled, Record, Reject, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.events.records import Ranking
from pipeline.outcome import Learner
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.service.loop import Adapters, Durability, Loop
from pipeline.service.ports import Observer, Publication
from pipeline.settings import (
    BatchConfig,
    CheckpointConfig,
    EventsConfig,
    RankConfig,
    Settings,
    TopicsConfig,
)
from producers.memory import MemorySink, Outbox

START_MS = 1_700_000_000_000
TOPICS = {"events": 2, "shop": 1}
ITEMS = TopicPartition("items", 0)
EVENTS_AN_ITEM = 12  # learned between two records of the items topic


class Crash(BaseException):
    """The end of the process: nothing may catch this."""


class Fate:
    """Counts operations, and ends the process at operation `last` (-1: never)."""

    def __init__(self, seed: int) -> None:
        self.random, self.done, self.last = random.Random(seed), 0, -1

    def due(self) -> bool:
        self.done += 1
        return self.done == self.last

    def strike(self, *_: object) -> None:
        if self.due():
            raise Crash


class Fated:
    """A proxy: each call of a method is an operation that may be the last."""

    def __init__(self, inner: object, fate: Fate) -> None:
        self.__dict__.update(inner=inner, fate=fate)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            self.fate.strike(name)
            return found(*args, **options)

        return call


class FatedFolder(UrlFolder):
    """A folder on which writes may be torn, and files may be left under their temporary names."""

    def __init__(self, url: str, fate: Fate) -> None:
        super().__init__(url)
        self.fate = fate

    def write(self, name: str, data: bytes) -> None:
        if self.fate.due():
            path = Path(self.url, f"{name}.part")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[: self.fate.random.randrange(len(data))])
            raise Crash
        super().write(name, data)
        self.fate.strike()

    def delete(self, name: str) -> None:
        self.fate.strike()
        super().delete(name)


class SlowReceipt:
    """Acknowledged by `wait`, or by the second call of `done`."""

    def __init__(self, sink: "SlowSink") -> None:
        self.sink, self.acknowledged, self.asked = sink, False, 0

    def done(self) -> bool:
        self.asked += 1
        if self.asked == 2:
            self.sink.deliver(self)
        return self.acknowledged

    def wait(self, timeout_s: float) -> None:
        self.sink.deliver(self)

    def acknowledged_ms(self) -> None:
        """Return None."""


class SlowSink:
    """A sink with a broker that takes batches late, and only a part of the last ones at a crash."""

    commits_offsets = False

    def __init__(self, outbox: Outbox, fate: Fate) -> None:
        self.taken, self.fate = MemorySink(outbox), fate
        self.open: list[tuple[SlowReceipt, Sequence[Ranking], Sequence[Reject]]] = []

    def publish(self, publication: Publication, offsets: Mapping[TopicPartition, int]) -> SlowReceipt:
        """Send a batch."""
        receipt = SlowReceipt(self)
        self.open.append((receipt, publication.rankings, publication.rejects))
        return receipt

    def deliver(self, upto: SlowReceipt) -> None:
        """Let the broker take everything up to a batch, in order."""
        while not upto.acknowledged:
            receipt, rankings, rejects = self.open.pop(0)
            self.taken.publish(Publication(rankings, rejects))
            receipt.acknowledged = True

    def perish(self) -> None:
        """Let the broker have taken some part of what was sent, in order."""
        for _, rankings, rejects in self.open:
            some, few = self.fate.random.randint(0, len(rankings)), self.fate.random.randint(0, len(rejects))
            self.taken.publish(Publication(rankings[:some], rejects[:few]))
            if some < len(rankings):
                return

    def close(self) -> None:
        if self.open:
            self.deliver(self.open[-1][0])


class RestlessSource(MemorySource):
    """A source with other batch boundaries in each run, as on a live topic; polls take time."""

    def __init__(self, log: MemoryLog, fate: Fate, clock: ManualClock) -> None:
        super().__init__(log)
        self.fate, self.clock, self.idle = fate, clock, False

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        self.clock.advance(0.3)
        polled = super().poll(self.fate.random.randint(1, max_events), max_wait_s)
        self.idle = not polled
        return polled


class GradualItems(MemoryItems):
    """An items topic that gets a record whenever `EVENTS_AN_ITEM` more events are learned."""

    def __init__(self, log: MemoryLog, learner: Learner) -> None:
        super().__init__(log, max_records=1)
        self.learner = learner

    def poll(self) -> tuple[CatalogUpdate, bool]:
        (at,) = self._next.values()
        if at * EVENTS_AN_ITEM > self.learner.events_learned:
            return NO_UPDATE, True
        return super().poll()[0], True

    @property
    def idle(self) -> bool:
        (at,) = self._next.values()
        return at >= self._log.end(ITEMS) or at * EVENTS_AN_ITEM > self.learner.events_learned


class World:
    """What survives a crash, and the lives of the worker."""

    def __init__(self, folder: Path, make: Any, settings: Settings, log: MemoryLog, seed: int) -> None:
        self.folder, self.make, self.settings = folder, make, settings
        self.log, self.items, self.outbox = log, item_log(seed), Outbox()
        self.fate, self.clock, self.crashes = Fate(seed), ManualClock(START_MS), 0

    def decoder(self) -> Decoder:
        return Decoder(self.settings.events, self.settings.topics, self.settings.limits.record_bytes)

    def journal(self) -> Journal:
        """Create the journal of one life; its lines may be torn."""

        def write(descriptor: int, line: bytes) -> int:
            if self.fate.due():
                os.write(descriptor, line[: self.fate.random.randrange(len(line))])
                raise Crash
            written = os.write(descriptor, line)
            self.fate.strike()
            return written

        return Journal(self.folder / self.settings.kafka.worker_id, keep_all=True, write=write)

    def sink(self) -> SlowSink:
        return SlowSink(self.outbox, self.fate)

    def live(self, operations: int = -1) -> Learner | None:
        """Run a process until everything is learned; return None if it crashed at operation `operations`."""
        fate = self.fate
        fate.done, fate.last = 0, operations
        learner, sink, journal = self.make(self.settings), self.sink(), self.journal()
        source = RestlessSource(self.log, fate, self.clock)
        items = GradualItems(self.items, learner)
        checkpoints = Checkpoints(FatedFolder(str(self.folder), fate), self.settings)
        fated = Fated(source, fate), self.decoder(), Fated(sink, fate)
        adapters = Adapters(*fated, self.clock, Observer(), Fated(items, fate))
        loop = Loop(Fated(learner, fate), adapters, self.settings, Durability(checkpoints, journal))
        try:
            loop.start()
            while not (source.idle and items.idle) or learner.pending_rankings:
                loop.tick()
            loop.leave()
        except Crash:
            self.crashes += 1
            sink.perish()
            return None
        finally:
            journal.close()  # as the end of a process does
        return learner


def settings_for(folder: Path) -> Settings:
    return Settings(
        topics=TopicsConfig(events=list(TOPICS)),
        events=EventsConfig(fields={"item_id": ["lines[].id", "item_id"]}, roles={"look": "ignore"}),
        batch=BatchConfig(max_events=9),
        rank=RankConfig(k=4),
        checkpoint=CheckpointConfig(path=str(folder), journal=str(folder), interval_s=2.0, keep=2),
    )


SPOILED = (b"{", b"\xff\xfe", b'{"user_id": 7}')
IGNORED = (None, b'{"event_type": "look"}')
BAD_LINE = {"id": ""}


def fill(log: MemoryLog, records: int, seed: int) -> None:
    """Append records with gaps in the offsets; some are bad, ignored, or hold several lines."""
    chance = random.Random(seed)
    for number in range(records):
        topic, partition = chance.choice(log.partitions())
        user = f"{topic}{partition}-{chance.randrange(6)}"  # a user's events lie in one partition
        fields: dict[str, Any] = {"user_id": user, "item_id": f"i{chance.randrange(9)}"}
        kind = chance.randrange(12)
        if kind in (2, 3):
            fields["lines"] = [{"id": f"i{chance.randrange(9)}"} for _ in range(chance.randint(1, 12))]
            fields["lines"] += [BAD_LINE] * chance.randrange(2)
        value = msgspec.json.encode(fields)
        if kind < 2:
            value = chance.choice(SPOILED if kind == 0 else IGNORED)
        at = {"topic": topic, "partition": partition, "timestamp": START_MS + 10 * number}
        log.append(value, **at, skip=chance.randrange(5) // 4)


def item_log(seed: int) -> MemoryLog:
    """Return an items topic that withdraws, readmits and announces items; one record is bad."""
    chance, log = random.Random(seed), MemoryLog({"items": 1})
    for number in range(40):
        item = f"i{chance.randrange(16)}"
        value = msgspec.json.encode({"item_id": item, "available": chance.random() < 0.4})
        log.append(b"{" if number == 3 else value, topic="items", key=item.encode(), skip=number % 3 // 2)
    return log


def is_spoiled(record: Record) -> bool:
    return record.value in SPOILED or (record.value not in IGNORED and BAD_LINE in lines_of(record))


def events_in(record: Record) -> int:
    if record.value in (*SPOILED, *IGNORED):
        return 0
    return sum(line != BAD_LINE for line in lines_of(record)) or 1


def lines_of(record: Record) -> list[dict[str, str]]:
    found: list[dict[str, str]] = msgspec.json.decode(record.value or b"").get("lines", [])
    return found

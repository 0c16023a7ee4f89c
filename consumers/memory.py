"""Topics in memory: a source of events and one of items, for tests and for runs without a broker.

`MemoryLog` plays the broker (records, committed offsets, the group's generation) and outlives its sources: a
source that was killed is replaced by a new one over the same log. `MemorySource` is stricter than a broker
where that finds errors of a loop: every assigned partition must be sought, and only assigned partitions can
be committed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Literal, NamedTuple, NoReturn

from consumers.kafka.merge import Merge, arrange
from pipeline.errors import OffsetsGone
from pipeline.events.batch import CatalogUpdate, IntArray, Polled, Record, Span, TopicPartition
from pipeline.events.items import OUR_NAMES, item_news
from pipeline.service.ports import Listener
from pipeline.settings import ItemsConfig

_offset = attrgetter("offset")


class MemoryRecord(NamedTuple):
    """One record of a topic; `timestamp` in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class MemoryLog:
    """Hold topics, and the committed offsets and the generation of one consumer group.

    `topics` maps each topic to its number of partitions.
    """

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        counts = {"events": 1} if topics is None else topics
        self._records: dict[TopicPartition, list[Record]] = {
            TopicPartition(topic, partition): []
            for topic, count in counts.items()
            for partition in range(count)
        }
        self._starts = dict.fromkeys(self._records, 0)
        self.committed: dict[TopicPartition, int] = {}
        self.generation = 0
        self.topic_ids: dict[str, str] = {}

    def partitions(self) -> list[TopicPartition]:
        """Return every partition, in order."""
        return sorted(self._records)

    def append(
        self,
        value: bytes | None,
        *,
        topic: str = "events",
        partition: int = 0,
        timestamp: int = 0,
        key: bytes | None = None,
        skip: int = 0,
    ) -> MemoryRecord:
        """Append a record and return it; `skip` leaves offsets without a record, as transactions do."""
        source = TopicPartition(topic, partition)
        added = MemoryRecord(topic, partition, self.end(source) + skip, timestamp, key, value)
        self._records[source].append(added)
        return added

    def trim(self, source: TopicPartition, offset: int) -> None:
        """Delete the records before `offset`, as retention does."""
        records = self._records[source]
        offset = min(offset, self.end(source))
        del records[: bisect_left(records, offset, key=_offset)]
        self._starts[source] = max(self._starts[source], offset)

    def start(self, source: TopicPartition) -> int:
        """Return the offset of the earliest record."""
        return self._starts[source]

    def end(self, source: TopicPartition) -> int:
        """Return the offset after the last record."""
        records = self._records[source]
        return records[-1].offset + 1 if records else self._starts[source]

    def read(self, source: TopicPartition, start: int, stop: int | None = None) -> Iterator[Record]:
        """Yield the records with `start <= offset < stop`."""
        records = self._records[source]
        for index in range(bisect_left(records, start, key=_offset), len(records)):
            if stop is not None and records[index].offset >= stop:
                return
            yield records[index]


class MemorySource:
    """Read a `MemoryLog` as one member of its consumer group; see `pipeline.service.ports.Source`.

    By default the first `poll` assigns every partition. With `assigned`, or by `assign`, `revoke` and `lose`,
    the caller acts as the group's coordinator; the listener is called inside the next `poll`, as by a Kafka
    client. `poll` never waits. At most `capacity` records a partition are buffered.
    """

    def __init__(
        self, log: MemoryLog, *, assigned: Iterable[TopicPartition] | None = None, capacity: int = 1024
    ) -> None:
        self._log = log
        self._merge = Merge(capacity)
        self._fetched: dict[TopicPartition, int] = {}  # offset after the last record given to the merge
        self._held: set[TopicPartition] = set()
        self._changes: list[tuple[_Change, list[TopicPartition]]] = []
        self._listener: Listener | None = None
        self._generation = 0
        self._has_assignment = False
        self.assign(log.partitions() if assigned is None else assigned)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Assign partitions to this member at its next poll."""
        self._changes.append(("assigned", sorted(partitions)))

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Revoke partitions at the next poll."""
        self._changes.append(("revoked", sorted(partitions)))

    def lose(self, partitions: Iterable[TopicPartition]) -> None:
        """Take partitions away at the next poll, as from a member that was removed from the group."""
        self._changes.append(("lost", sorted(partitions)))

    def start(self, listener: Listener) -> None:
        """Join the group: a new generation begins."""
        self._listener = listener
        self._join()

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records, oldest first, at once, after calls of the listener."""
        self._rebalance()
        while True:
            behind = self._fetch()
            if self._merge.fill(max_events, behind) >= max_events or not behind:
                return self._merge.take()

    def put_back(self, polled: Polled) -> None:
        """Return the last records of the last poll to the buffers."""
        self._merge.put_back(polled)

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read these records again; without an order, span by span. Raise `OffsetsGone` for missing ones."""
        for span in spans:
            if span.start < self._log.start(span.source):
                self._raise_gone(span.source, span.start)
        return arrange(spans, [self._log.read(span.source, span.start, span.stop) for span in spans], order_R)

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Continue at `offset`; None: at the earliest record. Raise `OffsetsGone` outside of the log."""
        position = self._log.start(partition) if offset is None else offset
        if not self._log.start(partition) <= position <= self._log.end(partition):
            self._raise_gone(partition, position)
        self._merge.assign(partition, position)
        self._fetched[partition] = position

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the group's committed offsets, without partitions that have none."""
        return {source: self._log.committed[source] for source in partitions if source in self._log.committed}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets. Raise ValueError for a partition that is not assigned: its events would be lost."""
        for source in [source for source in offsets if source not in self._held]:
            names = ", ".join(map(_name, sorted(self._held))) or "none"
            raise ValueError(f"commit of {_name(source)}: it isn't assigned here; expected one of {names}")
        self._log.committed.update(offsets)

    def keep_alive(self) -> None:
        """Do nothing: there is no session time-out."""

    def lag(self) -> dict[TopicPartition, int]:
        """Return the offsets between each assigned partition's position and its end."""
        merge = self._merge
        return {source: self._log.end(source) - merge.position(source) for source in merge.partitions()}

    def partitions(self) -> list[TopicPartition]:
        """Return every partition of the log."""
        return self._log.partitions()

    def topic_ids(self) -> dict[str, str]:
        """Return the topic ids of the log."""
        return dict(self._log.topic_ids)

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset of each partition's oldest record."""
        return {source: self._log.start(source) for source in partitions}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset after each partition's last record."""
        return {source: self._log.end(source) for source in partitions}

    def generation(self) -> int:
        """Return the group's generation at this member's last join or assignment."""
        return self._generation

    def close(self) -> None:
        """Leave the group: what is still assigned is revoked. Closing again does nothing."""
        if self._listener is None:
            return
        self._changes = [("revoked", sorted(self._held))] if self._held else []
        self._rebalance()
        self._listener = None

    def _join(self) -> None:
        self._log.generation += 1
        self._generation = self._log.generation

    def _rebalance(self) -> None:
        if self._listener is None:
            raise RuntimeError("the source isn't started; call start(listener) before poll()")
        changes, self._changes = self._changes, []
        for change, partitions in changes:
            if change == "assigned":
                self._add(self._listener, partitions)
            else:
                self._remove(self._listener, change, partitions)

    def _add(self, listener: Listener, partitions: list[TopicPartition]) -> None:
        if self._has_assignment:
            self._join()
        self._has_assignment = True
        self._held.update(partitions)
        listener.assigned(partitions)
        unsought = [source for source in partitions if source not in self._fetched]
        if unsought:
            raise RuntimeError(f"listener.assigned did not seek {', '.join(map(_name, unsought))}")

    def _remove(self, listener: Listener, change: "_Change", partitions: list[TopicPartition]) -> None:
        if change == "revoked":
            listener.revoked(partitions)  # still assigned: the listener may commit
        self._held.difference_update(partitions)
        for source in partitions:
            self._merge.release(source)
            self._fetched.pop(source, None)
        if change == "lost":
            listener.lost(partitions)

    def _fetch(self) -> list[TopicPartition]:
        """Fill the buffers; return the partitions of which the log holds more."""
        behind = []
        for source in self._merge.partitions():
            records = list(islice(self._log.read(source, self._fetched[source]), self._merge.wanted(source)))
            self._merge.add(source, records)
            if records:
                self._fetched[source] = records[-1].offset + 1
            if self._fetched[source] < self._log.end(source):
                behind.append(source)
        return behind

    def _raise_gone(self, source: TopicPartition, offset: int) -> NoReturn:
        raise OffsetsGone(
            f"{_name(source)}: offset {offset} is out of range, expected {self._log.start(source)} to "
            f"{self._log.end(source)}. The topic was created again or has deleted records; start from an "
            "empty checkpoint folder"
        )


class MemoryItems:
    """Read the items topic of a `MemoryLog`, at most `max_records` a poll; see
    `pipeline.service.ports.ItemSource`."""

    def __init__(
        self, log: MemoryLog, topic: str = "items", max_records: int = 5_000, config: ItemsConfig = OUR_NAMES
    ) -> None:
        self._log, self._max_records, self._config = log, max_records, config
        self._sources = [source for source in log.partitions() if source.topic == topic]
        self._next: dict[TopicPartition, int] = {}

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Continue at these offsets; a partition without one starts at its earliest record."""
        for source in self._sources:
            wanted, earliest = offsets.get(source, -1), self._log.start(source)
            self._next[source] = wanted if earliest <= wanted <= self._log.end(source) else earliest

    def poll(self) -> tuple[CatalogUpdate, bool]:
        """Return the next records at once, and whether the topic is read to its end."""
        waiting = chain.from_iterable(self._log.read(*at) for at in list(self._next.items()))
        records = list(islice(waiting, self._max_records))
        for record in records:
            self._next[TopicPartition(record.topic, record.partition)] = record.offset + 1
        ended = all(offset >= self._log.end(source) for source, offset in self._next.items())
        return item_news(records, self._config), ended

    def close(self) -> None:
        """Do nothing."""


_Change = Literal["assigned", "revoked", "lost"]


def _name(source: TopicPartition) -> str:
    return f"{source.topic}-{source.partition}"

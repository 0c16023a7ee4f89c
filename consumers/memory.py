"""Topics in memory: a source of events and one of items.

`MemoryLog` plays the broker (records, committed offsets, the group's generation) and outlives its sources: a
source that was killed is replaced by a new one over the same log. `MemorySource` is stricter than a broker
where that finds errors of a loop: every assigned partition must be sought, and only assigned partitions can
be committed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from types import MappingProxyType
from typing import Literal, NamedTuple

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

    def __init__(self, topics: Mapping[str, int] = MappingProxyType({"events": 1})) -> None:
        sources = [TopicPartition(topic, number) for topic in topics for number in range(topics[topic])]
        self._records: dict[TopicPartition, list[Record]] = {source: [] for source in sources}
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

    def check(self, source: TopicPartition, offset: int) -> None:
        """Raise `OffsetsGone` for an offset outside of the log."""
        start, end = self.start(source), self.end(source)
        if not start <= offset <= end:
            raise OffsetsGone(
                f"{_name(source)}: offset {offset} is out of range, expected {start} to {end}. The topic was "
                "created again or has deleted records; start from an empty checkpoint folder"
            )

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
    client. `poll` never waits.
    """

    def __init__(self, log: MemoryLog, *, assigned: Iterable[TopicPartition] | None = None) -> None:
        self._log = log
        self._merge = Merge()
        self._held: set[TopicPartition] = set()
        self._changes: list[tuple[_Change, list[TopicPartition]]] = []
        self._listener: Listener | None = None
        self._generation = 0
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
        """Join the group at the next poll."""
        self._listener = listener

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records, oldest first, at once, after calls of the listener."""
        self._rebalance()
        for source in self._merge.partitions():
            self._merge.add(source, list(self._log.read(source, self._merge.fetched(source))))
        self._merge.fill(max_events)
        return self._merge.take()

    def put_back(self, polled: Polled) -> None:
        self._merge.put_back(polled)

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read these records again; without an order, span by span. Raise `OffsetsGone` for missing ones."""
        for span in spans:
            self._log.check(span.source, min(span.start, self._log.end(span.source)))
        return arrange(spans, [self._log.read(span.source, span.start, span.stop) for span in spans], order_R)

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Continue at `offset`; None: at the earliest record. Raise `OffsetsGone` outside of the log."""
        position = self._log.start(partition) if offset is None else offset
        self._log.check(partition, position)
        self._merge.assign(partition, position)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
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
        merge = self._merge
        return {source: self._log.end(source) - merge.position(source) for source in merge.partitions()}

    def partitions(self) -> list[TopicPartition]:
        return self._log.partitions()

    def topic_ids(self) -> dict[str, str]:
        return dict(self._log.topic_ids)

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {source: self._log.start(source) for source in partitions}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {source: self._log.end(source) for source in partitions}

    def generation(self) -> int:
        """Return the group's generation at this member's last assignment."""
        return self._generation

    def close(self) -> None:
        """Leave the group: what is still assigned is revoked. Closing again does nothing."""
        if self._listener is None:
            return
        self._changes = [("revoked", sorted(self._held))] if self._held else []
        self._rebalance()
        self._listener = None

    def _rebalance(self) -> None:
        listener = self._listener
        if listener is None:
            raise RuntimeError("the source isn't started; call start(listener) before poll()")
        changes, self._changes = self._changes, []
        for change, partitions in changes:
            if change == "assigned":
                self._add(listener, partitions)
                continue
            if change == "revoked":
                listener.revoked(partitions)  # still assigned: the listener may commit
            self._held.difference_update(partitions)
            for source in partitions:
                self._merge.release(source)
            if change == "lost":
                listener.lost(partitions)

    def _add(self, listener: Listener, partitions: list[TopicPartition]) -> None:
        self._log.generation += 1
        self._generation = self._log.generation
        self._held.update(partitions)
        listener.assigned(partitions)
        if unsought := sorted(set(partitions) - set(self._merge.partitions())):
            raise RuntimeError(f"listener.assigned did not seek {', '.join(map(_name, unsought))}")


class MemoryItems:
    """Read the topic `items` of a `MemoryLog`, at most `max_records` a poll; see
    `pipeline.service.ports.ItemSource`."""

    def __init__(self, log: MemoryLog, max_records: int = 5_000, config: ItemsConfig = OUR_NAMES) -> None:
        self._log, self._max_records, self._config = log, max_records, config
        self._next = {source: 0 for source in log.partitions() if source.topic == "items"}

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        for source in self._next:
            wanted, earliest = offsets.get(source, -1), self._log.start(source)
            self._next[source] = wanted if earliest <= wanted <= self._log.end(source) else earliest

    def poll(self) -> tuple[CatalogUpdate, bool]:
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

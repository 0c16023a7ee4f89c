"""Events out of lists in memory: a source like any other, for tests and for whole runs without a broker.

`ListLog` is the broker's part (records, committed offsets, the group's generation) and outlives its
sources, so that a source that was "killed" is made again over the same log. `ListSource` is stricter than a
broker where that finds mistakes of a loop: it wants every assigned partition sought, and refuses commits of
partitions that it doesn't hold.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple, NoReturn

from consumers.kafka.merge import Merge, arrange
from pipeline.errors import OffsetsGone
from pipeline.events.batch import IntArray, Polled, Record, Span, TopicPartition
from pipeline.service.ports import Listener


class ListRecord(NamedTuple):
    """One record of a topic; `timestamp` in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def record(
    topic: str, partition: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
) -> ListRecord:
    """Make a record.

    >>> record("events", 0, 7, 1_700_000_000_000, b"ann", b"{}").offset
    7
    """
    return ListRecord(topic, partition, offset, timestamp, key, value)


class ListLog:
    """Topics in memory, with the committed offsets and the generation of one consumer group.

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
        """Every partition, in order."""
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
    ) -> ListRecord:
        """Add a record after the last one and return it; `skip` leaves offsets without a record, as
        transactions do."""
        source = TopicPartition(topic, partition)
        added = ListRecord(topic, partition, self.end(source) + skip, timestamp, key, value)
        self._records[source].append(added)
        return added

    def extend(self, records: Iterable[Record]) -> None:
        """Add records at the offsets that they name. Raise ValueError when offsets of a partition don't
        rise."""
        for new in records:
            source = TopicPartition(new.topic, new.partition)
            if new.offset < self.end(source):
                raise ValueError(
                    f"offset {new.offset} of {_name(source)}: expected {self.end(source)} or more"
                )
            self._records[source].append(new)

    def trim(self, source: TopicPartition, offset: int) -> None:
        """Drop the records before `offset`, as retention does."""
        records = self._records[source]
        offset = min(offset, self.end(source))
        del records[: bisect_left(records, offset, key=_offset)]
        self._starts[source] = max(self._starts[source], offset)

    def start(self, source: TopicPartition) -> int:
        """Offset of the earliest record that is kept."""
        return self._starts[source]

    def end(self, source: TopicPartition) -> int:
        """Offset after the last record."""
        records = self._records[source]
        return records[-1].offset + 1 if records else self._starts[source]

    def read(self, source: TopicPartition, start: int, stop: int | None = None) -> Iterator[Record]:
        """Yield the records with `start <= offset < stop`."""
        records = self._records[source]
        for index in range(bisect_left(records, start, key=_offset), len(records)):
            if stop is not None and records[index].offset >= stop:
                return
            yield records[index]


class ListSource:
    """A source over a `ListLog`, as one member of its group.

    By default the first `poll` assigns every partition. With `assigned`, or by `assign`, `revoke` and
    `lose`, the caller plays the group's coordinator: the listener is told inside the next `poll`, as a
    Kafka client does it. `poll` never waits: what isn't in the log yet won't come meanwhile. At most
    `capacity` records a partition are buffered.
    """

    def __init__(
        self, log: ListLog, *, assigned: Iterable[TopicPartition] | None = None, capacity: int = 1024
    ) -> None:
        self._log = log
        self._merge = Merge(capacity)
        self._fetched: dict[TopicPartition, int] = {}  # offset after the last record that the merge was given
        self._held: set[TopicPartition] = set()
        self._changes: list[tuple[_Change, list[TopicPartition]]] = [
            ("assigned", sorted(log.partitions() if assigned is None else assigned))
        ]
        self._listener: Listener | None = None
        self._generation = 0
        self._settled = False  # whether the generation that `start` began has had its assignment

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Give these partitions to this member, at its next poll."""
        self._changes.append(("assigned", sorted(partitions)))

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Take these partitions away in good order, at the next poll."""
        self._changes.append(("revoked", sorted(partitions)))

    def lose(self, partitions: Iterable[TopicPartition]) -> None:
        """Take these partitions away as from a member that was thrown out, at the next poll."""
        self._changes.append(("lost", sorted(partitions)))

    def start(self, listener: Listener) -> None:
        """Join the group: a new generation begins."""
        self._listener = listener
        self._join()

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records, oldest first, at once. Tell the listener of changes before."""
        self._rebalance()
        while True:
            behind = self._fetch()
            if self._merge.fill(max_events, behind) >= max_events or not behind:
                return self._merge.take()

    def put_back(self, polled: Polled) -> None:
        """Take the last records of the last poll back."""
        self._merge.put_back(polled)

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read exactly these records again, without an order span by span. Raise `OffsetsGone` when they
        are gone."""
        for span in spans:
            if span.start < self._log.start(span.source):
                self._raise_gone(span.source, span.start)
        return arrange(spans, [self._log.read(span.source, span.start, span.stop) for span in spans], order_R)

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Go on from `offset`; None: from the earliest record. Raise `OffsetsGone` outside of the log."""
        position = self._log.start(partition) if offset is None else offset
        if not self._log.start(partition) <= position <= self._log.end(partition):
            self._raise_gone(partition, position)
        self._merge.assign(partition, position)
        self._fetched[partition] = position

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed offsets; partitions that have none are left out."""
        return {source: self._log.committed[source] for source in partitions if source in self._log.committed}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets. Raise ValueError for a partition that isn't held: such a commit loses events."""
        for source in offsets:
            if source not in self._held:
                raise ValueError(
                    f"commit of {_name(source)}: it isn't assigned here; expected one of {self._names()}"
                )
        self._log.committed.update(offsets)

    def keep_alive(self) -> None:
        """Do nothing: nobody throws this member out."""

    def lag(self) -> dict[TopicPartition, int]:
        """Offsets between each assigned partition's position and its end."""
        return {
            source: self._log.end(source) - self._merge.position(source)
            for source in self._merge.partitions()
        }

    def partitions(self) -> list[TopicPartition]:
        """Every partition of the log."""
        return self._log.partitions()

    def topic_ids(self) -> dict[str, str]:
        """The ids that the log was given."""
        return dict(self._log.topic_ids)

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the oldest record that each partition still holds."""
        return {source: self._log.start(source) for source in partitions}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition."""
        return {source: self._log.end(source) for source in partitions}

    def generation(self) -> int:
        """The group's generation when this member last joined or was rebalanced."""
        return self._generation

    def close(self) -> None:
        """Leave the group: what is still held is revoked. Closing again does nothing."""
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
                self._take_on(self._listener, partitions)
            else:
                self._give_up(self._listener, change, partitions)

    def _take_on(self, listener: Listener, partitions: list[TopicPartition]) -> None:
        if self._settled:
            self._join()
        self._settled = True
        self._held.update(partitions)
        listener.assigned(partitions)
        unsought = [source for source in partitions if source not in self._fetched]
        if unsought:
            raise RuntimeError(f"listener.assigned did not seek {', '.join(map(_name, unsought))}")

    def _give_up(self, listener: Listener, change: str, partitions: list[TopicPartition]) -> None:
        if change == "revoked":
            listener.revoked(partitions)  # still held: the listener may commit
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
            f"{self._log.end(source)}. The topic was made anew or has dropped records; start from an empty "
            "checkpoint folder"
        )

    def _names(self) -> str:
        return ", ".join(map(_name, sorted(self._held))) or "none"


_Change = Literal["assigned", "revoked", "lost"]


def _name(source: TopicPartition) -> str:
    return f"{source.topic}-{source.partition}"


def _offset(record: Record) -> int:
    return record.offset

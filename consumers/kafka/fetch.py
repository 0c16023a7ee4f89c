"""Fill the merge's buffers from a member of the group, and decide for which partitions to wait.

Ends are known from fetches. They count offsets without a record (markers of transactions, and what is behind
the start of an open one): where no record was found at an end, it is not waited for before the end moves.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from consumers.kafka.group import is_replaced, replaced
from consumers.kafka.member import Member
from consumers.kafka.merge import Merge
from consumers.kafka.reader import Fetched, PartitionReader
from pipeline.events.batch import TopicPartition
from pipeline.settings import KafkaConfig

CAPACITY = 4096  # records a partition: enough to learn from while a fetch waits for other partitions
# Between looks at what the client has, growing: a waiting client asks again and again a broker that answers
# an empty fetch at once, as the embedded one does.
PAUSE_S = (0.001, 0.005)
PLACE_EVERY_S = 10.0  # between checks, on idle topics, that this member still holds its place in the group


@dataclass(slots=True)
class _Mark:
    """How far one partition was fetched."""

    # What the client knows of the partition. Its public calls copy the whole assignment each time.
    client: Any
    next: int  # offset that the client fetches next
    end: int = 0  # of the topic, as asked after the seek
    empty: tuple[int, int] = (-1, -1)  # the `next` and `last` between which no record was found

    @property
    def last(self) -> int:
        """The partition's end as of the last fetch; before the first fetch, as the broker was asked."""
        highwater: int | None = self.client.highwater
        return self.end if highwater is None else highwater


class Fetcher:
    """Fill the buffers of a `Merge` from a group's consumer. Raises as `PartitionReader` does."""

    def __init__(self, reader: PartitionReader, kafka: KafkaConfig, capacity: int) -> None:
        self.reader = reader
        self.member = Member(reader.consumer)
        self.merge = Merge()
        self.waiting_since = 0.0  # when the oldest buffered record came, or before
        self._kafka = kafka
        self._capacity = max(capacity, CAPACITY)
        self._consumer = reader.consumer
        self._marks: dict[TopicPartition, _Mark] = {}
        self._unchecked: set[TopicPartition] = set()  # sought, and not yet compared with the topic's range
        self._paused: set[TopicPartition] = set()  # until their buffers are half empty
        self._pause_s = PAUSE_S[0]
        self._idle_since = time.monotonic()  # since the last record, or the last check of the place

    def seek(self, source: TopicPartition, position: int) -> None:
        self.reader.seek(source, position)
        self.merge.assign(source, position)
        client = self._consumer._subscription.assignment[KafkaPartition(*source)]
        self._marks[source] = _Mark(client, next=position)
        self._unchecked.add(source)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Drop partitions that are no longer assigned."""
        for source in partitions:
            self.merge.release(source)
            self._marks.pop(source, None)
            self._unchecked.discard(source)
            self._paused.discard(source)

    def fetch(self, timeout_s: float) -> bool:
        """Move what the client has into the buffers, waiting for it; return whether anything is new."""
        until = time.monotonic() + timeout_s
        self._pause_full()
        while not self._fetch_now():
            left_s = until - time.monotonic()
            if left_s <= 0.0:
                return False
            time.sleep(min(self._pause_s, left_s))
            self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
        self._pause_s = PAUSE_S[0]
        return True

    def keep_alive(self) -> None:
        """Stay in the group: no new fetches, no listener calls. What the client holds is kept."""
        held = self._consumer.assignment() - self._consumer.paused()
        self._consumer.pause(*held)
        try:
            self._buffer(self.reader.fetched_by(self.member.keep_alive))
        finally:
            self._consumer.resume(*(held & self._consumer.assignment()))

    def behind(self) -> set[TopicPartition]:
        """Return the partitions that are known to hold more records than were fetched."""
        self._check_sought()
        return {
            source
            for source, mark in self._marks.items()
            if mark.next < mark.last and self._has_more(source, mark)
        }

    def blocking(self, behind: Collection[TopicPartition]) -> list[TopicPartition]:
        """Return those of `behind` without a buffered record: the next record may be theirs."""
        return sorted(source for source in behind if not self.merge.buffered(source))

    def ask_for_ends(self, blocking: Sequence[TopicPartition]) -> None:
        """Ask where readable records end, and wait no more for partitions that are read so far."""
        began = time.monotonic()
        try:
            ends = self._consumer.end_offsets([KafkaPartition(*each) for each in blocking], timeout_ms=1_000)
        except KafkaError as error:
            self.reader.check(error, began)
            return
        self.give_up([source for source in blocking if ends[source] <= self._marks[source].next])

    def give_up(self, blocking: Iterable[TopicPartition]) -> None:
        """Wait no more for these partitions until their ends move."""
        for source in blocking:
            mark = self._marks[source]
            mark.empty = (mark.next, mark.last)

    def lag(self) -> dict[TopicPartition, int]:
        """Return the offsets between what was handed out and the end, less those known to be empty."""
        lags = {}
        for source, mark in self._marks.items():
            position = self.merge.position(source) if self.merge.buffered(source) else mark.next
            lags[source] = max(0, mark.last - position)
        return lags

    def _fetch_now(self) -> bool:
        fetched = self.reader.fetched_by(self.member.poll)
        now = time.monotonic()
        if fetched:
            self._idle_since = now
            self._buffer(fetched)
        elif now - self._idle_since >= PLACE_EVERY_S:
            self._idle_since = now
            if is_replaced(self._kafka, self._consumer.group_metadata):
                raise replaced(self._kafka)
        return bool(fetched or self._unchecked)

    def _buffer(self, fetched: Fetched) -> None:
        if fetched and not len(self.merge):
            self.waiting_since = time.monotonic()
        for source, records in fetched.items():
            mark = self._marks.get(source)
            if mark is not None:
                self.merge.add(source, records)
                mark.next = records[-1].offset + 1

    def _pause_full(self) -> None:
        """Stop fetching partitions with a full buffer, until it is half empty."""
        full = self.merge.full(self._capacity) - self._paused
        ready = {source for source in self._paused if self.merge.buffered(source) * 2 <= self._capacity}
        if full or ready:
            assigned = self._consumer.assignment()
            self._consumer.pause(*(assigned & {KafkaPartition(*source) for source in full}))
            self._consumer.resume(*(assigned & {KafkaPartition(*source) for source in ready}))
            self._paused = (self._paused | full) - ready

    def _has_more(self, source: TopicPartition, mark: _Mark) -> bool:
        end = mark.last
        if not self.merge.buffered(source):  # the client has passed offsets that hold no record
            mark.next = max(mark.next, self.reader.position(source))
        return mark.next < end and mark.empty != (mark.next, end)

    def _check_sought(self) -> None:
        """Ask for the ends of partitions that were sought; raise `OffsetsGone` outside of the range."""
        sources, self._unchecked = sorted(self._unchecked), set()
        for source, held in self.reader.ranges(sources).items():
            mark = self._marks[source]
            if not held.start <= mark.next <= held.stop:
                self.reader.raise_gone(source, f"offset {mark.next}")
            mark.end = held.stop

"""What the client fetches, and what is known to come: the part of the source that decides about waiting.

Ends are known from fetches, at no cost. An end can lie: markers of transactions fill offsets without a
record, and nothing behind the start of an open transaction can be read yet. What turns out barren isn't
waited for again before it moves.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import kafka.errors
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from consumers.kafka.client import MEMBERSHIP, Patience, translated
from consumers.kafka.group import is_replaced, replaced
from consumers.kafka.member import Fetched, Member
from consumers.kafka.merge import Merge
from consumers.kafka.reader import gone, missed
from pipeline.events.batch import TopicPartition
from pipeline.settings import KafkaConfig

CAPACITY = 4096  # records a partition: enough to learn from while a fetch waits for other partitions
# Between looks at what the client has, growing: a client that is told to wait asks on and on a broker that
# answers an empty fetch at once, as the embedded one does.
PAUSE_S = (0.001, 0.02)
PLACE_EVERY_S = 10.0  # between looks, on idle topics, at who holds our place in the group


@dataclass(slots=True)
class _Mark:
    """How far one partition was fetched."""

    # What the client knows of the partition. Its public calls copy the whole assignment at each question,
    # which many partitions make many times a second.
    client: Any
    next: int  # offset that the client fetches next
    end: int = 0  # of the topic, as asked after it was sought
    barren: tuple[int, int] = (-1, -1)  # the `next` and end at which no record was to be had

    @property
    def last(self) -> int:
        """The partition's end as the last fetch told it; before the first fetch, as the broker was asked."""
        highwater: int | None = self.client.highwater
        return self.end if highwater is None else highwater


class Fetcher:
    """Fill the buffers of a `Merge` from a group's consumer, and watch the broker's health.

    Raises `BrokerLost` when nobody answers for `kafka.broker_timeout_s`, `OffsetsGone` for a position that
    the topic doesn't hold.
    """

    def __init__(self, consumer: KafkaConsumer, kafka: KafkaConfig, capacity: int) -> None:
        self.merge = Merge(max(capacity, CAPACITY))
        self.member = Member(consumer)
        self.patience = Patience(kafka)
        self._kafka = kafka
        self.waiting_since = 0.0  # when the oldest buffered record came, or before
        self._consumer = consumer
        self._marks: dict[TopicPartition, _Mark] = {}
        self._unchecked: set[TopicPartition] = set()  # sought, and not yet held against the topic's range
        self._paused: set[TopicPartition] = set()  # until their buffers are half empty
        self._probe_every_s = min(2.0, kafka.broker_timeout_s / 5)
        self._pause_s = PAUSE_S[0]
        self._heard_at = time.monotonic()
        self._probes: list[TopicPartition] = []
        self._place_at = self._heard_at

    def watch(self, partitions: Iterable[TopicPartition]) -> None:
        """Name the partitions that the broker may be asked about, to see whether it is there."""
        self._probes = list(partitions)

    def seek(self, source: TopicPartition, position: int) -> None:
        """Go on from `position`; what was buffered is dropped."""
        self._consumer.seek(KafkaPartition(*source), position)
        self.merge.assign(source, position)
        client = self._consumer._subscription.assignment[KafkaPartition(*source)]
        self._marks[source] = _Mark(client, next=position)
        self._unchecked.add(source)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Drop partitions that are no longer ours."""
        for source in partitions:
            self.merge.release(source)
            self._marks.pop(source, None)
            self._unchecked.discard(source)
            self._paused.discard(source)

    def fetch(self, timeout_s: float) -> bool:
        """Move what the client has into the buffers, waiting for it; say whether anything is new."""
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

    def touch(self) -> None:
        """Stay in the group: no new fetches, no listener calls. What the client holds is kept."""
        began = time.monotonic()
        held = self._consumer.assignment() - self._consumer.paused()
        self._consumer.pause(*held)
        try:
            self._take_in(self.member.touch())
        except KafkaError as error:
            self.judge(error, began)
        finally:
            self._consumer.resume(*(held & self._consumer.assignment()))

    def behind(self) -> set[TopicPartition]:
        """Partitions that are known to hold more records than were fetched."""
        self._check_sought()
        return {
            source
            for source, mark in self._marks.items()
            if mark.next < mark.last and self._has_more(source, mark)
        }

    def blind(self, behind: Collection[TopicPartition]) -> list[TopicPartition]:
        """Those of `behind` of which nothing is buffered: the next record may be theirs."""
        return sorted(filter(self.merge.is_missing, behind))

    def look_at_ends(self, blind: Sequence[TopicPartition]) -> None:
        """Ask where readable records end, and wait no more where that is reached."""
        began = time.monotonic()
        theirs = [KafkaPartition(*source) for source in blind]
        try:
            ends = self._consumer.end_offsets(theirs, timeout_ms=1_000)
        except KafkaError as error:
            self.judge(error, began)
            return
        self.give_up([source for source in blind if ends[source] <= self._marks[source].next])

    def give_up(self, blind: Iterable[TopicPartition]) -> None:
        """Wait no more for these partitions until they move."""
        for source in blind:
            mark = self._marks[source]
            mark.barren = (mark.next, mark.last)

    def lag(self) -> dict[TopicPartition, int]:
        """Offsets between what was handed out and the end; those known to hold no record don't count."""
        lags = {}
        for source, mark in self._marks.items():
            position = mark.next if self.merge.is_missing(source) else self.merge.position(source)
            lags[source] = max(0, mark.last - position)
        return lags

    def starts(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask for the offset of the oldest record that each partition holds."""
        found, ends = self._edges(self._consumer.beginning_offsets, sources), self.ends(sources)
        # the embedded broker names the end of the log when its first record is in an open transaction
        return {source: min(offset, ends[source]) for source, offset in found.items()}

    def ends(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask for the offset after the last record of each partition that can be read."""
        return self._edges(self._consumer.end_offsets, sources)

    def heard(self) -> None:
        """Note a sign of life from the broker."""
        self._heard_at = time.monotonic()
        self.patience.answered()

    def judge(self, error: KafkaError, began: float) -> None:
        """Raise what can't be retried; count the rest as no answer since `began`."""
        if lost := missed(error):
            source, wanted = lost
            start, end = self.starts([source])[source], self.ends([source])[source]
            raise gone(source, wanted, f"the topic holds {start} to {end}") from error
        if isinstance(error, kafka.errors.NoOffsetForPartitionError):
            raise RuntimeError("listener.assigned did not seek every partition") from error
        if isinstance(error, kafka.errors.FencedInstanceIdError):
            raise replaced(self._kafka) from error
        if not isinstance(error, (*MEMBERSHIP, kafka.errors.RetriableError)):
            raise translated(error, "reading events") from error
        self.patience.failed("reading events", began, error)

    def _fetch_now(self) -> bool:
        began = time.monotonic()
        try:
            fetched = self.member.poll()
        except KafkaError as error:
            self.judge(error, began)
            return False
        self._take_in(fetched)
        if not fetched and began - self._heard_at >= self._probe_every_s:
            self._probe()
        return bool(fetched or self._unchecked)

    def _take_in(self, fetched: Fetched) -> None:
        if not fetched:
            return
        if not len(self.merge):
            self.waiting_since = time.monotonic()
        for source, records in fetched.items():
            mark = self._marks.get(source)
            if mark is not None:
                self.merge.add(source, records)
                mark.next = records[-1].offset + 1
        self.heard()

    def _pause_full(self) -> None:
        """Stop fetching partitions whose buffer is full; go on with those whose buffer is half empty."""
        full = set(self.merge.full()) - self._paused
        ready = {source for source in self._paused if self.merge.wanted(source) * 2 >= self.merge.capacity}
        if full or ready:
            assigned = self._consumer.assignment()
            self._consumer.pause(*(assigned & {KafkaPartition(*source) for source in full}))
            self._consumer.resume(*(assigned & {KafkaPartition(*source) for source in ready}))
            self._paused = (self._paused | full) - ready

    def _has_more(self, source: TopicPartition, mark: _Mark) -> bool:
        end = mark.last
        if self.merge.is_missing(source):  # the client has passed offsets that hold no record
            mark.next = max(mark.next, self._consumer.position(KafkaPartition(*source), timeout_ms=0) or 0)
        return mark.next < end and mark.barren != (mark.next, end)

    def _edges(
        self, call: Callable[..., dict[KafkaPartition, int]], sources: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        theirs = [KafkaPartition(*source) for source in sources]
        if not theirs:
            return {}
        found = self.patience.insist(lambda ms: call(theirs, timeout_ms=ms), "asking for offsets")
        return {TopicPartition(*source): int(offset) for source, offset in found.items()}

    def _check_sought(self) -> None:
        """Learn the ends of partitions that were sought, and refuse positions outside of the topic."""
        sources = sorted(self._unchecked)
        if not sources:
            return
        self._unchecked.clear()
        starts, ends = self.starts(sources), self.ends(sources)
        for source in sources:
            mark, start, end = self._marks[source], starts[source], ends[source]
            if not start <= mark.next <= end:
                raise gone(source, f"offset {mark.next}", f"the topic holds {start} to {end}")
            mark.end = end

    def _probe(self) -> None:
        """Ask something small: an idle topic and a dead broker look the same to a poll."""
        began = time.monotonic()
        self._probes.append(self._probes.pop(0))  # another partition, perhaps another broker, each time
        theirs = [KafkaPartition(*self._probes[0])]
        try:
            self._consumer.end_offsets(theirs, timeout_ms=self._probe_every_s * 500)
        except KafkaError as error:
            self.judge(error, began)
        else:
            self.heard()
        if began - self._place_at >= PLACE_EVERY_S:
            self._place_at = began
            if is_replaced(self._kafka, self._consumer.group_metadata):
                raise replaced(self._kafka)

"""Merge partitions into one stream by record timestamp, from bounded buffers. No client, clock or thread.

A backlog that is read partition by partition would destroy the order of time, on which the count features
depend. So each partition has a lane, a bounded buffer, and the oldest record at the head of any lane is next
(equal timestamps: lower topic, then lower partition). Inside a partition the order is that of the offsets,
whatever the timestamps.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from pipeline.errors import OffsetsGone
from pipeline.events.batch import IntArray, Polled, Record, Span, TopicPartition


@dataclass(slots=True, eq=False)
class Lane:
    """One partition's buffer."""

    source: TopicPartition
    position: int  # offset after the last record that left in a batch
    fetched: int  # offset after the last record that was added
    buffer: deque[Record] = field(default_factory=deque)
    index: int = 0  # of its span in the batch that is closed


class Merge:
    """Merge records of several partitions by timestamp; `full` names the partitions to stop fetching."""

    def __init__(self) -> None:
        self._lanes: dict[TopicPartition, Lane] = {}
        self._heads: list[tuple[int, TopicPartition, Lane]] = []  # a heap of the lanes that hold records
        self._batch: list[Record] = []  # the open one
        self._batch_lanes: list[Lane] = []

    def assign(self, partition: TopicPartition, position: int) -> None:
        """Start or continue a partition at `position`; what was buffered of it is dropped."""
        self.release(partition)
        self._lanes[partition] = Lane(partition, position, fetched=position)

    def release(self, partition: TopicPartition) -> None:
        """Drop a partition and its records, also those in the open batch. Unknown ones are ignored."""
        lane = self._lanes.pop(partition, None)
        if lane is None:
            return
        self._find_heads()
        kept = [pair for pair in zip(self._batch, self._batch_lanes, strict=True) if pair[1] is not lane]
        self._batch = [record for record, _ in kept]
        self._batch_lanes = [owner for _, owner in kept]

    def __len__(self) -> int:
        """Return the number of records that are held, those of the open batch included."""
        return len(self._batch) + sum(len(lane.buffer) for _, _, lane in self._heads)

    def partitions(self) -> list[TopicPartition]:
        """Return every assigned partition, in order."""
        return sorted(self._lanes)

    def position(self, partition: TopicPartition) -> int:
        """Return the offset after the last record that left in a batch. Raise KeyError if not assigned."""
        return self._lanes[partition].position

    def fetched(self, partition: TopicPartition) -> int:
        """Return the offset after the last record that was added. Raise KeyError if not assigned."""
        return self._lanes[partition].fetched

    def buffered(self, partition: TopicPartition) -> int:
        """Return the number of records in the partition's buffer; 0 if not assigned.

        A partition with none that is known to have more to fetch, by the client's position, is worth a short
        wait. The position here does not tell: offsets remain after the last record of a transaction.
        """
        lane = self._lanes.get(partition)
        return 0 if lane is None else len(lane.buffer)

    def full(self, capacity: int) -> set[TopicPartition]:
        """Return the partitions with `capacity` records in their buffer, or more."""
        return {partition for _, partition, lane in self._heads if len(lane.buffer) >= capacity}

    def add(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        """Buffer records that were fetched, in the order of their offsets.

        Those of a partition that is not assigned are dropped, as are those that were added before.
        """
        lane = self._lanes.get(partition)
        if lane is not None and records and records[0].offset < lane.fetched:
            records = [record for record in records if record.offset >= lane.fetched]
        if lane is None or not records:
            return
        lane.fetched = records[-1].offset + 1
        if not lane.buffer:
            heappush(self._heads, (records[0].timestamp, partition, lane))
        lane.buffer.extend(records)

    def fill(self, limit: int, behind: Collection[TopicPartition] = ()) -> int:
        """Merge into the open batch and return its size.

        Stops at `limit` records, when all buffers are empty, or when a partition of `behind` (those that are
        known to have more to fetch) has an empty buffer, since its next record may be the oldest.
        """
        if any(lane is not None and not lane.buffer for lane in map(self._lanes.get, behind)):
            return len(self._batch)
        heads, batch, batch_lanes = self._heads, self._batch, self._batch_lanes
        while heads and len(batch) < limit:
            _, partition, lane = heads[0]
            buffer = lane.buffer
            batch.append(buffer.popleft())
            batch_lanes.append(lane)
            if buffer:
                heapreplace(heads, (buffer[0].timestamp, partition, lane))
            else:
                heappop(heads)
                if partition in behind:
                    break
        return len(batch)

    def take(self) -> Polled:
        """Close the open batch and return it; it may be empty.

        A span starts where the partition's last one stopped, so that offsets without a record (markers of
        transactions, aborted records) are inside a span and not taken for a loss.
        """
        records, lanes = self._batch, self._batch_lanes
        self._batch, self._batch_lanes = [], []
        last = {lane.source: (lane, record.offset + 1) for record, lane in zip(records, lanes, strict=True)}
        spans = []
        for index, source in enumerate(sorted(last)):
            lane, stop = last[source]
            spans.append(Span(source.topic, source.partition, lane.position, stop))
            lane.position, lane.index = stop, index
        order_R = np.fromiter((lane.index for lane in lanes), np.int32, len(lanes))
        return Polled(tuple(spans), records, order_R)

    def put_back(self, polled: Polled) -> None:
        """Return the last records of the last batch to the buffers, as the first ones.

        Those of partitions that are not assigned any more are dropped.
        """
        for index, span in enumerate(polled.spans):
            lane = self._lanes.get(span.source)
            if lane is None or lane.position != span.stop:
                continue
            mine = [r for r, at in zip(polled.records, polled.order_R.tolist(), strict=True) if at == index]
            lane.buffer.extendleft(reversed(mine))
            lane.position = span.start
        self._find_heads()

    def _find_heads(self) -> None:
        self._heads = [
            (lane.buffer[0].timestamp, source, lane) for source, lane in self._lanes.items() if lane.buffer
        ]
        heapify(self._heads)


def arrange(
    spans: tuple[Span, ...], records: Sequence[Iterable[Record]], order_R: Sequence[int] | IntArray | None
) -> Polled:
    """Return records that were read again, one iterable a span, in the order of `order_R`.

    Without an order: span by span. Raise `OffsetsGone` when a span's number of records is not that of the
    order: then they are not the same ones.
    """
    lanes = [list(lane) for lane in records]
    sizes = np.array([len(lane) for lane in lanes], np.int64)
    if order_R is None:
        order = np.repeat(np.arange(len(spans), dtype=np.int32), sizes)
        return Polled(spans, [record for lane in lanes for record in lane], order)
    order = np.asarray(order_R, np.int32)
    expected = np.bincount(order, minlength=len(spans))
    if (sizes != expected).any():
        place = int((sizes != expected).argmax())
        span = spans[place]
        raise OffsetsGone(
            f"{span.topic}-{span.partition}, offsets {span.start} to {span.stop}: found {sizes[place]} "
            f"records, expected the {expected[place]} that were learned. Let the topic keep its records "
            "longer than the oldest checkpoint, or start from an empty checkpoint folder"
        )
    cursors = [iter(lane) for lane in lanes]
    return Polled(spans, [next(cursors[index]) for index in order.tolist()], order)

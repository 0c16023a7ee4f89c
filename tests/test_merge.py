"""The merge of partitions against sorting: order, spans, bounds, partitions that come and go."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from consumers.kafka.merge import Merge, arrange
from consumers.memory import MemoryRecord
from pipeline.events.batch import Polled, TopicPartition

A, B = TopicPartition("events", 0), TopicPartition("events", 1)
LANES = (A, B, TopicPartition("more", 0), TopicPartition("more", 1))
Lane = list[tuple[int, int]]  # offset, timestamp


def rows(partition: TopicPartition, lane: Lane) -> list[MemoryRecord]:
    return [MemoryRecord(*partition, offset, timestamp, None, b"{}") for offset, timestamp in lane]


def merge_of(*lanes: Lane, start: int = 0) -> Merge:
    """Return a merge with these records of A, B ... in it, read from offset `start`."""
    merge = Merge()
    for partition, lane in zip(LANES, lanes, strict=False):
        merge.assign(partition, start)
        merge.add(partition, rows(partition, lane))
    return merge


def drained(merge: Merge, limit: int = 1_000) -> Polled:
    merge.fill(limit)
    return merge.take()


def where(polled: Polled) -> list[tuple[str, int, int]]:
    return [(record.topic, record.partition, record.offset) for record in polled.records]


def test_order_of_offsets_stands_against_timestamps_that_go_back() -> None:
    merge = merge_of([(0, 9), (1, 3), (2, 5)])
    assert [record.offset for record in drained(merge).records] == [0, 1, 2]


lanes = st.lists(st.lists(st.integers(0, 20), max_size=12).map(sorted), min_size=1, max_size=4)


@given(lanes, st.integers(1, 7), st.integers(1, 5))
def test_batches_joined_equal_one_sort(timestamps: list[list[int]], limit: int, capacity: int) -> None:
    merge = Merge()
    stored = {
        partition: rows(partition, list(enumerate(lane)))
        for partition, lane in zip(LANES, timestamps, strict=False)
    }
    fetched = dict.fromkeys(stored, 0)
    for partition in stored:
        merge.assign(partition, 0)
    merged, cuts = [], []
    while True:
        while True:
            for partition, records in stored.items():
                start = fetched[partition]
                room = capacity - merge.buffered(partition)
                merge.add(partition, records[start : start + room])
                fetched[partition] = min(len(records), start + room)
            behind = [partition for partition, records in stored.items() if fetched[partition] < len(records)]
            if merge.fill(limit, behind) == limit or not behind:
                break
        batch = merge.take()
        if not batch:
            break
        cuts.append(len(batch.records))
        merged += batch.records
        spans_cover_exactly(batch)
    everything = sorted(
        (record for records in stored.values() for record in records),
        key=lambda record: (record.timestamp, record.topic, record.partition, record.offset),
    )
    assert merged == everything
    assert all(size == limit for size in cuts[:-1])


def spans_cover_exactly(batch: Polled) -> None:
    by_source = defaultdict(list)
    for record, index in zip(batch.records, batch.order_R.tolist(), strict=True):
        span = batch.spans[index]
        assert (record.topic, record.partition) == (span.topic, span.partition)
        assert span.start <= record.offset < span.stop
        by_source[index].append(record)
    assert list(batch.spans) == sorted(batch.spans)
    again = arrange(batch.spans, [by_source[index] for index in range(len(batch.spans))], batch.order_R)
    assert again.records == batch.records


def test_a_partition_that_is_behind_holds_the_others_back_until_the_caller_gives_up() -> None:
    merge = merge_of([(0, 5), (1, 9)], [])
    assert [merge.buffered(each) for each in (A, B)] == [2, 0]
    assert merge.fill(10, behind=[B]) == 0
    merge.add(B, rows(B, [(0, 1), (1, 7)]))
    # stops as soon as B runs dry again: its next may be older than A's 9
    assert merge.fill(10, behind=[B]) == 3
    assert merge.fill(10) == 4
    assert where(merge.take()) == [("events", 1, 0), ("events", 0, 0), ("events", 1, 1), ("events", 0, 1)]


def test_a_full_partition_says_so_and_has_room_again_after_a_batch() -> None:
    merge = merge_of([])
    merge.add(A, rows(A, [(0, 1), (1, 2)]))
    assert (merge.buffered(A), merge.fetched(A), merge.full(2)) == (2, 2, {A})
    merge.fill(1)
    assert (merge.buffered(A), merge.fetched(A), merge.full(2)) == (1, 2, set())
    assert merge.buffered(B) == 0  # not assigned


def test_records_that_were_fetched_twice_are_merged_once() -> None:
    merge = merge_of([(0, 1), (1, 2), (2, 3)], start=1)
    merge.add(A, rows(A, [(1, 2), (2, 3), (3, 4)]))
    assert [record.offset for record in drained(merge).records] == [1, 2, 3]


def test_a_released_partition_leaves_nothing_behind_in_the_batch_in_the_making() -> None:
    merge = merge_of([(0, 1), (1, 3)], [(0, 2), (1, 4)])
    assert merge.fill(3) == 3
    merge.release(A)
    merge.release(A)
    assert where(drained(merge)) == [("events", 1, 0), ("events", 1, 1)]
    assert merge.partitions() == [B]
    merge.add(A, rows(A, [(2, 5)]))
    assert not drained(merge)


@given(lanes, st.integers(1, 7), st.data())
def test_records_put_back_come_first(timestamps: list[list[int]], limit: int, data: st.DataObject) -> None:
    whole, cut = (merge_of(*(list(enumerate(lane)) for lane in timestamps)) for _ in range(2))
    got: list[tuple[str, int, int]] = []
    while polled := drained(cut, limit):
        first, rest = polled.split(data.draw(st.integers(1, len(polled.records))))
        stops = {span.source: span.stop for span in (*first.spans, *rest.spans)}
        assert stops == {span.source: span.stop for span in polled.spans}
        for part in (first, rest):
            spans = [part.spans[index] for index in part.order_R.tolist()]
            assert all(s.start <= r.offset < s.stop for s, r in zip(spans, part.records, strict=True))
        if rest:
            cut.put_back(rest)
        got += where(first)
        for source in cut.partitions():
            assert cut.position(source) == sum((topic, number) == source for topic, number, _ in got)
    assert got == where(drained(whole))


def test_records_of_a_partition_that_is_gone_are_not_put_back() -> None:
    merge = merge_of([(0, 1), (1, 2)], [(0, 1), (1, 2)])
    _, rest = drained(merge).split(1)
    merge.release(A)
    merge.put_back(rest)
    assert {record.partition for record in drained(merge).records} == {B.partition}

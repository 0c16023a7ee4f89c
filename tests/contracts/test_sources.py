"""The contract of every source: order, offsets, reading again, commits, the listener. One suite over all of
them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from sources import FACTORIES, Factory, World

from pipeline.errors import OffsetsGone
from pipeline.events.batch import Polled, Record, Span, TopicPartition
from pipeline.service.ports import Source

POLLS = 60  # bound of polls that a test makes before it gives up
WAIT_S = 0.5


class Recorder:
    """A listener that seeks where it is told and keeps what it heard."""

    def __init__(self, source: Source, offsets: dict[TopicPartition, int] | None = None) -> None:
        self.source = source
        self.offsets = offsets or {}
        self.heard: list[tuple[str, list[TopicPartition]]] = []

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("assigned", sorted(partitions)))
        for partition in partitions:
            self.source.seek(partition, self.offsets.get(partition))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("revoked", sorted(partitions)))

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("lost", sorted(partitions)))


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest) -> Factory:
    made: Factory = request.param
    return made


@pytest.fixture
def world(request: pytest.FixtureRequest, factory: Factory) -> Iterator[World]:
    made = factory(request, 2)
    yield made
    made.close()


@pytest.fixture
def source(world: World) -> Iterator[Source]:
    made = world.source()
    yield made
    made.close()


def drain(source: Source, count: int, max_events: int = 100) -> list[Polled]:
    """Poll until `count` records have come, and fail when they don't."""
    polls = []
    for _ in range(POLLS):
        polled = source.poll(max_events, WAIT_S)
        if polled:
            polls.append(polled)
        if sum(len(each.records) for each in polls) >= count:
            return polls
    raise AssertionError(f"{count} records expected, {sum(len(each.records) for each in polls)} came")


def values(polls: Sequence[Polled]) -> list[bytes | None]:
    return [record.value for polled in polls for record in polled.records]


def at(records: Sequence[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


def ends(polls: Sequence[Polled]) -> dict[TopicPartition, int]:
    return {span.source: span.stop for polled in polls for span in polled.spans}


def test_a_backlog_is_merged_by_timestamp_in_full_batches(world: World, source: Source) -> None:
    for step in range(20):
        world.publish(1, 1_700_000_000_000 + 2 * step, b"b%d" % step)
    for step in range(20):
        world.publish(0, 1_700_000_000_001 + 2 * step, b"a%d" % step)
    source.start(Recorder(source))
    polls = drain(source, 40, max_events=6)
    assert values(polls) == [b"%s%d" % (name, step) for step in range(20) for name in (b"b", b"a")]
    assert [len(polled.records) for polled in polls] == [6, 6, 6, 6, 6, 6, 4]


def test_equal_timestamps_go_by_partition(world: World, source: Source) -> None:
    for partition in (1, 0, 1, 0):
        world.publish(partition, 1_700_000_000_000, b"x")
    source.start(Recorder(source))
    assert at([record for polled in drain(source, 4) for record in polled.records]) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_a_record_comes_as_it_was_sent(world: World, source: Source) -> None:
    world.publish(0, 1_700_000_000_000, b"\xff\x00", b"key")
    world.publish(0, 1_700_000_000_001, None, b"key")
    source.start(Recorder(source))
    first, second = [record for polled in drain(source, 2) for record in polled.records]
    assert (first.topic, first.timestamp, first.key, first.value) == (
        world.topic,
        1_700_000_000_000,
        b"key",
        b"\xff\x00",
    )
    assert second.value is None


def test_spans_join_from_the_place_that_was_sought(world: World, source: Source) -> None:
    for step in range(12):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source, {TopicPartition(world.topic, 0): 3}))
    spans = [span for polled in drain(source, 9, max_events=4) for span in polled.spans]
    assert spans[0].start == 3
    assert spans[-1].stop == 12
    assert all(before.stop == after.start for before, after in pairwise(spans))


def test_nothing_new_gives_an_empty_batch(world: World, source: Source) -> None:
    world.publish(0, 1_700_000_000_000, b"x")
    source.start(Recorder(source))
    drain(source, 1)
    polled = source.poll(10, 0.0)
    assert not polled
    assert polled.records == []


def test_a_batch_is_read_again_in_its_own_order(world: World, source: Source) -> None:
    for step in range(10):
        world.publish(step % 2, 1_700_000_000_000 + 7 * step % 5, b"%d" % step)
    source.start(Recorder(source))
    for polled in drain(source, 10, max_events=7):
        again = source.read(polled.spans, polled.order_R.tolist())
        assert again.spans == polled.spans
        assert again.order_R.tolist() == polled.order_R.tolist()
        assert values([again]) == values([polled])
        assert at(again.records) == at(polled.records)


def test_reading_again_leaves_the_stream_where_it_was(world: World, source: Source) -> None:
    for step in range(6):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    first = source_first(source)
    source.read(first.spans, first.order_R.tolist())
    assert values(drain(source, 3, max_events=3)) == [b"3", b"4", b"5"]


def test_spans_are_read_one_after_the_other_without_an_order(world: World, source: Source) -> None:
    for step in range(6):
        world.publish(step % 2, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    drain(source, 6)
    again = source.read((Span(world.topic, 1, 1, 3), Span(world.topic, 0, 0, 1)), None)
    assert at(again.records) == [(1, 1), (1, 2), (0, 0)]
    assert again.order_R.tolist() == [0, 0, 1]


def source_first(source: Source) -> Polled:
    (polled,) = drain(source, 3, max_events=3)
    return polled


def test_records_that_the_topic_dropped_are_gone(world: World, source: Source) -> None:
    for step in range(6):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    polled = drain(source, 6)[0]
    world.trim(0, 4)
    assert source.start_offsets([TopicPartition(world.topic, 0)]) == {TopicPartition(world.topic, 0): 4}
    with pytest.raises(OffsetsGone, match=f"{world.topic}-0"):
        source.read(polled.spans, polled.order_R.tolist())


def test_an_offset_beyond_the_topic_is_refused(world: World, source: Source) -> None:
    world.publish(0, 1_700_000_000_000, b"x")
    source.start(Recorder(source, {TopicPartition(world.topic, 0): 99}))
    with pytest.raises(OffsetsGone, match=f"{world.topic}-0"):
        drain(source, 1)


def test_commits_outlive_their_source(world: World) -> None:
    for step in range(5):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    mine, other = TopicPartition(world.topic, 0), TopicPartition(world.topic, 1)
    first = world.source()
    first.start(Recorder(first))
    polls = drain(first, 3, max_events=3)
    assert first.committed([mine, other]) == {}
    first.commit(ends(polls))
    first.close()
    second = world.source()
    try:
        second.start(Recorder(second, second.committed([mine, other])))
        assert second.committed([mine, other]) == {mine: 3}
        assert values(drain(second, 2)) == [b"3", b"4"]
        assert second.generation() > 0
    finally:
        second.close()


def test_lag_counts_down_to_nothing(world: World, source: Source) -> None:
    for step in range(5):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    drain(source, 3, max_events=3)
    assert source.lag()[TopicPartition(world.topic, 0)] == 2
    drain(source, 2)
    assert set(source.lag().values()) == {0}


def test_partitions_and_their_ends_are_known(world: World, source: Source) -> None:
    world.publish(1, 1_700_000_000_000, b"x")
    source.start(Recorder(source))
    drain(source, 1)
    both = [TopicPartition(world.topic, 0), TopicPartition(world.topic, 1)]
    assert sorted(source.partitions()) == both
    assert source.end_offsets(both) == {both[0]: 0, both[1]: 1}


def test_a_long_step_loses_no_record(world: World, source: Source) -> None:
    for step in range(8):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    first = drain(source, 2, max_events=2)
    source.keep_alive()
    source.keep_alive()
    assert values(first + drain(source, 6)) == [b"%d" % step for step in range(8)]


def test_records_put_back_come_again_first(world: World, source: Source) -> None:
    for step in range(6):
        world.publish(step % 2, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    (polled,) = drain(source, 6)
    first, rest = polled.split(2)
    source.put_back(rest)
    assert sum(source.lag().values()) == 4
    assert values([first, *drain(source, 4)]) == [b"%d" % step for step in range(6)]
    assert source.lag() == {TopicPartition(world.topic, 0): 0, TopicPartition(world.topic, 1): 0}


def test_seeking_back_gives_the_records_again(world: World, source: Source) -> None:
    for step in range(4):
        world.publish(0, 1_700_000_000_000 + step, b"%d" % step)
    source.start(Recorder(source))
    drain(source, 4)
    source.seek(TopicPartition(world.topic, 0), 2)
    (polled,) = drain(source, 2)
    assert polled.spans == (Span(world.topic, 0, 2, 4),)
    assert values([polled]) == [b"2", b"3"]


def test_the_listener_hears_of_coming_and_going_once(world: World) -> None:
    world.publish(0, 1_700_000_000_000, b"x")
    source = world.source()
    listener = Recorder(source)
    source.start(listener)
    drain(source, 1)
    source.close()
    source.close()
    both = [TopicPartition(world.topic, 0), TopicPartition(world.topic, 1)]
    assert [heard for heard in listener.heard if heard[1]] == [("assigned", both), ("revoked", both)]

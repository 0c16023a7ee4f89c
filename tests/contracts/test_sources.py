"""The contract of every source: order, offsets, reading again, commits, the listener."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from harness.clients import Recorder, ends, values
from sources import FACTORIES, SOURCES, Factory, World

import consumers
from pipeline.errors import OffsetsGone
from pipeline.events.batch import Polled, Record, Span, TopicPartition
from pipeline.service.ports import Source

POLLS = 60  # a test gives up after that many
WAIT_S = 0.5
START_MS = 1_700_000_000_000


@pytest.fixture(params=FACTORIES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    factory: Factory = request.param
    made = factory(request, 2)
    yield made
    made.close()


@pytest.fixture
def source(world: World) -> Iterator[Source]:
    made = world.source()
    yield made
    made.close()


def fill(world: World, count: int, partitions: int = 1) -> None:
    """Publish records a millisecond apart, their number as value, to the partitions in turn."""
    for number in range(count):
        world.publish(number % partitions, START_MS + number, b"%d" % number)


def numbers(start: int, stop: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


def drain(source: Source, count: int, max_events: int = 100) -> list[Polled]:
    """Poll until `count` records have come, and fail when they don't."""
    polls: list[Polled] = []
    for _ in range(POLLS):
        polls += filter(None, [source.poll(max_events, WAIT_S)])
        if len(values(polls)) >= count:
            return polls
    raise AssertionError(f"{count} records expected, {len(values(polls))} came")


def at(records: Sequence[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


def read_from(source: Source, partition: TopicPartition, offset: int) -> Polled:
    source.seek(partition, offset)
    return source.poll(10, WAIT_S)


def both(world: World) -> list[TopicPartition]:
    return [TopicPartition(world.topic, 0), TopicPartition(world.topic, 1)]


def test_every_source_of_the_product_runs_the_contract() -> None:
    names = [module.name for module in pkgutil.walk_packages(consumers.__path__, "consumers.")]
    modules = [importlib.import_module(name) for name in names]
    classes = {each for module in modules for _, each in inspect.getmembers(module, inspect.isclass)}
    own = {each for each in classes if each.__module__.startswith("consumers.")}
    assert {each for each in own if hasattr(each, "put_back") and hasattr(each, "commit")} == SOURCES


def test_a_backlog_is_merged_by_timestamp_in_full_batches(world: World, source: Source) -> None:
    for step in range(20):
        world.publish(1, START_MS + 2 * step, b"b%d" % step)
    for step in range(20):
        world.publish(0, START_MS + 1 + 2 * step, b"a%d" % step)
    Recorder(source)
    polls = drain(source, 40, max_events=6)
    assert values(polls) == [b"%s%d" % (name, step) for step in range(20) for name in (b"b", b"a")]
    assert [len(polled.records) for polled in polls] == [6, 6, 6, 6, 6, 6, 4]


def test_equal_timestamps_go_by_partition(world: World, source: Source) -> None:
    for partition in (1, 0, 1, 0):
        world.publish(partition, START_MS, b"x")
    Recorder(source)
    records = [record for polled in drain(source, 4) for record in polled.records]
    assert at(records) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_record_comes_as_it_was_sent(world: World, source: Source) -> None:
    world.publish(0, START_MS, b"\xff\x00", b"key")
    world.publish(0, START_MS + 1, None, b"key")
    Recorder(source)
    first, second = [record for polled in drain(source, 2) for record in polled.records]
    assert (first.topic, first.timestamp, first.key) == (world.topic, START_MS, b"key")
    assert (first.value, second.value) == (b"\xff\x00", None)


def test_spans_join_from_the_offset_that_was_sought(world: World, source: Source) -> None:
    fill(world, 12)
    Recorder(source, {TopicPartition(world.topic, 0): 3})
    spans = [span for polled in drain(source, 9, max_events=4) for span in polled.spans]
    assert (spans[0].start, spans[-1].stop) == (3, 12)
    assert all(before.stop == after.start for before, after in pairwise(spans))


def test_batches_are_read_again_in_their_own_order(world: World, source: Source) -> None:
    for step in range(10):
        world.publish(step % 2, START_MS + 7 * step % 5, b"%d" % step)
    Recorder(source)
    first, second, third = drain(source, 9, max_events=3)
    for polled in (first, second, third, first, third, third):
        again = source.read(polled.spans, polled.order_R.tolist())
        assert again.spans == polled.spans
        assert again.order_R.tolist() == polled.order_R.tolist()
        assert (values([again]), at(again.records)) == (values([polled]), at(polled.records))
    assert sum(len(polled.records) for polled in drain(source, 1)) == 1  # the stream has not moved


def test_spans_are_read_one_after_the_other_without_an_order(world: World, source: Source) -> None:
    fill(world, 6, partitions=2)
    Recorder(source)
    drain(source, 6)
    again = source.read((Span(world.topic, 1, 1, 3), Span(world.topic, 0, 0, 1)), None)
    assert at(again.records) == [(1, 1), (1, 2), (0, 0)]
    assert again.order_R.tolist() == [0, 0, 1]


def test_deleted_records_are_an_error_and_later_ones_are_read(world: World, source: Source) -> None:
    fill(world, 6)
    Recorder(source)
    early, late = drain(source, 6, max_events=4)
    world.trim(0, 4)
    partition = TopicPartition(world.topic, 0)
    assert source.start_offsets([partition]) == {partition: 4}
    with pytest.raises(OffsetsGone, match=f"{world.topic}-0: .*4 to 6"):
        source.read(early.spans, early.order_R.tolist())
    assert values([source.read(late.spans, late.order_R)]) == values([late])
    with pytest.raises(OffsetsGone, match=f"{world.topic}-0: .*4 to 6"):
        read_from(source, partition, 1)


def test_an_offset_beyond_the_topic_is_an_error(world: World, source: Source) -> None:
    fill(world, 1)
    Recorder(source, {TopicPartition(world.topic, 0): 99})
    with pytest.raises(OffsetsGone, match=f"{world.topic}-0: .*99.*0 to 1"):
        drain(source, 1)


def test_commits_outlive_their_source(world: World) -> None:
    fill(world, 5)
    first = world.source()
    Recorder(first)
    polls = drain(first, 3, max_events=3)
    assert first.committed(both(world)) == {}
    first.commit(ends(polls))
    first.close()
    second = world.source()
    try:
        committed = second.committed(both(world))  # before it has joined
        assert committed == {TopicPartition(world.topic, 0): 3}
        Recorder(second, committed)
        assert values(drain(second, 2)) == numbers(3, 5)
        assert second.generation() > 0
    finally:
        second.close()


def test_lag_counts_down_to_nothing_then_a_batch_is_empty(world: World, source: Source) -> None:
    fill(world, 5)
    Recorder(source)
    drain(source, 3, max_events=3)
    assert source.lag()[TopicPartition(world.topic, 0)] == 2
    drain(source, 2)
    assert set(source.lag().values()) == {0}
    polled = source.poll(10, 0.0)
    assert not polled
    assert polled.records == []


def test_partitions_and_offsets_are_known_before_the_start(world: World, source: Source) -> None:
    fill(world, 4)
    world.trim(0, 2)
    assert source.partitions() == both(world)
    first, second = both(world)
    assert source.start_offsets(both(world)) == {first: 2, second: 0}
    assert source.end_offsets(both(world)) == {first: 4, second: 0}
    assert source.generation() == 0


def test_long_steps_lose_no_record(world: World, source: Source) -> None:
    fill(world, 60, partitions=2)
    Recorder(source)
    polls: list[Polled] = []
    while len(values(polls)) < 60:
        polls.append(source.poll(7, WAIT_S))
        source.keep_alive()
        source.keep_alive()
    assert values(polls) == numbers(0, 60)


def test_records_put_back_come_again_first(world: World, source: Source) -> None:
    fill(world, 6, partitions=2)
    Recorder(source)
    (polled,) = drain(source, 6)
    first, rest = polled.split(2)
    source.put_back(rest)
    assert sum(source.lag().values()) == 4
    assert values([first, *drain(source, 4)]) == numbers(0, 6)
    assert source.lag() == dict.fromkeys(both(world), 0)


def test_seeking_back_gives_the_records_again_and_drops_the_buffer(world: World, source: Source) -> None:
    fill(world, 8)
    Recorder(source)
    drain(source, 4, max_events=4)
    partition = TopicPartition(world.topic, 0)
    source.seek(partition, 2)
    (polled,) = drain(source, 6)
    assert polled.spans == (Span(world.topic, 0, 2, 8),)
    assert values([polled]) == numbers(2, 8)
    source.seek(partition, None)
    assert values([source.poll(2, WAIT_S)]) == numbers(0, 2)


def test_the_listener_is_called_once_for_each_change_and_may_commit_what_is_revoked(world: World) -> None:
    fill(world, 3)
    source = world.source()
    listener = Recorder(source)
    polls = drain(source, 3)
    listener.on_revoked = lambda partitions: source.commit(ends(polls))
    source.close()
    source.close()
    calls = [call for call in listener.calls if call[1]]
    assert calls == [("assigned", both(world)), ("revoked", both(world))]
    again = world.source()
    assert again.committed(both(world)) == {TopicPartition(world.topic, 0): 3}
    again.close()

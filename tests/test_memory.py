"""What the source and the sink in memory do beyond their contracts: changes of the assignment by hand, and
acknowledgements and failures on demand."""

from collections.abc import Callable, Sequence

import pytest

from consumers.memory import MemoryLog, MemorySource
from pipeline.errors import PublishFailed
from pipeline.events.batch import TopicPartition
from pipeline.events.records import Ranking
from pipeline.service.ports import Publication, Source
from producers.memory import MemorySink

A, B = TopicPartition("events", 0), TopicPartition("events", 1)


class Diary:
    """A listener that writes down what it heard, with the generation at that moment."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.heard: list[tuple[str, list[TopicPartition], int]] = []
        self.on_revoked: Callable[[], None] = lambda: None

    def note(self, change: str, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append((change, list(partitions), self.source.generation()))

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.note("assigned", partitions)
        for partition in partitions:
            self.source.seek(partition, self.source.committed([partition]).get(partition))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.note("revoked", partitions)
        self.on_revoked()

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.note("lost", partitions)


def started(records: int, **options: Sequence[TopicPartition]) -> tuple[MemorySource, Diary]:
    """Return a source of numbered records in two partitions in turn, and its listener."""
    log = MemoryLog({"events": 2})
    for step in range(records):
        log.append(b"%d" % step, partition=step % 2, timestamp=step)
    source = MemorySource(log, **options)
    diary = Diary(source)
    source.start(diary)
    return source, diary


def values(source: Source, count: int = 100) -> list[bytes | None]:
    return [each.value for each in source.poll(count, 0.0).records]


def test_changes_reach_the_listener_inside_the_next_poll_in_their_order() -> None:
    source, diary = started(6, assigned=[A])
    assert values(source) == [b"0", b"2", b"4"]
    source.assign([B])
    source.revoke([A])
    source.lose([B])
    assert len(diary.heard) == 1
    assert values(source) == []
    assert diary.heard == [("assigned", [A], 1), ("assigned", [B], 2), ("revoked", [A], 2), ("lost", [B], 2)]


def test_a_partition_may_be_committed_until_it_is_gone() -> None:
    source, diary = started(4)
    source.poll(4, 0.0)
    diary.on_revoked = lambda: source.commit({A: 2})
    source.revoke([A])
    source.poll(4, 0.0)
    assert source.committed([A, B]) == {A: 2}
    with pytest.raises(ValueError, match=r"commit of events-0: it isn't assigned here"):
        source.commit({A: 2})


def test_what_was_read_ahead_of_a_lost_partition_comes_again_with_it() -> None:
    source, _ = started(6)
    assert values(source, 2) == [b"0", b"1"]
    source.commit({A: 1, B: 1})
    source.lose([A])
    assert values(source) == [b"3", b"5"]
    source.assign([A])
    assert values(source) == [b"2", b"4"]


def test_wrong_use_of_a_source_is_caught() -> None:
    source, diary = started(1)
    diary.assigned = lambda partitions: None  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="did not seek events-0, events-1"):
        source.poll(1, 0.0)
    with pytest.raises(RuntimeError, match=r"call start\(listener\) before poll"):
        MemorySource(MemoryLog()).poll(1, 0.0)


def ranking(user_id: str) -> Ranking:
    return Ranking(user_id, "r1", [], 0, 0, "attention", 0)


def test_receipts_stay_open_until_they_are_acknowledged() -> None:
    sink = MemorySink(at_once=False)
    first, second, third = (sink.publish(Publication()) for _ in range(3))
    assert not first.done()
    second.wait(1.0)
    assert all(receipt.done() for receipt in (first, second, third))


def test_a_sink_that_does_not_answer_fails_the_wait_and_a_closed_one_takes_nothing() -> None:
    sink = MemorySink(at_once=False)
    receipt = sink.publish(Publication())
    sink.answers = False
    with pytest.raises(PublishFailed, match=r"not acknowledged within 0\.5 s"):
        receipt.wait(0.5)
    sink.close()
    assert not receipt.done()
    with pytest.raises(RuntimeError, match="publish on a closed sink"):
        sink.publish(Publication())


def test_a_batch_that_fails_is_not_written_and_the_next_one_is() -> None:
    sink = MemorySink()
    sink.fail_next("disk full")
    failed = sink.publish(Publication([ranking("ann")]))
    for check in (failed.done, lambda: failed.wait(1.0)):
        with pytest.raises(PublishFailed, match="disk full"):
            check()
    assert sink.publish(Publication([ranking("bob")])).done()
    assert list(sink.outbox.newest) == ["bob"]

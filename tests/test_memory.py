"""What the source and the sink in memory do beyond their contracts: changes of the assignment by hand, a log
that outlives its sources, acknowledgements and failures on demand."""

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

    def __init__(self, source: Source, seek: bool = True) -> None:
        self.source, self.seek = source, seek
        self.heard: list[tuple[str, list[TopicPartition], int]] = []
        self.on_revoked: Callable[[], None] = lambda: None

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("assigned", list(partitions), self.source.generation()))
        for partition in partitions if self.seek else ():
            self.source.seek(partition, self.source.committed([partition]).get(partition))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("revoked", list(partitions), self.source.generation()))
        self.on_revoked()

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.heard.append(("lost", list(partitions), self.source.generation()))


def log_of(records: int) -> MemoryLog:
    log = MemoryLog({"events": 2})
    for step in range(records):
        log.append(b"%d" % step, partition=step % 2, timestamp=step)
    return log


def started(log: MemoryLog, **options: Sequence[TopicPartition]) -> tuple[MemorySource, Diary]:
    source = MemorySource(log, **options)
    diary = Diary(source)
    source.start(diary)
    return source, diary


def values(source: Source, count: int = 100) -> list[bytes | None]:
    return [each.value for each in source.poll(count, 0.0).records]


def test_changes_reach_the_listener_inside_the_next_poll_in_their_order() -> None:
    log = log_of(6)
    source, diary = started(log, assigned=[A])
    assert values(source) == [b"0", b"2", b"4"]
    source.assign([B])
    source.revoke([A])
    source.lose([B])
    assert len(diary.heard) == 1
    assert values(source) == []
    assert diary.heard == [("assigned", [A], 1), ("assigned", [B], 2), ("revoked", [A], 2), ("lost", [B], 2)]


def test_a_partition_may_be_committed_until_it_is_gone() -> None:
    source, diary = started(log_of(4))
    source.poll(4, 0.0)
    diary.on_revoked = lambda: source.commit({A: 2})
    source.revoke([A])
    source.poll(4, 0.0)
    assert source.committed([A, B]) == {A: 2}
    with pytest.raises(
        ValueError, match="commit of events-0: it isn't assigned here; expected one of events-1"
    ):
        source.commit({A: 2})


def test_what_was_read_ahead_of_a_lost_partition_comes_again_with_it() -> None:
    source, _ = started(log_of(6))
    assert values(source, 2) == [b"0", b"1"]
    source.commit({A: 1, B: 1})
    source.lose([A])
    assert values(source) == [b"3", b"5"]
    source.assign([A])
    assert values(source) == [b"2", b"4"]


def test_a_source_made_again_over_the_log_goes_on_from_the_commits() -> None:
    log = log_of(6)
    killed, _ = started(log)
    killed.poll(4, 0.0)
    killed.commit({A: 1, B: 1})
    again, diary = started(log)
    assert values(again) == [b"2", b"3", b"4", b"5"]
    assert diary.heard == [("assigned", [A, B], 2)]


def test_a_listener_that_forgets_to_seek_is_caught() -> None:
    source = MemorySource(log_of(1))
    source.start(Diary(source, seek=False))
    with pytest.raises(RuntimeError, match="did not seek events-0, events-1"):
        source.poll(1, 0.0)


def test_polling_before_the_start_is_caught() -> None:
    with pytest.raises(RuntimeError, match=r"call start\(listener\) before poll"):
        MemorySource(log_of(1)).poll(1, 0.0)


def test_offsets_of_a_log_may_have_gaps() -> None:
    log = MemoryLog()
    log.append(b"a")
    assert log.append(b"b", skip=3).offset == 4
    assert log.append(b"c", skip=4).offset == 9
    assert [each.offset for each in log.read(A, 1)] == [4, 9]
    assert [each.offset for each in log.read(A, 0, 9)] == [0, 4]
    log.trim(A, 99)
    assert (log.start(A), log.end(A)) == (10, 10)


def ranking(user_id: str) -> Ranking:
    return Ranking(user_id, "r1", [], 0, 0, "attention", 0)


def test_receipts_stay_open_until_they_are_acknowledged_in_order() -> None:
    sink = MemorySink(at_once=False)
    first, second, third = (sink.publish(Publication()) for _ in range(3))
    assert not first.done()
    sink.acknowledge(upto=first)
    assert (first.done(), second.done()) == (True, False)
    third.wait(1.0)  # what was sent before is answered before
    assert (second.done(), third.done()) == (True, True)


def test_a_sink_that_does_not_answer_fails_the_wait() -> None:
    sink = MemorySink(at_once=False)
    receipt = sink.publish(Publication())
    sink.answers = False
    with pytest.raises(PublishFailed, match=r"not acknowledged within 0\.5 s"):
        receipt.wait(0.5)
    sink.close()
    assert not receipt.done()


def test_a_batch_that_fails_is_not_written_and_the_next_one_is() -> None:
    sink = MemorySink()
    sink.fail_next("disk full")
    failed = sink.publish(Publication([ranking("ann")]))
    for check in (failed.done, lambda: failed.wait(1.0)):
        with pytest.raises(PublishFailed, match="disk full"):
            check()
    assert sink.publish(Publication([ranking("bob")])).done()
    assert list(sink.outbox.newest) == ["bob"]


def test_a_closed_sink_takes_nothing() -> None:
    sink = MemorySink(at_once=False)
    receipt = sink.publish(Publication())
    sink.close()
    assert receipt.done()
    with pytest.raises(RuntimeError, match="publish on a closed sink"):
        sink.publish(Publication())

"""The loop: the order of its steps, commits, stopping, errors."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from harness.workers import P0, START_MS, Worker, publish, settings_for

from consumers.memory import MemoryLog, MemorySource
from pipeline.errors import AfreshError, OffsetsGone, PublishFailed, SafetyLimit
from pipeline.events.batch import TopicPartition
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.journal import Journal
from pipeline.service.delivery import drop_committed
from pipeline.service.guard import MAX_NON_FINITE_STEPS, Guard


def filled(*users: Iterable[str]) -> MemoryLog:
    """Return a log with one event a user, each group of users in a partition of its own."""
    log = MemoryLog({"events": len(users)})
    for number, group in enumerate(users):
        publish(log, group, TopicPartition("events", number))
    return log


def started(log: MemoryLog, folder: Path | None, name: str = "worker-0", **parts: Any) -> Worker:
    worker = Worker(log, parts.pop("settings", None) or settings_for(folder, name), **parts)
    worker.loop.start()
    return worker


def finished(log: MemoryLog, folder: Path | None, name: str = "worker-0", **parts: Any) -> Worker:
    worker = started(log, folder, name, **parts)
    worker.finish()
    return worker


def restarted(worker: Worker, **parts: Any) -> Worker:
    worker.kill()
    again = Worker(worker.log, worker.settings, **parts)
    again.loop.start()
    return again


def assert_restored(worker: Worker, **parts: Any) -> Worker:
    """Kill a worker and start it again with an equal state."""
    again = restarted(worker, **parts)
    assert again.learner.digests() == worker.learner.digests()
    again.kill()
    return again


def checkpoints(worker: Worker) -> Checkpoints:
    assert worker.survival is not None
    return worker.survival.checkpoints


def ranked(worker: Worker) -> list[str]:
    return [ranking.user_id for ranking in worker.outbox.rankings]


def replayed(folder: Path, log: MemoryLog) -> dict[str, str]:
    """Return the digests after a worker's whole journal was learned from an empty state."""
    reference = Worker(log, settings_for(folder))
    for entry in Journal(folder / "worker-0").entries(0):
        polled = MemorySource(log).read(entry.spans, entry.order_R)
        reference.learner.step(reference.loop._decoder.decode(entry.seq, entry.now_ms, polled))
    return reference.learner.digests()


def test_a_batch_is_journaled_then_learned_then_published_then_committed(tmp_path: Path) -> None:
    calls: list[str] = []

    class Traced:
        def __init__(self, name: str, part: Any) -> None:
            self.name, self.part = name, part

        def __getattr__(self, attribute: str) -> Any:
            if attribute in ("start", "append", "step", "publish", "commit"):
                calls.append(f"{self.name}.{attribute}")
            return getattr(self.part, attribute)

    log = filled(["ann", "bob"])
    worker = Worker(log, settings_for(tmp_path), wrap=Traced)
    assert worker.survival is not None
    object.__setattr__(worker.survival, "journal", Traced("journal", worker.survival.journal))
    worker.loop.start()
    worker.clock.advance(2)
    worker.loop.tick()
    assert calls == ["source.start", "journal.append", "learner.step", "sink.publish", "source.commit"]
    assert log.committed == {P0: 2}


def test_nothing_is_committed_before_it_is_acknowledged(tmp_path: Path) -> None:
    log = filled("abcdefgh")
    worker = started(log, tmp_path)
    worker.sink.at_once = False
    worker.loop.tick()
    worker.settle()  # publishes the second batch, after the first was acknowledged
    assert len(worker.outbox.rankings) == 8
    assert log.committed == {P0: 4}
    worker.sink.acknowledge()
    worker.settle()
    assert log.committed == {P0: 8}


def test_offsets_are_committed_about_once_a_second() -> None:
    log = filled("abcdefgh")
    worker = finished(log, None)
    assert log.committed == {}
    worker.clock.advance(1.0)
    worker.loop.tick()
    assert log.committed == {P0: 8}
    publish(log, "i", start=8)
    worker.loop.tick()
    assert log.committed == {P0: 8}


@pytest.mark.parametrize("answers", [True, False], ids=["rejected", "not acknowledged"])
def test_a_batch_that_is_not_delivered_ends_the_run_without_a_commit(tmp_path: Path, answers: bool) -> None:
    log = filled("abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    if answers:
        worker.sink.fail_next("the broker is full")
    worker.sink.at_once, worker.sink.answers = answers, answers
    with pytest.raises(PublishFailed, match="the broker is full" if answers else "not acknowledged"):
        worker.loop.run()
    assert log.committed == {}
    again = started(log, tmp_path)
    assert ranked(again)[:4] == list("abcd")
    again.finish()
    again.settle()
    assert log.committed == {P0: 8}
    assert again.learner.digests() == replayed(tmp_path, log)


def test_replayed_batches_are_acknowledged_before_the_group_is_joined(tmp_path: Path) -> None:
    log = filled("abcd")
    worker = started(log, tmp_path)
    worker.loop.tick()
    worker.kill()
    again = Worker(log, settings_for(tmp_path))
    again.sink.at_once, again.sink.answers = False, False
    with pytest.raises(PublishFailed):
        again.loop.start()
    assert log.committed == {}


def test_partitions_that_another_worker_has_committed_are_dropped_from_a_replayed_batch() -> None:
    log = filled(["ann"], ["bob"])
    for number in (0, 1):
        log.append(b"{", partition=number, timestamp=START_MS + 2 + number)
    worker = Worker(log, settings_for(None))
    worker.source.start(worker.loop.partitions)
    raw = worker.loop._decoder.decode(0, START_MS + 4, worker.source.poll(10, 0))
    outcome = worker.learner.step(raw)
    rest, left = drop_committed(raw, outcome, {P0: 2})
    assert [ranking.user_id for ranking in left.rankings] == ["bob"]
    assert [reject.record.partition for reject in rest.rejects] == [1]
    assert drop_committed(raw, outcome, {P0: 1}) == (raw, outcome)


def test_without_a_path_it_starts_at_the_commit_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    log = filled("abc", "xyz")
    log.committed = {P0: 2}
    worker = finished(log, None)
    assert sorted(ranked(worker)) == ["c", "x", "y", "z"]
    assert caplog.text.count("checkpoint.path is empty") == 1


def test_stopping_saves_commits_and_leaves(tmp_path: Path) -> None:
    log = filled("abcdef")
    worker = Worker(log, settings_for(tmp_path))
    step = worker.learner.step

    def step_and_stop(*args: Any) -> Any:
        worker.loop.stop()  # as a signal does, during the first batch
        return step(*args)

    worker.learner.step = step_and_stop  # type: ignore[method-assign]
    worker.loop.run()
    assert log.committed == {P0: 4}
    assert worker.sink.closed
    assert not assert_restored(worker).outbox.rankings


def test_stopping_during_a_replay_changes_nothing(tmp_path: Path) -> None:
    log = filled("abcdefgh")
    worker = finished(log, tmp_path)
    worker.kill()
    hurried = Worker(log, settings_for(tmp_path))
    hurried.loop.stop()
    hurried.loop.run()
    assert log.committed == {}
    assert_restored(worker)


def test_bad_records_over_the_limit_stop_the_loop_before_they_are_published(tmp_path: Path) -> None:
    log = filled("abcd")
    for number in range(8):
        log.append(b"{", timestamp=START_MS + 10 + number)
    worker = Worker(log, settings_for(tmp_path, max_consecutive_dead_letters=5))
    message = r"8 bad records in a row.*max_consecutive_dead_letters = 5.*offset 11, not_json"
    with pytest.raises(SafetyLimit, match=message):
        worker.loop.run()
    assert len(worker.outbox.rejects) == 4


def test_the_ratio_of_bad_records_is_taken_over_many_batches() -> None:
    log = MemoryLog()
    for number in range(1200):
        if number % 3:
            log.append(b"{", timestamp=START_MS + number)
        else:
            publish(log, ["ann"], start=number)
    worker = Worker(log, settings_for(None, max_dead_letter_ratio=0.6))
    with pytest.raises(SafetyLimit, match=r"67% of the last 1000 records.*max_dead_letter_ratio = 0.6"):
        worker.loop.run()
    assert worker.learner.seq == 249


def assert_fails(log: MemoryLog, folder: Path, error: type[AfreshError], message: str) -> None:
    with pytest.raises(error, match=message):
        Worker(log, settings_for(folder)).loop.run()


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    log = filled("abcdefgh")
    finished(log, tmp_path).kill()
    log.trim(P0, 2)
    assert_fails(log, tmp_path, OffsetsGone, "events-0")


def test_a_recreated_topic_is_an_error(tmp_path: Path) -> None:
    worker = finished(filled("abcdefgh"), tmp_path)
    worker.loop.leave()
    worker.kill()
    message = r"offset 8 comes next, but the topic holds 0 to 2.*recreated"
    assert_fails(filled("xy"), tmp_path, OffsetsGone, message)


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(0.5, 100)
    for seq in range(5 * MAX_NON_FINITE_STEPS):  # a finite step or one without a target resets the count
        guard.check_step(seq, "non_finite" if seq % MAX_NON_FINITE_STEPS else ("", "no_target")[seq % 2])
    assert "batch 3: loss or gradient not finite" in caplog.text
    with pytest.raises(SafetyLimit, match=rf"{MAX_NON_FINITE_STEPS} training steps in a row.*older check"):
        guard.check_step(5 * MAX_NON_FINITE_STEPS, "non_finite")

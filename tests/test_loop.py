"""The loop: the order of its steps, commits, stopping, and partitions that are assigned and revoked."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.clock import ManualClock
from harness.workers import P0, P1, P2, START_MS, Worker, publish, settings_for

from consumers.memory import MemoryLog, MemorySource
from pipeline.errors import AfreshError, CheckpointError, OffsetsGone, PublishFailed, SafetyLimit
from pipeline.events.batch import RawBatch, TopicPartition
from pipeline.outcome import Outcome
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.journal import Journal
from pipeline.service.delivery import drop_committed
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver
from pipeline.settings import EventsConfig, Settings
from producers.memory import Outbox

LINES = EventsConfig(fields={"item_id": "lines[].id"}, roles={"look": "ignore"})


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
    """Kill a worker and start it again."""
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


def learned_users(log: MemoryLog, sources: Sequence[TopicPartition]) -> dict[str, Any]:
    """Return the users' state after every event of the partitions was learned once."""
    log.committed, kept = {}, log.committed
    one = started(log, None, assigned=sources)
    one.finish(10_000)
    log.committed = kept
    return {user: state for source in sources for user, state in one.learner.users.get(source, {}).items()}


# ---- the order of the steps


def test_a_batch_is_journaled_then_learned_then_published_then_committed(tmp_path: Path) -> None:
    calls: list[str] = []

    class Traced:
        """Notes the calls of some methods of a part."""

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


def test_committed_batches_are_not_published_again(tmp_path: Path) -> None:
    log = filled("abcdefgh")
    worker = started(log, tmp_path)
    worker.loop.tick()
    worker.settle()  # commits both batches
    publish(log, "ij", start=8)
    worker.loop.tick()
    again = restarted(worker)
    assert ranked(again) == ["i", "j"]
    assert again.learner.events_learned == 10


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


# ---- stopping


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


# ---- records that are no event, or several


def with_lines(folder: Path, **limits: Any) -> Settings:
    return msgspec.structs.replace(settings_for(folder, **limits), events=LINES)


def publish_lines(log: MemoryLog, number: int, *items: str, partition: int = 0) -> None:
    value = {"user_id": "ann", "lines": [{"id": item} for item in items]}
    log.append(msgspec.json.encode(value), partition=partition, timestamp=START_MS + number)


def test_batches_of_ignored_records_are_committed_and_exceed_no_limit(tmp_path: Path) -> None:
    log = MemoryLog({"events": 2})
    for number in range(9):
        log.append(b'{"event_type":"look"}', partition=0, timestamp=START_MS + number)
        log.append(None, partition=1, timestamp=START_MS + number)
    clock, metrics = ManualClock(START_MS), Metrics()
    settings = with_lines(tmp_path, max_consecutive_dead_letters=1, max_dead_letter_ratio=0.001)
    observer = MetricsObserver(metrics, Health(clock), clock)
    worker = finished(log, tmp_path, settings=settings, observer=observer)
    worker.settle()
    assert log.committed == worker.learner.offsets == {P0: 9, P1: 9}
    assert (worker.learner.events_learned, worker.outbox.rejects, worker.outbox.rankings) == (0, [], [])
    for name in ("look", "tombstone"):
        assert metrics.registry.get_sample_value("afresh_events_ignored_total", {"type": name}) == 9
    assert_restored(worker)


def test_a_batch_holds_at_most_max_events_or_one_record(tmp_path: Path) -> None:
    log = MemoryLog({"events": 2})
    lines = [1, 3, 2, 7, 1, 1, 1, 1]  # of each record; a batch has room for 4 events
    for number, count in enumerate(lines):
        publish_lines(log, number, *(f"i{line}" for line in range(count)), partition=number % 2)
    worker = Worker(log, with_lines(tmp_path))
    sizes: list[int] = []
    step = worker.learner.step

    def noting(raw: RawBatch, *mark: Any) -> Outcome:
        sizes.append(len(raw.events))
        return step(raw, *mark)

    worker.learner.step = noting  # type: ignore[method-assign]
    worker.loop.start()
    worker.finish()
    assert sizes == [4, 2, 7, 4]
    assert worker.learner.events_learned == sum(lines)
    assert_restored(worker)


def test_another_worker_catches_up_with_several_events_a_record(tmp_path: Path) -> None:
    log = MemoryLog()
    for number in range(6):
        publish_lines(log, number, f"i{number}", "tea")
    first = finished(log, tmp_path, settings=with_lines(tmp_path))
    first.settle()
    first.kill()
    other = started(log, tmp_path, settings=with_lines(tmp_path, worker="worker-1"))
    other.settle()
    assert other.learner.users == first.learner.users


# ---- errors


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


def test_a_second_process_with_the_same_worker_id_is_an_error(tmp_path: Path) -> None:
    log = MemoryLog()
    first = started(log, tmp_path)
    assert_fails(log, tmp_path, CheckpointError, r"another process.*kafka\.worker_id")
    first.kill()


# ---- partitions that are assigned, revoked and lost


def test_a_revoked_partition_is_handed_over_as_a_shard(tmp_path: Path) -> None:
    log, outbox = filled(["ann", "bob", "ann"], ["xia", "yan"]), Outbox()
    old = finished(log, tmp_path, "old", outbox=outbox)
    old.source.revoke([P1])
    old.loop.tick()
    assert log.committed[P1] == 2
    assert checkpoints(old).shards.newest([P1]) == {P1: 2}
    assert P1 not in old.learner.offsets
    new = started(log, tmp_path, "new", outbox=outbox, assigned=[P1])
    published = len(outbox.rankings)
    publish(log, ["xia"], P1, start=5)
    new.finish()
    assert new.learner.users[P1] == learned_users(log, [P1])
    assert new.learner.events_learned == 1
    assert len(outbox.rankings) == published + 1


def test_a_dead_workers_partition_is_caught_up_from_its_shard_to_the_commit(tmp_path: Path) -> None:
    log, outbox = filled(["ann", "bob"], []), Outbox()
    dead = finished(log, tmp_path, "dead", outbox=outbox)
    dead.loop.checkpoint()
    publish(log, ["ann", "cid", "dan", "ann", "eve"], start=2)
    dead.finish()
    dead.settle()
    dead.kill()
    published = len(outbox.rankings)
    publish(log, ["ann"], start=7)
    heir = finished(log, tmp_path, "heir", outbox=outbox, assigned=[P0])
    assert heir.learner.users[P0] == learned_users(log, [P0])
    assert heir.learner.events_learned == 1  # the model learns only events after the commit
    assert ranked(heir)[published:] == ["ann"]


def test_a_partition_without_a_shard_is_caught_up_from_the_earliest_record(tmp_path: Path) -> None:
    log = filled(["ann", "bob", "ann", "cid"])
    log.trim(P0, 1)
    log.committed = {P0: 3}
    worker = finished(log, tmp_path)
    assert sorted(worker.learner.users[P0]) == ["ann", "bob", "cid"]
    assert ranked(worker) == ["cid"]


def test_the_previous_shard_replaces_a_damaged_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = filled(["ann", "bob"])
    old = started(log, tmp_path, "old")
    for start in (2, 4):
        old.finish()
        old.loop.checkpoint()
        publish(log, ["ann", "cid"], start=start)
    old.kill()
    newest = checkpoints(old).shards.all()[-1]
    (tmp_path / newest.path).write_bytes(b"torn")
    heir = finished(log, tmp_path, "heir")
    assert heir.learner.users[P0] == learned_users(log, [P0])
    assert newest.path in caplog.text


def test_a_shard_beyond_the_commit_sets_the_position(tmp_path: Path) -> None:
    log = filled(["ann", "bob"], [])
    first = finished(log, tmp_path, "first")
    first.settle()
    first.kill()
    publish(log, ["ann", "cid"], start=2)
    second = finished(log, tmp_path, "second")
    log.committed, kept = {}, dict(log.committed)
    second.source.revoke([P0])
    second.loop.tick()
    log.committed = kept  # as if the commit at the revocation had failed
    second.kill()
    again = started(log, tmp_path, "first")
    publish(log, ["ann"], start=4)
    again.finish()
    assert again.learner.users[P0] == learned_users(log, [P0])
    assert ranked(again) == ["ann"]
    again.settle()
    assert log.committed == {P0: 5}


def test_a_commit_never_moves_back_behind_another_workers(tmp_path: Path) -> None:
    log = filled(["ann", "bob", "ann", "cid", "dan"])
    worker = started(log, tmp_path)
    worker.loop.tick()  # four events, not committed
    again = restarted(worker)
    log.committed = {P0: 5}  # by another worker
    again.loop.tick()
    again.settle()
    assert log.committed == {P0: 5}
    assert again.learner.users[P0] == learned_users(log, [P0])


def test_a_lost_partition_is_never_committed(tmp_path: Path) -> None:
    log = filled("abcd", "")
    worker = started(log, tmp_path)
    worker.sink.at_once = False
    worker.loop.tick()  # published, not acknowledged
    worker.source.lose([P0])
    worker.sink.acknowledge()
    worker.settle()
    assert log.committed == {}
    assert P0 not in worker.learner.offsets


def test_a_rebalance_is_saved_before_the_next_batch(tmp_path: Path) -> None:
    worker = started(filled("abcdef", "uvwxyz"), tmp_path)
    worker.loop.tick()
    worker.source.revoke([P1])
    worker.loop.tick()
    assert checkpoints(worker).saved_seq == worker.learner.seq == 1
    worker.finish()
    assert_restored(worker, assigned=[P0])


def test_users_of_partitions_reassigned_while_it_was_down_are_dropped(tmp_path: Path) -> None:
    log = filled("abc", "xyz")
    again = restarted(finished(log, tmp_path), assigned=[P0])
    publish(log, "d", start=9)
    again.finish()
    again.clock.advance(61)
    again.loop.tick()
    assert list(again.learner.offsets) == [P0]


@pytest.mark.parametrize("seed", range(30))
def test_users_learn_every_event_once_whatever_the_group_does(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    log = MemoryLog({"events": 3})
    outbox = Outbox()
    owners: dict[TopicPartition, str] = dict.fromkeys((P0, P1, P2), "worker-0")
    names = ["worker-0", "worker-1"]

    def start(name: str) -> Worker:
        mine = [source for source, owner in owners.items() if owner == name]
        worker = Worker(log, settings_for(tmp_path, name), outbox, assigned=mine)
        worker.loop.start()
        worker.loop.tick()
        return worker

    workers = {name: start(name) for name in names}
    for number in range(120):
        source = chance.choice((P0, P1, P2))
        publish(log, [f"u{source.partition}{chance.randrange(3)}"], source, start=number)
        name = chance.choice(names)
        worker = workers[name]
        match chance.randrange(12):
            case 0:  # killed, and back at once
                worker.kill()
                workers[name] = start(name)
            case 1 | 2 if owners[source] == name:  # handed over, or taken away from a member that hung
                heir = next(other for other in names if other != name)
                owners[source] = heir
                if chance.random() < 0.5:
                    worker.source.revoke([source])
                else:
                    worker.source.lose([source])
                worker.loop.tick()
                workers[heir].source.assign([source])
            case 3:
                worker.clock.advance(61)
            case _:
                worker.clock.advance(chance.choice([0.1, 1.5]))
                worker.loop.tick()
    for worker in workers.values():
        worker.finish()
        worker.loop.leave()
        worker.kill()
    final = {name: start(name) for name in names}
    users = {
        user: state
        for source, owner in owners.items()
        for user, state in final[owner].learner.users.get(source, {}).items()
    }
    assert users == learned_users(log, (P0, P1, P2))
    newest = {user: [item.item_id for item in ranking.items] for user, ranking in outbox.newest.items()}
    assert newest == {user: state[2] for user, state in users.items()}


# ---- the items topic


@pytest.fixture
def items() -> MemoryLog:
    return MemoryLog({"items": 1})


def withdraw(items: MemoryLog, *names: str) -> None:
    """Append a tombstone for each of these items."""
    for name in names:
        items.append(None, topic="items", key=name.encode())


def shown(worker: Worker) -> set[str]:
    """Return the items of all newest lists."""
    return {item.item_id for ranking in worker.outbox.newest.values() for item in ranking.items}


def reading(log: MemoryLog, folder: Path, items: MemoryLog) -> Worker:
    """Start a worker and let it read the items topic to its end."""
    worker = started(log, folder, items=items)
    while not worker.loop.catalog.complete:
        worker.loop.tick()
    return worker


def test_the_items_topic_is_read_to_its_end_before_the_first_event(tmp_path: Path, items: MemoryLog) -> None:
    withdraw(items, *(f"item-{number}" for number in range(1, 6)))
    worker = reading(filled(["ann", "bob"]), tmp_path, items)
    assert (worker.learner.seq, worker.learner.events_learned) == (3, 0)  # two records a poll
    worker.finish()
    assert shown(worker) == {"item-0"}


def test_lists_are_refreshed_without_an_event_when_an_item_is_withdrawn(
    tmp_path: Path, items: MemoryLog
) -> None:
    worker = reading(filled(["ann", "bob", "cyd"]), tmp_path, items)
    worker.finish()
    assert shown(worker) == {"item-0", "item-1", "item-2"}
    withdraw(items, "item-1")
    worker.settle()
    assert shown(worker) == {"item-0", "item-2"}
    assert worker.learner.seq == 2


def test_a_bad_record_of_the_items_topic_is_a_dead_letter(tmp_path: Path, items: MemoryLog) -> None:
    items.append(b"{", topic="items", key=b"lamp")
    worker = reading(filled(["ann"]), tmp_path, items)
    worker.finish()
    (reject,) = worker.outbox.rejects
    assert (reject.reason, reject.record.topic, reject.record.value) == ("not_json", "items", b"{")
    assert worker.learner.events_learned == 1


def test_a_restart_continues_the_items_topic_at_its_offset(tmp_path: Path, items: MemoryLog) -> None:
    withdraw(items, "item-0")
    worker = reading(filled(["ann", "bob"]), tmp_path, items)
    worker.finish()
    items.trim(TopicPartition("items", 0), 1)  # as compaction may: the journal holds the record
    again = restarted(worker, outbox=worker.outbox, items=items)
    assert again.learner.withdrawn == {"item-0"}
    assert again.learner.item_offsets == {TopicPartition("items", 0): 1}
    withdraw(items, "item-1")
    again.settle()
    again.settle()
    assert shown(again) == set()

"""Partitions that are assigned, revoked and lost: each user's state moves whole, and only once."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.workers import P0, P1, P2, Worker, publish, settings_for
from test_loop import assert_restored, checkpoints, filled, finished, ranked, restarted, started

from consumers.memory import MemoryLog
from pipeline.events.batch import TopicPartition
from producers.memory import Outbox


def learned_users(log: MemoryLog, sources: Sequence[TopicPartition]) -> dict[str, Any]:
    """Return the users' state after every event of the partitions was learned once."""
    log.committed, kept = {}, log.committed
    one = started(log, None, assigned=sources)
    one.finish(10_000)
    log.committed = kept
    return {user: state for source in sources for user, state in one.learner.users.get(source, {}).items()}


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

"""The loop: the order of its steps, what is committed when, stopping, and partitions that come and go."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from learners import CountingLearner
from workers import P0, P1, P2, START_MS, Worker, publish, settings_for

from consumers.memory import ListLog, ListSource
from pipeline.errors import CheckpointError, OffsetsGone, PublishFailed, SafetyLimit
from pipeline.events.batch import RawBatch, TopicPartition
from pipeline.outcome import Outcome
from pipeline.persistence.journal import Journal
from pipeline.service.clock import ManualClock
from pipeline.service.health import Health
from pipeline.service.in_flight import unheard
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver
from pipeline.settings import EventsConfig, KafkaConfig
from producers.memory import Outbox


class Trace:
    """Notes the order in which parts of the loop are called."""

    NAMED = ("step", "publish", "commit", "snapshot", "start", "close")

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, name: str, part: Any) -> Any:
        trace = self

        class Traced:
            def __getattr__(self, attribute: str) -> Any:
                found = getattr(part, attribute)
                if attribute not in trace.NAMED:
                    return found

                def call(*args: Any) -> Any:
                    trace.calls.append(f"{name}.{attribute}")
                    return found(*args)

                return call

        return Traced()


def repeated(folder: Path, log: ListLog, worker: str = "worker-0") -> CountingLearner:
    """Learn a worker's whole journal from an empty state."""
    settings = settings_for(folder, worker)
    reference = Worker(log, settings)
    for entry in Journal(folder / worker).entries(0):
        polled = ListSource(log).read(entry.spans, entry.order_R)
        reference.learner.step(reference.loop._decoder.decode(entry.seq, entry.now_ms, polled))
    return reference.learner


def learned_users(log: ListLog, sources: Sequence[TopicPartition]) -> dict[str, Any]:
    """Return users' state after each event of the partitions was learned once."""
    one = Worker(log, settings_for(None), assigned=sources)
    log.committed, kept = {}, log.committed
    one.loop.start()
    one.finish(10_000)
    log.committed = kept
    return {user: state for source in sources for user, state in one.learner.users.get(source, {}).items()}


def test_a_batch_is_journaled_then_learned_then_published_then_committed(tmp_path: Path) -> None:
    trace = Trace()
    log = ListLog()
    publish(log, ["ann", "bob"])
    worker = Worker(log, settings_for(tmp_path), wrap=trace)
    append = worker.survival.journal.append  # type: ignore[union-attr]
    worker.survival.journal.append = lambda entry: (trace.calls.append("journal.append"), append(entry))[1]  # type: ignore
    worker.loop.start()
    worker.clock.advance(2)
    worker.loop.tick()
    assert trace.calls == [
        "source.start", "journal.append", "learner.step", "sink.publish", "source.commit",
    ]  # fmt: skip
    assert log.committed == {P0: 2}


def test_nothing_is_committed_before_it_is_acknowledged(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.sink.at_once = False
    worker.loop.start()
    worker.loop.tick()
    worker.settle()  # publishes the second batch, for which the first had to be acknowledged
    assert len(worker.outbox.rankings) == 8
    assert log.committed == {P0: 4}
    worker.sink.acknowledge()
    worker.settle()
    assert log.committed == {P0: 8}


def test_offsets_are_committed_about_once_a_second() -> None:
    trace = Trace()
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(None), wrap=trace)
    worker.loop.start()
    worker.finish()
    assert "source.commit" not in trace.calls
    worker.clock.advance(1.0)
    worker.loop.tick()
    worker.loop.tick()
    assert trace.calls.count("source.commit") == 1


def test_a_batch_that_is_not_acknowledged_ends_the_run_without_a_commit(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.sink.fail_next("the broker is full")
    with pytest.raises(PublishFailed, match="the broker is full"):
        worker.loop.run()
    assert log.committed == {}
    again = Worker(log, settings_for(tmp_path))
    again.loop.start()
    assert [ranking.user_id for ranking in again.outbox.rankings] == list("abcd")
    again.finish()
    again.settle()
    assert log.committed == {P0: 8}
    assert again.learner.digests() == repeated(tmp_path, log).digests()


def test_an_acknowledgement_that_never_comes_ends_the_run(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.sink.at_once, worker.sink.answers = False, False
    with pytest.raises(PublishFailed, match="not acknowledged"):
        worker.loop.run()
    assert log.committed == {}


def test_what_is_published_again_is_acknowledged_before_the_group_is_joined(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcd")
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.loop.tick()
    worker.kill()
    again = Worker(log, settings_for(tmp_path))
    again.sink.at_once, again.sink.answers = False, False
    with pytest.raises(PublishFailed):
        again.loop.start()
    again.kill()
    assert log.committed == {}


def test_what_the_group_has_committed_is_not_published_again(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.loop.tick()
    worker.settle()  # commits both batches
    publish(log, "ij", start=8)
    worker.loop.tick()
    worker.kill()
    again = Worker(log, settings_for(tmp_path))
    again.loop.start()
    assert [ranking.user_id for ranking in again.outbox.rankings] == ["i", "j"]
    assert again.learner.events_learned == 10
    again.kill()


def test_what_another_worker_has_committed_is_left_out_of_a_batch_published_again(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, ["ann"])
    publish(log, ["bob"], P1, start=1)
    log.append(b"{", partition=0, timestamp=START_MS + 2)
    log.append(b"{", partition=1, timestamp=START_MS + 3)
    worker = Worker(log, settings_for(None))
    worker.source.start(worker.loop.partitions)
    polled = worker.source.poll(10, 0)
    raw = worker.loop._decoder.decode(0, START_MS + 4, polled)
    outcome = worker.learner.step(raw)
    rest, told = unheard(raw, outcome, {P0: 2})
    assert [ranking.user_id for ranking in told.rankings] == ["bob"]
    assert [reject.record.partition for reject in rest.rejects] == [1]
    assert unheard(raw, outcome, {P0: 1}) == (raw, outcome)


def test_without_a_path_it_starts_at_the_commit_and_says_once_that_nothing_survives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = ListLog({"events": 2})
    publish(log, "abc")
    publish(log, "xyz", P1)
    log.committed = {P0: 2}
    worker = Worker(log, settings_for(None))
    with caplog.at_level(logging.WARNING):
        worker.loop.start()
        worker.finish()
    assert sorted(ranking.user_id for ranking in worker.outbox.rankings) == ["c", "x", "y", "z"]
    assert caplog.text.count("checkpoint.path is empty") == 1


def test_stopping_saves_commits_and_leaves(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdef")
    worker = Worker(log, settings_for(tmp_path))
    step = worker.learner.step

    def step_and_stop(*args: Any) -> Any:
        worker.loop.stop()  # as a signal does, in the middle of the first batch
        return step(*args)

    worker.learner.step = step_and_stop  # type: ignore[method-assign]
    worker.loop.run()
    assert log.committed == {P0: 4}
    assert worker.sink.closed
    again = Worker(log, settings_for(tmp_path))
    again.loop.start()
    assert again.learner.digests() == worker.learner.digests()
    assert not again.outbox.rankings
    again.kill()


def test_stopping_while_learning_again_leaves_everything_as_it_was(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.finish()
    worker.kill()
    hurried = Worker(log, settings_for(tmp_path))
    hurried.loop.stop()
    hurried.loop.run()
    assert log.committed == {}
    again = Worker(log, settings_for(tmp_path))
    again.loop.start()
    assert again.learner.digests() == worker.learner.digests()
    again.kill()


LOOKS = EventsConfig(fields={"item_id": "lines[].id"}, roles={"look": "ignore"})


def test_batches_of_ignored_records_alone_are_committed_and_stop_nothing(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    for number in range(9):
        log.append(b'{"event_type":"look"}', partition=0, timestamp=START_MS + number)
        log.append(None, partition=1, timestamp=START_MS + number)
    clock, metrics = ManualClock(START_MS), Metrics()
    settings = settings_for(tmp_path, max_consecutive_dead_letters=1, max_dead_letter_ratio=0.001)
    settings = msgspec.structs.replace(settings, events=LOOKS)
    worker = Worker(log, settings, observer=MetricsObserver(metrics, Health(clock), clock))
    worker.loop.start()
    worker.finish()
    worker.settle()
    assert log.committed == {P0: 9, P1: 9}
    assert worker.learner.offsets == {P0: 9, P1: 9}
    assert (worker.learner.events_learned, worker.outbox.rejects, worker.outbox.rankings) == (0, [], [])
    counted = [
        metrics.registry.get_sample_value("afresh_events_ignored_total", {"type": name})
        for name in ("look", "tombstone")
    ]
    assert counted == [9, 9]
    worker.kill()
    again = Worker(log, settings)
    again.loop.start()
    assert again.learner.digests() == worker.learner.digests()
    again.kill()


def test_a_batch_holds_at_most_max_events_or_one_record(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    lines = [1, 3, 2, 7, 1, 1, 1, 1]  # of each record; a batch has room for 4 events
    for number, count in enumerate(lines):
        value = {"user_id": "ann", "lines": [{"id": f"i{line}"} for line in range(count)]}
        log.append(msgspec.json.encode(value), partition=number % 2, timestamp=START_MS + number)
    worker = Worker(log, msgspec.structs.replace(settings_for(tmp_path), events=LOOKS))
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
    worker.kill()
    again = Worker(log, worker.settings)
    again.loop.start()
    assert again.learner.digests() == worker.learner.digests()
    again.kill()


def test_another_worker_catches_up_with_several_events_a_record(tmp_path: Path) -> None:
    log = ListLog()
    for number in range(6):
        value = {"user_id": "ann", "lines": [{"id": f"i{number}"}, {"id": "tea"}]}
        log.append(msgspec.json.encode(value), timestamp=START_MS + number)
    settings = msgspec.structs.replace(settings_for(tmp_path), events=LOOKS)
    first = Worker(log, settings)
    first.loop.start()
    first.finish()
    first.settle()
    first.kill()
    other = Worker(log, msgspec.structs.replace(settings, kafka=KafkaConfig(worker_id="worker-1")))
    other.loop.start()
    other.settle()
    assert other.learner.users == first.learner.users


def test_bad_records_beyond_the_limits_stop_the_loop_before_they_are_published(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcd")
    for number in range(8):
        log.append(b"{", timestamp=START_MS + 10 + number)
    worker = Worker(log, settings_for(tmp_path, max_consecutive_dead_letters=5))
    with pytest.raises(
        SafetyLimit, match=r"8 bad records in a row.*max_consecutive_dead_letters = 5.*offset 11, not_json"
    ):
        worker.loop.run()
    assert len(worker.outbox.rejects) == 4


def test_the_share_of_bad_records_is_judged_over_many_batches(tmp_path: Path) -> None:
    log = ListLog()
    for number in range(1200):
        if number % 3:
            log.append(b"{", timestamp=START_MS + number)
        else:
            publish(log, ["ann"], start=number)
    worker = Worker(log, settings_for(None, max_dead_letter_ratio=0.6))
    with pytest.raises(SafetyLimit, match=r"67% of the last 1000 records.*max_dead_letter_ratio = 0.6"):
        worker.loop.run()
    assert worker.learner.seq == 249


def test_records_that_are_gone_are_a_clear_error(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.finish()
    worker.kill()
    log.trim(P0, 2)
    with pytest.raises(OffsetsGone, match="events-0"):
        Worker(log, settings_for(tmp_path)).loop.run()


def test_a_topic_made_anew_is_a_clear_error(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, "abcdefgh")
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.finish()
    worker.loop.leave()
    worker.kill()
    anew = ListLog()
    publish(anew, "xy")
    with pytest.raises(OffsetsGone, match=r"offset 8 comes next, but the topic holds 0 to 2.*made anew"):
        Worker(anew, settings_for(tmp_path)).loop.run()


def test_two_processes_with_one_worker_id_are_refused(tmp_path: Path) -> None:
    log = ListLog()
    first = Worker(log, settings_for(tmp_path))
    first.loop.start()
    with pytest.raises(CheckpointError, match=r"another process.*kafka\.worker_id"):
        Worker(log, settings_for(tmp_path)).loop.run()
    first.kill()


def test_a_revoked_partition_goes_to_the_next_owner_as_a_shard(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, ["ann", "bob", "ann"])
    publish(log, ["xia", "yan"], P1)
    outbox = Outbox()
    old = Worker(log, settings_for(tmp_path, "old"), outbox)
    old.loop.start()
    old.finish()
    old.source.revoke([P1])
    old.loop.tick()
    assert log.committed[P1] == 2
    assert old.survival.checkpoints.shards.newest([P1]) == {P1: 2}  # type: ignore[union-attr]
    assert P1 not in old.learner.offsets
    new = Worker(log, settings_for(tmp_path, "new"), outbox, assigned=[P1])
    new.loop.start()
    published = len(outbox.rankings)
    publish(log, ["xia"], P1, start=5)
    new.finish()
    assert new.learner.users[P1] == learned_users(log, [P1])
    assert new.learner.events_learned == 1
    assert len(outbox.rankings) == published + 1


def test_a_dead_workers_partition_is_caught_up_from_its_shard_to_the_commit(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, ["ann", "bob"])
    outbox = Outbox()
    dead = Worker(log, settings_for(tmp_path, "dead"), outbox)
    dead.loop.start()
    dead.finish()
    dead.loop.checkpoint()
    publish(log, ["ann", "cid", "dan", "ann", "eve"], start=2)
    dead.finish()
    dead.settle()
    dead.kill()
    published = len(outbox.rankings)
    publish(log, ["ann"], start=7)
    heir = Worker(log, settings_for(tmp_path, "heir"), outbox, assigned=[P0])
    heir.loop.start()
    heir.finish()
    assert heir.learner.users[P0] == learned_users(log, [P0])
    assert heir.learner.events_learned == 1  # the model learns what comes after the commit
    assert [ranking.user_id for ranking in outbox.rankings[published:]] == ["ann"]


def test_a_partition_without_a_shard_is_caught_up_from_the_earliest_record(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann", "bob", "ann", "cid"])
    log.trim(P0, 1)
    log.committed = {P0: 3}
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.finish()
    assert sorted(worker.learner.users[P0]) == ["ann", "bob", "cid"]
    assert [ranking.user_id for ranking in worker.outbox.rankings] == ["cid"]


def test_a_damaged_shard_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ListLog()
    publish(log, ["ann", "bob"])
    old = Worker(log, settings_for(tmp_path, "old"))
    old.loop.start()
    for start in (2, 4):
        old.finish()
        old.loop.checkpoint()
        publish(log, ["ann", "cid"], start=start)
    old.kill()
    newest = old.survival.checkpoints.shards.all()[-1]  # type: ignore[union-attr]
    (tmp_path / newest.path).write_bytes(b"torn")
    heir = Worker(log, settings_for(tmp_path, "heir"))
    heir.loop.start()
    heir.finish()
    assert heir.learner.users[P0] == learned_users(log, [P0])
    assert newest.path in caplog.text


def test_a_shard_beyond_the_commit_says_where_to_go_on(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, ["ann", "bob"])
    first = Worker(log, settings_for(tmp_path, "first"))
    first.loop.start()
    first.finish()
    first.settle()
    first.kill()
    publish(log, ["ann", "cid"], start=2)
    second = Worker(log, settings_for(tmp_path, "second"))
    second.loop.start()
    second.finish()
    log.committed, kept = {}, dict(log.committed)
    second.source.revoke([P0])
    second.loop.tick()
    log.committed = kept  # as when the group refuses the commit of a revoked partition
    second.kill()
    again = Worker(log, settings_for(tmp_path, "first"))
    again.loop.start()
    publish(log, ["ann"], start=4)
    again.finish()
    assert again.learner.users[P0] == learned_users(log, [P0])
    assert [ranking.user_id for ranking in again.outbox.rankings] == ["ann"]
    again.settle()
    assert log.committed == {P0: 5}


def test_a_commit_never_goes_back_behind_another_workers(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann", "bob", "ann", "cid", "dan"])
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.loop.tick()  # four events, not committed
    worker.kill()
    again = Worker(log, settings_for(tmp_path))
    again.loop.start()
    log.committed = {P0: 5}  # by another worker, meanwhile
    again.loop.tick()
    again.settle()
    assert log.committed == {P0: 5}
    assert again.learner.users[P0] == learned_users(log, [P0])


def test_a_lost_partition_is_never_committed(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, "abcd")
    worker = Worker(log, settings_for(tmp_path))
    worker.sink.at_once = False
    worker.loop.start()
    worker.loop.tick()  # published, not acknowledged
    worker.source.lose([P0])
    worker.sink.acknowledge()
    worker.settle()
    assert log.committed == {}
    assert P0 not in worker.learner.offsets


def test_a_change_of_assignment_is_saved_before_anything_is_learned(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, "abcdef")
    publish(log, "uvwxyz", P1)
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.loop.tick()
    worker.source.revoke([P1])
    worker.loop.tick()
    assert worker.survival.checkpoints.saved_seq == worker.learner.seq == 1  # type: ignore[union-attr]
    worker.finish()
    worker.kill()
    again = Worker(log, settings_for(tmp_path), assigned=[P0])
    again.loop.start()
    assert again.learner.digests() == worker.learner.digests()
    again.kill()


def test_users_of_partitions_that_went_elsewhere_while_it_was_down_are_dropped(tmp_path: Path) -> None:
    log = ListLog({"events": 2})
    publish(log, "abc")
    publish(log, "xyz", P1)
    worker = Worker(log, settings_for(tmp_path))
    worker.loop.start()
    worker.finish()
    worker.kill()
    again = Worker(log, settings_for(tmp_path), assigned=[P0])
    again.loop.start()
    publish(log, "d", start=9)
    again.finish()
    again.clock.advance(61)
    again.loop.tick()
    assert list(again.learner.offsets) == [P0]
    again.kill()


@pytest.mark.parametrize("seed", range(30))
def test_users_learn_every_event_once_whatever_the_group_does(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    log = ListLog({"events": 3})
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


# The items topic


def withdraw(items: ListLog, *names: str) -> None:
    """Append a tombstone for each of these items."""
    for name in names:
        items.append(None, topic="items", key=name.encode())


def shown(worker: Worker) -> set[str]:
    """Return the items of all newest lists."""
    return {item.item_id for ranking in worker.outbox.newest.values() for item in ranking.items}


def start(worker: Worker) -> None:
    """Start, and read the items topic to its end."""
    worker.loop.start()
    while not worker.loop.catalogue.whole:
        worker.loop.tick()


def test_the_items_topic_is_read_to_its_end_before_the_first_event(tmp_path: Path) -> None:
    log, items = ListLog(), ListLog({"items": 1})
    publish(log, ["ann", "bob"])
    withdraw(items, *(f"item-{number}" for number in range(1, 6)))
    worker = Worker(log, settings_for(tmp_path), items=items)
    start(worker)
    assert (worker.learner.seq, worker.learner.events_learned) == (3, 0)  # two records at a time
    worker.finish()
    assert shown(worker) == {"item-0"}


def test_lists_are_made_anew_when_an_item_goes_though_no_event_comes(tmp_path: Path) -> None:
    log, items = ListLog(), ListLog({"items": 1})
    publish(log, ["ann", "bob", "cyd"])
    worker = Worker(log, settings_for(tmp_path), items=items)
    start(worker)
    worker.finish()
    assert shown(worker) == {"item-0", "item-1", "item-2"}
    withdraw(items, "item-1")
    worker.settle()
    assert shown(worker) == {"item-0", "item-2"}
    assert worker.learner.seq == 2


def test_a_bad_record_of_the_items_topic_is_a_dead_letter_and_costs_no_event(tmp_path: Path) -> None:
    log, items = ListLog(), ListLog({"items": 1})
    publish(log, ["ann"])
    items.append(b"{", topic="items", key=b"lamp")
    worker = Worker(log, settings_for(tmp_path), items=items)
    start(worker)
    worker.finish()
    (reject,) = worker.outbox.rejects
    assert (reject.reason, reject.record.topic, reject.record.value) == ("not_json", "items", b"{")
    assert worker.learner.events_learned == 1


def test_a_restart_reads_the_items_topic_on_from_where_it_was(tmp_path: Path) -> None:
    log, items = ListLog(), ListLog({"items": 1})
    publish(log, ["ann", "bob"])
    withdraw(items, "item-0")
    worker = Worker(log, settings_for(tmp_path), items=items)
    start(worker)
    worker.finish()
    worker.kill()
    items.trim(TopicPartition("items", 0), 1)  # as compaction may: the journal has what it said
    again = Worker(log, settings_for(tmp_path), outbox=worker.outbox, items=items)
    again.loop.start()
    assert again.learner.withdrawn == {"item-0"}
    assert again.learner.item_offsets == {TopicPartition("items", 0): 1}
    withdraw(items, "item-1")
    again.settle()
    again.settle()
    assert shown(again) == set()

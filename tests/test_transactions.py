"""Transactions: a batch and its offsets are published together or not at all, so subscribers see it once."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from contracts.sinks import KafkaWorld, ranking, topics_named
from crashes import ITEMS, TOPICS, SlowReceipt, SlowSink, World, events_in, fill, is_spoiled, settings_for
from harness.clients import lying_on
from harness.kills import SETTINGS, kill_and_compare
from harness.learners import CountingLearner
from harness.service import Site
from harness.truth import shopping, spoiled
from harness.workers import P0, P1, Worker, publish
from harness.workers import settings_for as worker_settings
from kafka.errors import KafkaTimeoutError
from kafka.structs import ConsumerGroupMetadata
from test_crash_points import never_killed

from consumers.memory import MemoryLog
from pipeline.errors import CommitRefused, PublishFailed, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.events.records import Ranking
from pipeline.persistence.journal import Journal
from pipeline.service.ports import Publication
from producers.memory import MemorySink, Outbox

Name = Callable[[str], str]
EVENTS = int(os.environ.get("AFRESH_KILL_EVENTS", "8000"))
SEED = int(os.environ.get("AFRESH_KILL_SEED", "1"))


class AtomicSink(SlowSink):
    """A sink to a broker that takes a batch and its offsets together and late, or, after a crash, not."""

    commits_offsets = True

    def __init__(self, outbox: Outbox, world: World) -> None:
        super().__init__(outbox, world.fate)
        self.log = world.log
        self.offsets: list[Mapping[TopicPartition, int]] = []

    def publish(self, *batch: Any) -> SlowReceipt:
        assert not self.open, "one transaction at a time"
        self.offsets.append(batch[-1])
        return super().publish(*batch)

    def deliver(self, upto: SlowReceipt) -> None:
        while not upto.acknowledged:
            receipt, rankings, rejects = self.open.pop(0)
            self.taken.publish(Publication(rankings, rejects))
            self.log.committed.update(self.offsets[-1])
            receipt.acknowledged = True

    def perish(self) -> None:
        if self.open and self.fate.random.random() < 0.5:
            self.deliver(self.open[-1][0])


class AtomicWorld(World):
    def sink(self) -> SlowSink:
        return AtomicSink(self.outbox, self)


def published_twice(rankings: list[Ranking], journal: Journal, seq_of: Callable[[Ranking], int]) -> list[str]:
    """Return the ids of lists that were published twice, and not as the same list of a batch without records.

    Such a batch moves no offset, so a worker that resumes can't tell whether it was published.
    """
    without_records = {entry.seq for entry in journal.entries(0) if not entry.spans}
    contents: dict[str, list[bytes]] = {}
    repeatable = set()
    for each in rankings:
        contents.setdefault(each.ranking_id, []).append(msgspec.json.encode(each))
        if seq_of(each) in without_records:
            repeatable.add(each.ranking_id)
    return [
        name
        for name, copies in contents.items()
        if len(copies) > 1 and (name not in repeatable or len(set(copies)) > 1)
    ]


def assert_published_once(world: World) -> None:
    """Start once more: nothing was published twice, and the state equals that of a run never killed."""
    learner = world.live()
    assert learner is not None
    reference = never_killed(world)
    records = [record for source in world.log.partitions() for record in world.log.read(source, 0)]
    bad = [(r.topic, r.partition, r.offset) for r in records if is_spoiled(r)]
    assert learner.events_learned == reference.events_learned == sum(map(events_in, records))
    assert learner.digests() == reference.digests
    letters = Counter((r.record.topic, r.record.partition, r.record.offset) for r in world.outbox.rejects)
    assert letters.keys() - {("items", 0, 4)} == set(bad)
    assert [at for at, times in letters.items() if times > 1 and at[0] != ITEMS.topic] == []
    assert published_twice(world.outbox.rankings, world.journal(), lambda each: each.model_version) == []
    assert {user: ranking.items for user, ranking in world.outbox.newest.items()} == {
        user: ranking.items for user, ranking in reference.newest.items()
    }
    assert world.log.committed == {source: world.log.end(source) for source in world.log.partitions()}


def make_world(folder: Path, events: int, seed: int) -> World:
    log = MemoryLog(TOPICS)
    fill(log, events, seed)
    return AtomicWorld(folder, CountingLearner, settings_for(folder), log, seed)


def test_one_crash_at_any_operation_publishes_nothing_twice(tmp_path: Path) -> None:
    whole = make_world(tmp_path / "whole", 110, 0)
    assert whole.live() is not None
    for last in range(1, whole.fate.done + 1):
        world = make_world(tmp_path / str(last), 110, 0)
        assert world.live(last) is None
        assert_published_once(world)


def test_crashes_in_a_row_publish_nothing_twice(tmp_path: Path) -> None:
    crashes = 0
    for seed in range(30):
        world = make_world(tmp_path / str(seed), 300, seed)
        mean = world.fate.random.choice([20, 45, 100])
        while world.crashes < 100 and world.live(1 + int(world.fate.random.expovariate(1 / mean))) is None:
            pass
        crashes += world.crashes
        assert_published_once(world)
    assert crashes > 600


class RejectedReceipt:
    """The receipt of a batch that a rebalance rejected: none of it is published."""

    def done(self) -> bool:
        raise CommitRefused("the group is being rebalanced")

    def wait(self, timeout_s: float) -> None:
        self.done()

    def acknowledged_ms(self) -> None:
        pass


class RejectingSink(MemorySink):
    rejections = 0

    def publish(self, *batch: Any) -> Any:
        if self.rejections:
            self.rejections -= 1
            return RejectedReceipt()
        return super().publish(*batch)


def rejecting_worker(log: MemoryLog) -> tuple[Worker, RejectingSink]:
    sink = RejectingSink(commit=log.committed.update)
    worker = Worker(log, worker_settings(None), wrap=lambda name, part: sink if name == "sink" else part)
    worker.loop.start()
    return worker, sink


def test_a_batch_that_a_rebalance_rejected_is_published_again() -> None:
    log = MemoryLog()
    publish(log, ["ann", "bob"])
    worker, sink = rejecting_worker(log)
    sink.rejections = 3
    worker.finish()
    worker.loop.checkpoint()
    assert sorted(ranking.user_id for ranking in sink.outbox.rankings) == ["ann", "bob"]
    assert log.committed == {P0: 2}


def test_only_the_part_of_a_rejected_batch_that_is_still_assigned_is_published() -> None:
    log = MemoryLog({"events": 2})
    publish(log, ["ann"], P0)
    publish(log, ["bob"], P1, start=1)
    worker, sink = rejecting_worker(log)
    sink.rejections = 1_000_000
    worker.finish()
    sink.rejections = 0
    worker.source.lose([P1])
    worker.loop.tick()
    worker.loop.checkpoint()
    assert [ranking.user_id for ranking in sink.outbox.rankings] == ["ann"]
    assert log.committed == {P0: 1}


def test_a_batch_that_is_rejected_again_and_again_ends_the_run() -> None:
    log = MemoryLog()
    publish(log, ["ann"])
    worker, sink = rejecting_worker(log)
    sink.rejections = 1_000_000
    worker.finish()
    with pytest.raises(PublishFailed, match="the group is being rebalanced"):
        worker.loop.checkpoint()


@pytest.fixture
def world(broker: str, topic_name: Name) -> Iterator[KafkaWorld]:
    with closing(KafkaWorld(broker, topics_named(topic_name), transactions=True)) as made:
        yield made


def test_a_failed_batch_leaves_nothing(world: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = world.sink()
    send = sink._producer.send

    def fail_at_bob(*args: object, **record: object) -> object:
        if record["key"] == b"bob":
            raise KafkaTimeoutError("no memory")
        return send(*args, **record)

    monkeypatch.setattr(sink._producer, "send", fail_at_bob)
    with pytest.raises(PublishFailed, match="1 of 2 records"):
        sink.publish(Publication([ranking("ann"), ranking("bob")]), {world.source: 7})
    assert (world.users(), world.committed()) == ([], None)


def test_a_restarted_worker_aborts_the_transaction_of_its_killed_process(world: KafkaWorld) -> None:
    dead = world.sink()
    producer, writer = dead._producer, dead._writer
    producer.begin_transaction()
    writer.send(producer, writer.records(producer, Publication([ranking("ann")])))
    producer.flush()
    world.sink().publish(Publication([ranking("bob")]), {world.source: 1}).wait(20)
    assert world.users() == ["bob"]


def test_of_two_processes_with_one_worker_id_the_older_one_is_fenced(world: KafkaWorld) -> None:
    older, newer = world.sink(), world.sink()
    for _ in range(2):  # it does not begin again, which would fence the newer one
        with pytest.raises(UsageError, match=r"'worker-0': another process has joined group") as error:
            older.publish(Publication([ranking("ann")]), {world.source: 1}).wait(20)
        assert "\n" not in str(error.value)
    newer.publish(Publication([ranking("bob")]), {world.source: 2}).wait(20)
    assert (world.users(), world.committed()) == (["bob"], 2)


@pytest.mark.kafka
def test_a_worker_outside_the_group_commits_nothing(apache_broker: str, topic_name: Name) -> None:
    """On Apache Kafka alone: the embedded broker takes offsets of a transaction from any producer."""
    world = KafkaWorld(apache_broker, topics_named(topic_name), transactions=True)
    sink = world.sink()
    world.member = ConsumerGroupMetadata(world.kafka.group_id, 5, "unknown", "worker-0")
    with pytest.raises(CommitRefused, match="the group is being rebalanced"):
        sink.publish(Publication([ranking("ann")]), {world.other: 3}).wait(20)
    world.member = ConsumerGroupMetadata(world.kafka.group_id)
    sink.publish(Publication([ranking("bob")]), {world.source: 4}).wait(20)
    assert (world.users(), world.offsets()) == (["bob"], {world.source: 4, world.other: None})
    world.close()


@pytest.mark.kafka
def test_five_kills_publish_every_record_once(broker: str, topic_name: Name, tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    stream = spoiled(shopping(EVENTS, SEED, now), SEED, now)
    # without a backlog every batch publishes lists, however slowly the machine starts the service
    settings = SETTINGS | {"kafka.transactions": "true", "rank.backlog_after_s": 86_400}
    with Site(broker, topic_name("once"), tmp_path, settings=settings) as site:
        outcome = kill_and_compare(site, stream, SEED)
        assert outcome.faults == []
        rankings = [
            msgspec.json.decode(record.value, type=Ranking)
            for record in lying_on(broker, f"{site.stem}-recommendations")
        ]
        # a ranking's version counts the batches that the model has learned, its own included
        twice = published_twice(rankings, Journal(site.whole_journal()), lambda each: each.model_version - 1)
        letters = Counter(
            (dict(record.headers)["partition"], dict(record.headers)["offset"])
            for record in lying_on(broker, f"{site.stem}-dead_letters")
        )
    assert twice == []
    assert len({ranking.ranking_id for ranking in rankings}) > EVENTS // 4
    assert set(letters.values()) == {1}
    assert len(letters) == len(stream.bad)
    assert max(outcome.learned_at_kills) < EVENTS, "the kills came after all was learned"

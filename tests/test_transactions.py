"""Transactions: each batch and its offsets go out together or not at all, so that everybody sees it once."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from brokers.clients import config, lying_on
from crashes import ITEMS, TOPICS, SlowReceipt, SlowSink, World, events_in, fill, is_spoiled, settings_for
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaTimeoutError
from kafka.structs import ConsumerGroupMetadata
from kills import SETTINGS, kill_and_compare
from learners import CountingLearner
from services import Site
from test_crash_points import never_killed
from truth import shopping, spoiled
from workers import P0, P1, Worker, publish
from workers import settings_for as worker_settings

from consumers.memory import ListLog
from pipeline.errors import CommitRefused, PublishFailed, UsageError
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, RankedItem, Ranking
from pipeline.persistence.journal import Journal
from pipeline.service.clock import SystemClock
from pipeline.settings import TopicsConfig
from producers.kafka.topics import create_topics
from producers.kafka.transactions import TransactionSink
from producers.memory import ListSink, Outbox

Name = Callable[[str], str]
now_ms = SystemClock().now_ms
EVENTS = int(os.environ.get("AFRESH_KILL_EVENTS", "8000"))
SEED = int(os.environ.get("AFRESH_KILL_SEED", "1"))


class WholeSink(SlowSink):
    """A sink whose broker takes a batch and its offsets whole and late, or, after a crash, not at all."""

    commits_offsets = True

    def __init__(self, outbox: Outbox, world: World) -> None:
        super().__init__(outbox, world.fate)
        self.log = world.log
        self.offsets: list[Mapping[TopicPartition, int]] = []

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int],
    ) -> SlowReceipt:
        """Begin a transaction."""
        assert not self.open, "one transaction at a time"
        self.offsets.append(offsets)
        return super().publish(rankings, rejects, alarms, gone, offsets)

    def deliver(self, upto: SlowReceipt) -> None:
        """Commit it."""
        while not upto.acknowledged:
            receipt, rankings, rejects = self.open.pop(0)
            self.taken.publish(rankings, rejects, [], [])
            self.log.committed.update(self.offsets[-1])
            receipt.acknowledged = True

    def perish(self) -> None:
        """Commit what the broker was asked to, or give it up."""
        if self.open and self.fate.random.random() < 0.5:
            self.deliver(self.open[-1][0])


class WholeWorld(World):
    """A world whose broker has transactions."""

    def sink(self) -> SlowSink:
        """Make the sink of one life."""
        return WholeSink(self.outbox, self)


def published_twice(rankings: Sequence[Ranking], journal: Journal) -> list[str]:
    """Return the ids of the lists that a worker published twice and should not have.

    A batch without records (its lists were pending, no event came) moves no offset, so a worker that resumes
    can't tell whether the batch was committed: its lists may be published again, with the same content.
    """
    without_records = {entry.seq for entry in journal.entries(0) if not entry.spans}
    contents: dict[str, list[bytes]] = {}
    repeatable = set()
    for ranking in rankings:
        contents.setdefault(ranking.ranking_id, []).append(msgspec.json.encode(ranking))
        if ranking.model_version in without_records:
            repeatable.add(ranking.ranking_id)
    return [
        name
        for name, copies in contents.items()
        if len(copies) > 1 and (name not in repeatable or len(set(copies)) > 1)
    ]


def assert_everything_once(world: World) -> None:
    """Start once more over what is left: nobody was told anything twice, and all is as never killed."""
    learner = world.live()
    assert learner is not None
    reference = never_killed(world)
    records = [record for source in world.log.partitions() for record in world.log.read(source, 0)]
    bad = [(r.topic, r.partition, r.offset) for r in records if is_spoiled(r)]
    assert learner.events_learned == reference.events_learned == sum(map(events_in, records))
    assert learner.digests() == reference.digests
    told = Counter((r.record.topic, r.record.partition, r.record.offset) for r in world.outbox.rejects)
    assert told.keys() - {("items", 0, 4)} == set(bad)
    assert [at for at, times in told.items() if times > 1 and at[0] != ITEMS.topic] == []
    assert published_twice(world.outbox.rankings, world.journal()) == []
    assert {user: ranking.items for user, ranking in world.outbox.newest.items()} == {
        user: ranking.items for user, ranking in reference.newest.items()
    }
    assert world.log.committed == {source: world.log.end(source) for source in world.log.partitions()}


def make_world(folder: Path, events: int, seed: int) -> World:
    log = ListLog(TOPICS)
    fill(log, events, seed)
    return WholeWorld(folder, CountingLearner, settings_for(folder), log, seed)


def test_one_crash_at_any_operation_tells_nobody_anything_twice(tmp_path: Path) -> None:
    whole = make_world(tmp_path / "whole", 110, 0)
    assert whole.live() is not None
    for last in range(1, whole.fate.done + 1):
        world = make_world(tmp_path / str(last), 110, 0)
        assert world.live(last) is None
        assert_everything_once(world)


def test_crashes_in_a_row_tell_nobody_anything_twice(tmp_path: Path) -> None:
    crashes = 0
    for seed in range(30):
        world = make_world(tmp_path / str(seed), 300, seed)
        mean = world.fate.random.choice([20, 45, 100])
        while world.crashes < 100 and world.live(1 + int(world.fate.random.expovariate(1 / mean))) is None:
            pass
        crashes += world.crashes
        assert_everything_once(world)
    assert crashes > 600


class RefusingSink(ListSink):
    """A sink in transactions, whose group is being rebalanced whenever `refuse` says so."""

    refuse = 0

    def publish(self, *batch: object) -> object:  # type: ignore[override]
        """Refuse, or take the batch."""
        if self.refuse:
            self.refuse -= 1
            return Refusal()
        return super().publish(*batch)  # type: ignore[arg-type]


class Refusal:
    """The receipt of a batch of which nothing is out."""

    def done(self) -> bool:
        """Refuse."""
        raise CommitRefused("the group is being rebalanced")

    def wait(self, timeout_s: float) -> None:
        """Refuse."""
        self.done()

    def acknowledged_ms(self) -> None:
        """Never be."""


def refusing_worker(log: ListLog) -> tuple[Worker, RefusingSink]:
    sink = RefusingSink(commit=log.committed.update)
    worker = Worker(log, worker_settings(None), wrap=lambda name, part: sink if name == "sink" else part)
    worker.loop.start()
    return worker, sink


def test_a_batch_that_a_rebalance_refused_goes_out_again() -> None:
    log = ListLog()
    publish(log, ["ann", "bob"])
    worker, sink = refusing_worker(log)
    sink.refuse = 3
    worker.finish()
    worker.loop.checkpoint()
    assert {ranking.user_id for ranking in sink.outbox.rankings} == {"ann", "bob"}
    assert len(sink.outbox.rankings) == 2
    assert log.committed == {P0: 2}


def test_of_a_refused_batch_only_what_is_still_ours_goes_out() -> None:
    log = ListLog({"events": 2})
    publish(log, ["ann"], P0)
    publish(log, ["bob"], P1, start=1)
    worker, sink = refusing_worker(log)
    sink.refuse = 1_000_000
    worker.finish()
    sink.refuse = 0
    worker.source.lose([P1])
    worker.loop.tick()
    worker.loop.checkpoint()
    assert [ranking.user_id for ranking in sink.outbox.rankings] == ["ann"]
    assert log.committed == {P0: 1}


def test_a_batch_that_is_refused_on_and_on_ends_the_run() -> None:
    log = ListLog()
    publish(log, ["ann"])
    worker, sink = refusing_worker(log)
    sink.refuse = 1_000_000
    worker.finish()
    with pytest.raises(PublishFailed, match="the group is being rebalanced"):
        worker.loop.checkpoint()


def made_topics(broker: str, topic_name: Name) -> TopicsConfig:
    made = TopicsConfig(
        events=[topic_name("events")],
        items=topic_name("items"),
        recommendations=topic_name("recommendations"),
        dead_letters=topic_name("dead-letter"),
        drift=topic_name("drift"),
    )
    create_topics(config(broker), made, partitions=2, replication=1)
    return made


@pytest.fixture
def topics(broker: str, topic_name: Name) -> TopicsConfig:
    """The topics of a test, created."""
    return made_topics(broker, topic_name)


class Group:
    """Sinks of one worker and what others see of them."""

    def __init__(self, broker: str, topics: TopicsConfig) -> None:
        self.broker = broker
        self.topics = topics
        self.kafka = config(broker, topics.recommendations)
        (name,) = topics.event_topics()
        self.first, self.second = TopicPartition(name, 0), TopicPartition(name, 1)
        self.member = ConsumerGroupMetadata(self.kafka.group_id)
        self._open: list[TransactionSink] = []

    def sink(self) -> TransactionSink:
        self._open.append(TransactionSink(self.kafka, self.topics, now_ms, lambda: self.member))
        return self._open[-1]

    def seen(self) -> list[str]:
        """Users whose ranking a subscriber that reads with `read_committed` has got."""
        return sorted(r.key.decode() for r in lying_on(self.broker, self.topics.recommendations))

    def committed(self) -> list[int | None]:
        consumer = KafkaConsumer(
            bootstrap_servers=self.broker, group_id=self.kafka.group_id, isolation_level="read_committed"
        )
        offsets = [consumer.committed(KafkaPartition(*source)) for source in (self.first, self.second)]
        consumer.close(autocommit=False)
        return offsets

    def close(self) -> None:
        for sink in self._open:
            sink.close()


@pytest.fixture
def group(broker: str, topics: TopicsConfig) -> Iterator[Group]:
    made = Group(broker, topics)
    yield made
    made.close()


def ranking(user_id: str, padding: str = "") -> Ranking:
    return Ranking(user_id, f"r{padding}", [RankedItem("i1", 1.5, [])], 1_000, 900, "attention", 7)


def test_rankings_and_offsets_are_seen_together_once_committed(group: Group) -> None:
    sink = group.sink()
    before_ms = now_ms()
    receipt = sink.publish([ranking("ann"), ranking("bob")], [], [], [], {group.first: 7})
    receipt.wait(20)
    acknowledged_ms = receipt.acknowledged_ms()
    assert acknowledged_ms is not None
    assert before_ms <= acknowledged_ms <= now_ms()
    assert (group.seen(), group.committed()) == (["ann", "bob"], [7, None])
    sink.publish([], [], [], [], {group.first: 9}).wait(20)
    assert group.committed() == [9, None]


def test_of_a_batch_that_fails_nothing_is_seen_or_committed(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = group.sink()
    send = sink._producer.send  # type: ignore[union-attr]

    def fail_at_bob(*args: object, **record: object) -> object:
        if record["key"] == b"bob":
            raise KafkaTimeoutError("no memory")
        return send(*args, **record)

    monkeypatch.setattr(sink._producer, "send", fail_at_bob)
    with pytest.raises(PublishFailed, match="1 of 2 records"):
        sink.publish([ranking("ann"), ranking("bob")], [], [], [], {group.first: 7})
    assert (group.seen(), group.committed()) == ([], [None, None])


def test_what_a_killed_worker_has_begun_is_given_up_when_it_starts_again(group: Group) -> None:
    dead = group.sink()
    dead._producer.begin_transaction()  # type: ignore[union-attr]
    dead._outgoing.send(dead._producer, dead._outgoing.records(dead._producer, [ranking("ann")], [], [], []))
    dead._producer.flush()  # type: ignore[union-attr]
    alive = group.sink()
    alive.publish([ranking("bob")], [], [], [], {group.first: 1}).wait(20)
    assert group.seen() == ["bob"]


def test_of_two_processes_with_one_worker_id_the_older_one_is_fenced(group: Group) -> None:
    older, newer = group.sink(), group.sink()
    for _ in range(2):  # it does not begin anew, which would fence the newer one
        with pytest.raises(UsageError, match=r"'worker-0': another process has joined group") as told:
            older.publish([ranking("ann")], [], [], [], {group.first: 1}).wait(20)
        assert "\n" not in str(told.value)
    newer.publish([ranking("bob")], [], [], [], {group.first: 2}).wait(20)
    assert (group.seen(), group.committed()) == (["bob"], [2, None])


@pytest.mark.kafka
def test_a_membership_that_is_over_commits_nothing_and_leaves_nothing_behind(
    apache_broker: str, topic_name: Name
) -> None:
    """On Apache Kafka alone: the embedded broker takes offsets of a transaction from anybody."""
    topics = made_topics(apache_broker, topic_name)
    group = Group(apache_broker, topics)
    sink = group.sink()
    group.member = ConsumerGroupMetadata(group.kafka.group_id, 5, "nobody", "worker-0")
    with pytest.raises(CommitRefused, match="the group is being rebalanced"):
        sink.publish([ranking("ann")], [], [], [], {group.second: 3}).wait(20)
    group.member = ConsumerGroupMetadata(group.kafka.group_id)
    sink.publish([ranking("bob")], [], [], [], {group.first: 4}).wait(20)
    assert (group.seen(), group.committed()) == (["bob"], [4, None])
    group.close()


@pytest.mark.kafka
def test_five_kills_show_a_subscriber_every_ranking_and_dead_letter_once(
    broker: str, topic_name: Name, tmp_path: Path
) -> None:
    now = time.time_ns() // 1_000_000
    stream = spoiled(shopping(EVENTS, SEED, now), SEED, now)
    settings = SETTINGS | {"kafka.transactions": "true"}
    with Site(broker, topic_name("once"), tmp_path, settings=settings) as site:
        outcome = kill_and_compare(site, stream, SEED)
        assert outcome.faults == []
        rankings = [
            msgspec.json.decode(record.value, type=Ranking)
            for record in lying_on(broker, f"{site.stem}-recommendations")
        ]
        twice = published_twice(rankings, Journal(site.whole_journal()))
        letters = Counter(
            (dict(record.headers)["partition"], dict(record.headers)["offset"])
            for record in lying_on(broker, f"{site.stem}-dead_letters")
        )
    assert twice == []
    assert len({ranking.ranking_id for ranking in rankings}) > EVENTS // 4
    assert set(letters.values()) == {1}
    assert len(letters) == len(stream.bad)
    assert max(outcome.learned_at_kills) < EVENTS, "the kills came after all was learned"

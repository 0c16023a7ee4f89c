"""The Kafka sink against real brokers: what lies on the topics, byte for byte, and what a receipt says."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
from brokers.clients import config, lying_on, make_topic
from brokers.embedded import embedded_broker as run_embedded
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.consumer.fetcher import ConsumerRecord
from kafka.partitioner.default import DefaultPartitioner
from kafka.structs import ConsumerGroupMetadata

from consumers.memory import MemoryRecord
from pipeline.errors import PublishFailed, UsageError
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, RankedItem, Ranking
from pipeline.service.clock import ManualClock, SystemClock
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import producer_options
from producers.kafka.sink import KafkaReceipt, KafkaSink
from producers.kafka.topics import create_topics
from producers.kafka.transactions import TransactionSink

Name = Callable[[str], str]
now_ms = SystemClock().now_ms


@pytest.fixture
def topics(broker: str, topic_name: Name) -> TopicsConfig:
    """The topics of a test, created."""
    made = named(topic_name)
    create_topics(config(broker), made, partitions=3, replication=1)
    return made


@pytest.fixture
def sink(broker: str, topics: TopicsConfig) -> Iterator[KafkaSink]:
    made = KafkaSink(config(broker), topics, now_ms)
    yield made
    made.close()


def named(topic_name: Name) -> TopicsConfig:
    return TopicsConfig(
        events=[topic_name("events")],
        items=topic_name("items"),
        recommendations=topic_name("recommendations"),
        dead_letters=topic_name("dead-letter"),
        drift=topic_name("drift"),
    )


def ranking(user_id: str, name: str = "r1") -> Ranking:
    return Ranking(user_id, name, [RankedItem("i1", 1.5, ["i0"])], 1_000, 900, "attention", 7)


def reject(value: bytes | None, key: bytes | None, partition: int = 0) -> Reject:
    record = MemoryRecord("events", partition, 41, 1_700_000_000_000, key, value)
    return Reject(record, "not_json", "expected JSON, got \u00ff")


def partition_of(broker: str, topic: str, key: bytes) -> int:
    """Where Kafka's default partitioner puts the key."""
    consumer = KafkaConsumer(bootstrap_servers=broker)
    consumer.partitions_for_topic(topic)
    chosen: int = DefaultPartitioner().partition(topic, key, key, None, None, consumer._cluster)
    consumer.close()
    return chosen


def test_rankings_lie_under_their_user_where_any_client_looks_for_them(
    broker: str, topics: TopicsConfig, sink: KafkaSink
) -> None:
    lists = [ranking(user_id) for user_id in ("ann", "böb", "u-\U0001f40c", "x" * 256)]
    sink.publish(lists, [], [], []).wait(10)
    found = lying_on(broker, topics.recommendations)
    assert {record.key.decode(): msgspec.json.decode(record.value, type=Ranking) for record in found} == {
        each.user_id: each for each in lists
    }
    for record in found:
        assert record.partition == partition_of(broker, topics.recommendations, record.key)


def test_the_newest_list_of_a_user_comes_last_and_the_gone_get_a_tombstone(
    broker: str, topics: TopicsConfig, sink: KafkaSink
) -> None:
    receipts = [
        sink.publish([ranking("ann", "old"), ranking("bob")], [], [], []),
        sink.publish([ranking("ann", "new")], [], [], ["bob"]),
    ]
    for receipt in receipts:
        receipt.wait(10)
    newest = {record.key: record.value for record in lying_on(broker, topics.recommendations)}
    assert msgspec.json.decode(newest[b"ann"], type=Ranking).ranking_id == "new"
    assert newest[b"bob"] is None


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"{not json", b"ann"),
        (b"\xff\xfe\x00", b"\x00\xff"),
        (b"", b""),
        (b"no key", None),
        (None, b"tombstone"),
        (b"x" * 1_040_000, b"nearly as large as a broker takes by default"),
    ],
    ids=["text", "not utf-8", "empty", "no key", "tombstone", "large"],
)
def test_a_dead_letter_keeps_the_bytes_and_says_where_they_came_from(
    broker: str, topics: TopicsConfig, sink: KafkaSink, value: bytes | None, key: bytes | None
) -> None:
    sink.publish([], [reject(value, key)], [], []).wait(10)
    (letter,) = lying_on(broker, topics.dead_letters)
    assert (letter.key, letter.value) == (key, value)
    assert dict(letter.headers) == {
        "reason": b"not_json",
        "exception": "expected JSON, got ÿ".encode(),
        "topic": b"events",
        "partition": b"0",
        "offset": b"41",
    }


def test_a_record_of_nothing_becomes_a_dead_letter_that_says_so(
    broker: str, topics: TopicsConfig, sink: KafkaSink
) -> None:
    sink.publish([], [reject(None, None)], [], []).wait(10)
    (letter,) = lying_on(broker, topics.dead_letters)
    assert (letter.key, letter.value) == (None, b"")
    assert dict(letter.headers)["value"] == b"null"


def test_a_drift_alarm_lies_on_its_topic(broker: str, topics: TopicsConfig, sink: KafkaSink) -> None:
    alarm = DriftAlarm("adwin", "hit_rate", 5_000, 0.3, 0.1, 1_700_000_000_000)
    sink.publish([], [], [alarm], []).wait(10)
    (record,) = lying_on(broker, topics.drift)
    assert msgspec.json.decode(record.value, type=DriftAlarm) == alarm


def test_a_receipt_is_done_when_the_broker_has_all(
    broker: str, topics: TopicsConfig, sink: KafkaSink
) -> None:
    receipt = sink.publish([ranking(f"u{n}") for n in range(2_000)], [], [], [])
    receipt.wait(10)
    assert receipt.done()
    assert len(lying_on(broker, topics.recommendations)) == 2_000
    empty = sink.publish([], [], [], [])
    assert empty.done()
    empty.wait(0)


def test_a_receipt_knows_when_the_last_acknowledgement_came_however_late_it_is_asked(
    broker: str, topics: TopicsConfig
) -> None:
    clock = ManualClock(1_000)
    sink = KafkaSink(config(broker), topics, clock.now_ms)
    receipt = sink.publish([ranking(f"u{n}") for n in range(50)], [reject(b"{", None)], [], ["gone"])
    until = time.monotonic() + 10
    while receipt.acknowledged_ms() is None:
        assert time.monotonic() < until
    assert receipt.done()
    clock.advance(60.0)
    assert receipt.acknowledged_ms() == 1_000
    assert sink.publish([], [], [], []).acknowledged_ms() is None  # nothing was to be acknowledged
    sink.close()


def test_rankings_go_out_without_anybody_waiting_for_them(sink: KafkaSink) -> None:
    receipt = sink.publish([ranking("ann")], [], [], [])
    until = time.monotonic() + 10
    while not receipt.done():
        assert time.monotonic() < until


@pytest.fixture(params=["sends", "transactions"])
def narrow(request: pytest.FixtureRequest, broker: str, topic_name: Name) -> Iterator["Narrow"]:
    """Each of the two sinks, over topics that take no large records."""
    made = Narrow(broker, named(topic_name), in_transactions=request.param == "transactions")
    yield made
    made.sink.close()


class Narrow:
    """A sink over topics that take records of at most 20,000 bytes."""

    def __init__(self, broker: str, topics: TopicsConfig, in_transactions: bool) -> None:
        self.broker, self.topics = broker, topics
        self.reduced: Counter[tuple[str, str]] = Counter()
        self.source = TopicPartition(topics.event_topics().popitem()[0], 0)
        for name in (topics.recommendations, topics.dead_letters, topics.drift):
            make_topic(broker, name, configs={"max.message.bytes": "20000"})
        kafka = config(broker, topics.recommendations)
        create_topics(kafka, topics, replication=1)
        self.sink: KafkaSink | TransactionSink
        if in_transactions:
            member = ConsumerGroupMetadata(kafka.group_id)
            self.sink = TransactionSink(kafka, topics, now_ms, lambda: member, self.reduced.update)
        else:
            self.sink = KafkaSink(kafka, topics, now_ms, self.reduced.update)

    def publish(self, rankings: list[Ranking], rejects: list[Reject]) -> None:
        """Publish a batch and wait until all that fits is acknowledged."""
        receipt = self.sink.publish(rankings, rejects, [], [], {self.source: 1})
        receipt.wait(30)
        assert receipt.done()
        assert receipt.acknowledged_ms() is not None

    def users(self) -> list[str]:
        """Return the users of the rankings that are seen, in order."""
        return [r.key.decode() for r in lying_on(self.broker, self.topics.recommendations)]

    def letters(self) -> list[ConsumerRecord]:
        """Return the dead letters that are seen."""
        return lying_on(self.broker, self.topics.dead_letters)


def test_what_does_not_fit_its_topic_goes_as_its_head_or_not_at_all_and_stops_nothing(
    narrow: Narrow, caplog: pytest.LogCaptureFixture
) -> None:
    rankings = [ranking("ann"), ranking("bob", "r" * 30_000), ranking("eve")]
    rejects = [
        reject(b"{small", b"ann"),
        reject(b"v" * 1_048_496, b"ann"),
        reject(b"{", b"k" * 50_000),
        reject(None, b"k" * 50_000),
        reject(b"last", None),
    ]
    narrow.publish(rankings, rejects)
    assert sorted(narrow.users()) == ["ann", "eve"]
    letters = narrow.letters()
    told = {
        "reason": b"not_json",
        "exception": "expected JSON, got ÿ".encode(),
        "topic": b"events",
        "partition": b"0",
        "offset": b"41",
    }
    found = [(letter.key, letter.value, dict(letter.headers)) for letter in letters]
    assert sorted(found, key=repr) == sorted(
        [
            (b"ann", b"{small", told),
            (
                b"ann",
                b"v" * 4_096,
                told | {"truncated": b"true", "key_bytes": b"3", "value_bytes": b"1048496"},
            ),
            (b"k" * 4_096, b"{", told | {"truncated": b"true", "key_bytes": b"50000", "value_bytes": b"1"}),
            (b"k" * 4_096, None, told | {"truncated": b"true", "key_bytes": b"50000"}),
            (None, b"last", told),
        ],
        key=repr,
    )
    dead, lists = narrow.topics.dead_letters, narrow.topics.recommendations
    assert narrow.reduced == {(dead, "truncated"): 3, (lists, "dropped"): 1}
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in warned if repr(lists) in line and "max.message.bytes" in line]) == 1
    assert len([line for line in warned if repr(dead) in line and "first 65,536 bytes" in line]) == 1
    caplog.clear()
    narrow.publish([ranking("zoe"), ranking("bob", "r" * 30_000)], [reject(b"v" * 60_000, b"ann")])  # known
    assert sorted(narrow.users()) == ["ann", "eve", "zoe"]
    assert len(narrow.letters()) == 6
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_records_that_are_too_large_together_go_one_after_the_other(narrow: Narrow) -> None:
    narrow.publish([ranking(f"u{n}", "r" * 300) for n in range(200)], [reject(b"v" * 9_000, None)] * 3)
    assert len(narrow.users()) == 200
    assert [len(letter.value) for letter in narrow.letters()] == [9_000] * 3
    assert not narrow.reduced


def test_a_record_larger_than_the_client_sends_goes_as_its_head(broker: str, topics: TopicsConfig) -> None:
    kafka = config(broker)
    kafka = msgspec.structs.replace(kafka, options=kafka.options | {"max_request_size": 100_000})
    reduced: Counter[tuple[str, str]] = Counter()
    sink = KafkaSink(kafka, topics, now_ms, reduced.update)
    sink.publish([ranking("bob", "r" * 200_000)], [reject(b"v" * 200_000, b"ann")], [], []).wait(10)
    (letter,) = lying_on(broker, topics.dead_letters)
    assert len(letter.value) == 65_536
    assert reduced == {(topics.dead_letters, "truncated"): 1, (topics.recommendations, "dropped"): 1}
    sink.close()


@pytest.mark.kafka
def test_a_broker_that_goes_away_fails_the_receipt(topic_name: Name) -> None:
    topics = named(topic_name)
    with run_embedded() as broker:
        kafka = config(broker.bootstrap_servers, broker_timeout_s=1.0)
        create_topics(kafka, topics, replication=1)
        sink = KafkaSink(kafka, topics, now_ms)
        sink.publish([ranking("ann")], [], [], []).wait(10)
        broker.stop()
        receipt = sink.publish([ranking("ann"), ranking("bob")], [], [], [])
        with pytest.raises(PublishFailed, match=r"2 of 2 .* no acknowledgement within 0\.5 s"):
            receipt.wait(0.5)
        with pytest.raises(PublishFailed, match="2 of 2"):
            _until_done(receipt)
        sink.close()


def _until_done(receipt: KafkaReceipt) -> None:
    until = time.monotonic() + 20
    while not receipt.done():
        assert time.monotonic() < until


def test_a_topic_that_does_not_exist_is_told(broker: str, topics: TopicsConfig) -> None:
    with pytest.raises(UsageError, match="topic 'nowhere-at-all' does not exist"):
        KafkaSink(config(broker), msgspec.structs.replace(topics, drift="nowhere-at-all"), now_ms)


def test_no_broker_at_start_is_told_in_one_line() -> None:
    kafka = KafkaConfig(bootstrap_servers="127.0.0.1:1", start_timeout_s=0.3)
    with pytest.raises(UsageError, match="no broker answered") as told:
        KafkaSink(kafka, TopicsConfig(), now_ms)
    assert "\n" not in str(told.value)


def test_rankings_are_compacted_and_dead_letters_are_not(broker: str, topics: TopicsConfig) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    names = [topics.recommendations, topics.items, topics.dead_letters, topics.drift, *topics.event_topics()]
    policies = {}
    for name in names:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        policies[name] = str(found)
    admin.close()
    for name, said in policies.items():
        wanted = "compact" if name in (topics.recommendations, topics.items) else "delete"
        assert wanted in said


def test_topics_that_exist_stay_as_they_are(broker: str, topic_name: Name) -> None:
    topics = named(topic_name)
    make_topic(broker, topics.drift, partitions=5)
    created = create_topics(config(broker), topics, partitions=2, replication=1)
    assert set(created) == {*topics.event_topics(), topics.items, topics.recommendations, topics.dead_letters}
    assert create_topics(config(broker), topics, partitions=2, replication=1) == []
    consumer = KafkaConsumer(bootstrap_servers=broker)
    assert len(consumer.partitions_for_topic(topics.drift)) == 5
    assert len(consumer.partitions_for_topic(topics.recommendations)) == 2
    consumer.close()


def test_the_producer_gives_up_with_the_broker_timeout_and_not_before() -> None:
    options = producer_options(KafkaConfig(broker_timeout_s=20))
    assert options["delivery_timeout_ms"] == 20_000
    assert options["request_timeout_ms"] == 10_000
    assert (options["acks"], options["enable_idempotence"]) == ("all", True)

"""The Kafka sinks against real brokers, beyond the contract of sinks: partitions, headers, sizes, errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
import pytest
from contracts.sinks import KafkaWorld, ranking, reject, topics_named
from harness.clients import config
from harness.clock import ManualClock
from kafka import KafkaConsumer
from kafka.partitioner.default import DefaultPartitioner

from pipeline.errors import PublishFailed
from pipeline.events.batch import Reject
from pipeline.events.records import Ranking
from pipeline.service.clock import SystemClock
from pipeline.service.ports import Publication
from pipeline.settings import KafkaConfig
from producers.embedded_broker import EmbeddedBroker
from producers.kafka.client import producer_options
from producers.kafka.sink import KafkaReceipt, KafkaSink
from producers.kafka.topics import create_topics
from producers.kafka.transactions import TransactionSink

Name = Callable[[str], str]
now_ms = SystemClock().now_ms
HEADERS = {
    "reason": b"not_json",
    "exception": "expected JSON, got ÿ".encode(),
    "topic": b"events",
    "partition": b"0",
    "offset": b"41",
}


@pytest.fixture
def world(broker: str, topic_name: Name) -> Iterator[KafkaWorld]:
    with closing(KafkaWorld(broker, topics_named(topic_name), transactions=False)) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["sends", "transactions"])
def narrow(request: pytest.FixtureRequest, broker: str, topic_name: Name) -> Iterator[KafkaWorld]:
    """Each of the two sinks, over topics that take records of at most 20,000 bytes."""
    topics = topics_named(topic_name)
    with closing(KafkaWorld(broker, topics, transactions=request.param, max_bytes=20_000)) as made:
        yield made


def partition_of(broker: str, topic: str, key: bytes) -> int:
    consumer = KafkaConsumer(bootstrap_servers=broker)
    consumer.partitions_for_topic(topic)
    chosen: int = DefaultPartitioner().partition(topic, key, key, None, None, consumer._cluster)
    consumer.close()
    return chosen


def test_a_ranking_is_in_the_partition_of_kafkas_default_partitioner(world: KafkaWorld) -> None:
    users = ("ann", "böb", "u-\U0001f40c", "x" * 256)
    world.sink().publish(Publication([ranking(user_id) for user_id in users])).wait(10)
    for record in world.records():
        assert record.partition == partition_of(world.address, world.topics.recommendations, record.key)


@pytest.mark.parametrize("size", [10, 1_040_000], ids=["small", "nearly the broker's default limit"])
def test_the_headers_of_a_dead_letter_give_its_source(world: KafkaWorld, size: int) -> None:
    world.sink().publish(Publication(rejects=[reject(b"x" * size, b"ann")])).wait(10)
    (letter,) = world.dead_letters()
    assert (letter.key, letter.value, dict(letter.headers)) == (b"ann", b"x" * size, HEADERS)


def test_a_record_without_key_and_value_becomes_a_dead_letter_with_a_header(world: KafkaWorld) -> None:
    world.sink().publish(Publication(rejects=[reject(None, None)])).wait(10)
    (letter,) = world.dead_letters()
    assert (letter.key, letter.value, dict(letter.headers)["value"]) == (None, b"", b"null")


def test_a_receipt_has_the_time_of_the_last_acknowledgement_however_late_asked(world: KafkaWorld) -> None:
    clock = ManualClock(1_000)
    sink = world.sink(clock.now_ms)
    receipt = sink.publish(
        Publication([ranking(f"u{n}") for n in range(2_000)], [reject(b"{", None)], removed_users=["cy"])
    )
    until = time.monotonic() + 10
    while receipt.acknowledged_ms() is None:
        assert time.monotonic() < until
    assert receipt.done()
    assert len(world.records()) == 2_001
    clock.advance(60.0)
    assert receipt.acknowledged_ms() == 1_000


def publish(
    world: KafkaWorld, sink: KafkaSink | TransactionSink, rankings: list[Ranking], rejects: list[Reject]
) -> None:
    """Publish a batch and wait until all that fits is acknowledged."""
    receipt = sink.publish(Publication(rankings, rejects), {world.source: 1})
    receipt.wait(30)
    assert receipt.done()
    assert receipt.acknowledged_ms() is not None


def test_large_records_are_truncated_or_dropped(narrow: KafkaWorld, caplog: pytest.LogCaptureFixture) -> None:
    sink = narrow.sink()
    rankings = [ranking("ann"), ranking("bob", "r" * 30_000), ranking("eve")]
    rejects = [
        reject(b"{small", b"ann"),
        reject(b"v" * 1_048_496, b"ann"),
        reject(b"{", b"k" * 50_000),
        reject(None, b"k" * 50_000),
        reject(b"last", None),
    ]
    publish(narrow, sink, rankings, rejects)
    assert narrow.users() == ["ann", "eve"]
    cut = HEADERS | {"truncated": b"true"}
    expected = [
        (b"ann", b"{small", HEADERS),
        (b"ann", b"v" * 4_096, cut | {"key_bytes": b"3", "value_bytes": b"1048496"}),
        (b"k" * 4_096, b"{", cut | {"key_bytes": b"50000", "value_bytes": b"1"}),
        (b"k" * 4_096, None, cut | {"key_bytes": b"50000"}),
        (None, b"last", HEADERS),
    ]
    found = [(letter.key, letter.value, dict(letter.headers)) for letter in narrow.dead_letters()]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    dead, lists = narrow.topics.dead_letters, narrow.topics.recommendations
    assert narrow.reduced == {(dead, "truncated"): 3, (lists, "dropped"): 1}
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in warned if repr(lists) in line and "max.message.bytes" in line]) == 1
    assert len([line for line in warned if repr(dead) in line and "first 65,536 bytes" in line]) == 1
    caplog.clear()  # the limits are known from now on
    rankings = [ranking("zoe"), ranking("bob", "r" * 30_000)]
    publish(narrow, sink, rankings, [reject(b"v" * 60_000, b"ann")])
    assert narrow.users() == ["ann", "eve", "zoe"]
    assert len(narrow.dead_letters()) == 6
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_records_that_are_too_large_together_are_sent_one_by_one(narrow: KafkaWorld) -> None:
    rankings = [ranking(f"u{n}", "r" * 300) for n in range(200)]
    publish(narrow, narrow.sink(), rankings, [reject(b"v" * 9_000, None)] * 3)
    assert len(narrow.users()) == 200
    assert [len(letter.value) for letter in narrow.dead_letters()] == [9_000] * 3
    assert not narrow.reduced


def test_a_record_larger_than_the_client_sends_is_truncated_or_dropped(world: KafkaWorld) -> None:
    options = world.kafka.options | {"max_request_size": 100_000}
    world.kafka = msgspec.structs.replace(world.kafka, options=options)
    rejects = [reject(b"v" * 200_000, b"ann")]
    world.sink().publish(Publication([ranking("bob", "r" * 200_000)], rejects)).wait(10)
    (letter,) = world.dead_letters()
    assert len(letter.value) == 65_536
    lists = world.topics.recommendations
    assert world.reduced == {(world.topics.dead_letters, "truncated"): 1, (lists, "dropped"): 1}


@pytest.mark.kafka
def test_a_broker_that_stops_fails_the_receipt(topic_name: Name) -> None:
    topics = topics_named(topic_name)
    with EmbeddedBroker() as broker:
        kafka = config(broker.bootstrap_servers, broker_timeout_s=1.0)
        create_topics(kafka, topics, replication=1)
        sink = KafkaSink(kafka, topics, now_ms)
        sink.publish(Publication([ranking("ann")])).wait(10)
        broker.stop()
        receipt = sink.publish(Publication([ranking("ann"), ranking("bob")]))
        with pytest.raises(PublishFailed, match=r"2 of 2 .* no acknowledgement within 0\.5 s"):
            receipt.wait(0.5)
        with pytest.raises(PublishFailed, match="2 of 2"):
            until_done(receipt)
        sink.close()


def until_done(receipt: KafkaReceipt) -> None:
    until = time.monotonic() + 20
    while not receipt.done():
        assert time.monotonic() < until


def test_the_producer_fails_after_the_broker_timeout() -> None:
    options = producer_options(KafkaConfig(broker_timeout_s=20))
    assert options["delivery_timeout_ms"] == 20_000
    assert options["request_timeout_ms"] == 10_000
    assert (options["acks"], options["enable_idempotence"]) == ("all", True)

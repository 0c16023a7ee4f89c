"""Reading from Kafka against real brokers: order, offsets, transactions, what is lost, who is late."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
from harness.clients import (
    Row,
    config,
    ends,
    make_topic,
    open_source,
    poll_forever,
    poll_until,
    values,
    write,
)
from harness.service import until
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka_group import START_MS, Group, numbered

from consumers.kafka import client as kafka_client
from consumers.kafka.client import Patience, consumer_options
from consumers.kafka.source import BACKLOG_WAIT_S, KafkaSource
from pipeline.errors import BrokerLost, CommitRefused, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.settings import BatchConfig, KafkaConfig
from producers.embedded_broker import EmbeddedBroker


@contextmanager
def transaction(broker: str, topic: str, rows: list[Row]) -> Iterator[KafkaProducer]:
    """Write records in a transaction that is open within the block, and aborted unless it was committed."""
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=f"{topic}-writer", linger_ms=0)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for row in rows:
            producer.send(topic, value=row.value, partition=row.partition, timestamp_ms=row.timestamp)
        producer.flush(timeout=20)
        yield producer
    finally:
        with suppress(KafkaError):  # it was committed
            producer.abort_transaction()
        producer.close(timeout=5)


def test_an_uneven_backlog_comes_in_order_of_time_and_in_full_batches(group: Group) -> None:
    topic = group.topic(4)
    times = random.Random(7).sample(range(100_000), 3_060)
    rows = [
        Row(partition, START_MS + time_ms, b"%d" % time_ms)
        for partition, (start, stop) in enumerate([(0, 2_000), (2_000, 2_060), (2_060, 3_060), (0, 0)])
        for time_ms in sorted(times[start:stop])
    ]
    write(group.broker, topic, rows)
    source, _ = group.open(topic)
    batches = poll_until(source, 3_060)
    assert values(batches) == [b"%d" % time_ms for time_ms in sorted(times)]
    assert [len(batch.records) for batch in batches] == [128] * 23 + [116]


def test_a_worker_that_has_time_closes_a_batch_soon_after_its_first_record(group: Group) -> None:
    topic = group.topic(2)
    source, _ = group.hold(topic, 2)
    write(group.broker, topic, numbered(3))
    began = time.monotonic()
    (batch,) = poll_until(source, 3, wait_s=30)
    assert len(batch.records) == 3
    assert time.monotonic() - began < 10


def test_spans_step_over_aborted_transactions_and_an_aborted_tail_leaves_no_lag(group: Group) -> None:
    topic = group.topic(1, numbered(50))
    with transaction(group.broker, topic, numbered(20, start=1_000)):
        pass
    write(group.broker, topic, numbered(50, start=50))
    with transaction(group.broker, topic, numbered(5, start=2_000)):
        pass
    source, _ = group.open(topic)
    batches = poll_until(source, 100, max_events=40)
    assert values(batches) == [b"%d" % n for n in range(100)]
    spans = [span for batch in batches for span in batch.spans]
    assert [len(batch.records) for batch in batches] == [40, 40, 20]
    assert all(before.stop == after.start for before, after in pairwise(spans))
    assert spans[-1].stop == 121  # 20 aborted records and their marker lie between
    assert values([source.read(batch.spans, batch.order_R) for batch in batches]) == values(batches)
    source.poll(128, 0.2)
    assert source.lag() == {TopicPartition(topic, 0): 0}


def test_an_open_transaction_delays_no_other_partition(group: Group) -> None:
    topic = group.topic(2)
    with transaction(group.broker, topic, [Row(0, START_MS, b"open")]) as producer:
        write(group.broker, topic, numbered(3, partition=1))
        source, _ = group.open(topic)
        assert values(poll_until(source, 3)) == [b"0", b"1", b"2"]
        began = time.monotonic()
        source.poll(128, 0.05)
        source.poll(128, 0.05)
        assert time.monotonic() - began < BACKLOG_WAIT_S
        producer.commit_transaction()
    assert values(poll_until(source, 1)) == [b"open"]


def test_a_topic_that_was_created_again_has_another_id(group: Group, request: pytest.FixtureRequest) -> None:
    topic = group.topic()
    ids = [group.open(topic)[0].topic_ids()]
    group.admin.delete_topics([topic])
    while topic in group.admin.list_topics():
        pass
    make_topic(group.broker, topic)
    ids.append(group.open(topic)[0].topic_ids())
    if "embedded" in request.node.callspec.id:
        assert ids == [{}, {}]
    else:
        assert ids[0].keys() == ids[1].keys() == {topic}
        assert ids[0] != ids[1]


@pytest.mark.kafka
def test_a_broker_that_goes_away_is_lost(topic_name: Callable[[str], str]) -> None:
    topic = topic_name("events")
    with EmbeddedBroker() as broker:
        make_topic(broker.bootstrap_servers, topic)
        write(broker.bootstrap_servers, topic, numbered(5))
        source, _ = open_source(config(broker.bootstrap_servers, topic, broker_timeout_s=1.5), topic)
        seen = poll_until(source, 5)
        broker.stop()

        def commit() -> None:
            with suppress(CommitRefused):
                source.commit(ends(seen))

        with pytest.raises(BrokerLost, match=r"has not answered for .*kafka\.broker_timeout_s = 1\.5"):
            poll_forever(source, commit)
        source.close()


def test_a_silent_broker_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "consumers.kafka.client")
    patience = Patience(KafkaConfig(bootstrap_servers="here:9092", broker_timeout_s=60.0))
    for ago_s in (1.0, 4.0, 5.0):
        patience.failed("reading events", time.monotonic() - ago_s, OSError())
        patience._failing_since = None  # the next one began longer ago
    patience.answered()
    patience.answered()
    assert [record.getMessage() for record in caplog.records] == [
        "the broker at here:9092 has not answered for 4 s while reading events; waiting up to 60 s",
        "the broker at here:9092 answers again",
    ]


def test_a_topic_that_does_not_exist_is_an_error(broker: str, topic_name: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*does not exist"):
        KafkaSource(config(broker), [topic_name("nowhere")], BatchConfig())


def test_options_of_the_user_reach_the_client_but_not_those_of_the_guarantees() -> None:
    kafka = KafkaConfig(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="ann", sasl_password="secret",
        ssl_cafile="/ca.pem", options={"fetch_min_bytes": 10, "linger_ms": 1},
    )  # fmt: skip
    options = consumer_options(kafka, in_group=True)
    assert options["fetch_min_bytes"] == 10
    assert "linger_ms" not in options  # a producer's option
    assert options["sasl_plain_password"] == "secret"
    assert options["ssl_cafile"] == "/ca.pem"
    assert (options["enable_auto_commit"], options["auto_offset_reset"]) == (False, "none")
    assert consumer_options(kafka, in_group=False)["group_id"] is None


def test_a_late_broker_is_awaited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kafka_client, "SILENCE_LOGGED_S", 0.0)
    caplog.set_level("INFO", "consumers.kafka.client")

    def late(**options: int) -> str:
        until(lambda: caplog.records, "a line of the log")
        return "a client"

    options = kafka_client.connection_options(KafkaConfig(bootstrap_servers="here:9092"))
    assert kafka_client.connect(late, options) == "a client"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "no broker has answered at here:9092 yet; waiting up to 15 s (kafka.start_timeout_s)"

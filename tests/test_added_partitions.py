"""Partitions that are added to topics while they are read: seen soon, shown, and read from their start."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from harness.clients import Recorder, Row, config, make_topic, open_source, write
from harness.service import until
from kafka import KafkaAdminClient, KafkaProducer
from test_kafka_source import DOOMED

from consumers.kafka import items as kafka_items
from consumers.kafka.client import METADATA_MAX_AGE_MS, consumer_options
from consumers.kafka.group import UnreadPartitions
from consumers.kafka.items import KafkaItems
from consumers.kafka.source import KafkaSource
from consumers.kafka.topic import TopicReader
from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import ItemChange, TopicPartition
from pipeline.settings import KafkaConfig
from producers.kafka.client import producer_options

Name = Callable[[str], str]


def soon(kafka: KafkaConfig) -> KafkaConfig:
    """Let the client look for partitions ten times a second."""
    return msgspec.structs.replace(kafka, options=kafka.options | {"metadata_max_age_ms": 100})


def add(broker: str, topic: str, count: int) -> None:
    """Give a topic so many partitions."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_partitions({topic: count})
    admin.close()


def rows(partition: int, count: int) -> list[Row]:
    return [Row(partition, 1_700_000_000_000 + number, b"%d" % number) for number in range(count)]


def assert_shown_then_read(source: KafkaSource, recorder: Recorder, added: list[TopicPartition]) -> None:
    """The records of added partitions are lag before they are assigned, and come from the first one on."""
    until(lambda: [source.lag().get(each) for each in added] == [5] * len(added), "lag of unread partitions")
    assert not recorder.held & set(added)
    assert_read(source, recorder, added)


def assert_read(source: KafkaSource, recorder: Recorder, added: list[TopicPartition]) -> None:
    """Added partitions are assigned, and their records come from the first one on."""
    spans: dict[TopicPartition, int] = {}
    while not spans.keys() >= set(added):
        for span in source.poll(128, 0.01).spans:
            spans.setdefault(span.source, span.start)
        source.lag()  # as the loop asks for it with each commit
    assert [spans[each] for each in added] == [0] * len(added)
    assert source.lag() == dict.fromkeys(recorder.held, 0)


def test_an_added_partition_is_shown_and_read_from_its_first_record(broker: str, topic_name: Name) -> None:
    topic = topic_name("events")
    make_topic(broker, topic, 2)
    source, recorder = open_source(soon(config(broker, topic)), topic)
    with closing(source):
        while len(recorder.held) < 2:
            source.poll(10, 0.01)
        add(broker, topic, 4)
        added = [TopicPartition(topic, 2), TopicPartition(topic, 3)]
        write(broker, topic, [*rows(2, 5), *rows(3, 5)])
        assert_shown_then_read(source, recorder, added)


@pytest.mark.kafka
def test_a_worker_that_took_its_old_place_back_is_given_partitions_added_meanwhile(
    apache_broker: str, topic_name: Name
) -> None:
    """It comes back without a rebalance, and its client does not know that it leads the group.

    Unless the other one had joined twice: then there is a rebalance, and the partition is assigned at once.
    """
    topic = topic_name("events")
    make_topic(apache_broker, topic, 2)
    with subprocess.Popen(
        [sys.executable, "-c", DOOMED, apache_broker, topic],
        cwd=str(Path(__file__).parent), stdout=subprocess.PIPE,
    ) as doomed:  # fmt: skip
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == b"held\n"
        doomed.kill()
    kafka = KafkaConfig(bootstrap_servers=apache_broker, group_id=topic)
    add(apache_broker, topic, 3)
    write(apache_broker, topic, rows(2, 5))
    source, recorder = open_source(soon(kafka), topic)
    with closing(source):
        assert_read(source, recorder, [TopicPartition(topic, 2)])


def test_what_stays_unread_is_logged_and_asked_for_once(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog({"events": 4})
    first, *others = log.partitions()
    for source in others:
        log.append(b"{}", partition=source.partition)
    group, unread = MemorySource(log), UnreadPartitions(every_s=0.0)
    assert not unread.look(group, [first])  # their worker may be about to commit
    assert unread.records == dict.fromkeys(others, 1)
    log.committed[others[0]] = 1
    assert unread.look(group, [first])
    assert not unread.look(group, [first])
    assert not unread.look(group, log.partitions())
    assert unread.records == {}
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("2 partitions hold records and are not read yet: events-2, events-3; asking")


def test_the_items_topic_s_added_partitions_are_read_too(
    broker: str, topic_name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_items, "LOOK_EVERY_S", 0.0)
    topic = topic_name("items")
    make_topic(broker, topic, 1)
    with closing(KafkaItems(soon(config(broker)), topic)) as items:
        items.start({})
        until(lambda: items.poll()[1], "the end")
        add(broker, topic, 2)
        producer = KafkaProducer(bootstrap_servers=broker)
        producer.send(topic, key=b"lamp", partition=1).get(timeout=20)
        producer.close()
        news = until(lambda: items.poll()[0], "a record of the added partition")
    assert (news.changes, news.offsets) == ((ItemChange("lamp", False),), ((topic, 1, 1),))


def test_a_tail_reads_added_partitions_from_their_first_record(
    broker: str, topic_name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topic_name("lists")
    make_topic(broker, topic, 1)
    kafka = msgspec.structs.replace(soon(config(broker)), broker_timeout_s=5.0)  # looks once a second
    with TopicReader(kafka, topic, "end", partitions=lambda count: [count - 1]) as tail:
        add(broker, topic, 2)
        write(broker, topic, [*rows(0, 1), *rows(1, 1)])
        found: list[int] = []
        until(lambda: found.extend(each.partition for each in tail.poll()) or len(found) == 2, "both")
    assert sorted(found) == [0, 1]


def test_clients_look_for_partitions_often_unless_configured_otherwise() -> None:
    kafka = KafkaConfig()
    changed = KafkaConfig(options={"metadata_max_age_ms": 7_000})
    assert METADATA_MAX_AGE_MS <= 10_000
    assert consumer_options(kafka, in_group=True)["metadata_max_age_ms"] == METADATA_MAX_AGE_MS
    for options in (consumer_options(changed, in_group=True), producer_options(changed)):
        assert options["metadata_max_age_ms"] == 7_000

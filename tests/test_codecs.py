"""Compressed topics: every codec on every topic, large batches, and batches that can't be read at all."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import kafka.codec as client_codec
import kafka.record.default_records as record_format
import msgspec
import pytest
from harness.clients import config, lying_on, make_topic, open_source, poll_until
from harness.service import Process, Site
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.record import MemoryRecords

from consumers.kafka.items import KafkaItems
from pipeline.app.check.checks import all_findings
from pipeline.app.check.findings import Finding, Level
from pipeline.app.watching import Wanted, watch
from pipeline.errors import UsageError
from pipeline.events.batch import CatalogUpdate, Span
from pipeline.events.records import RankedItem, Ranking
from pipeline.service.clock import SystemClock
from pipeline.service.ports import Publication
from pipeline.settings import KafkaConfig, Settings, TopicsConfig
from producers.kafka.sink import KafkaSink

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]
Log = pytest.LogCaptureFixture
Broken = tuple[KafkaConfig, str]  # [kafka] and a topic

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}  # with the number that a record batch has for it
EVENTS = 400  # a topic
# the largest value that a topic takes by default, but for a few bytes; it can't be compressed
POISON = random.Random(1).randbytes(1_048_496)
now_ms = SystemClock().now_ms


class Sizes(KafkaConsumer):  # type: ignore[misc]  # the client has no types
    """A consumer that notes the codec of each batch, and its bytes when uncompressed."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.seen: list[tuple[int, int]] = []
        seen = self.seen

        class Records(self._fetcher.PartitionRecords):  # type: ignore[misc,name-defined]
            def _unpack_records(self, tp: object, records: MemoryRecords, *more: object) -> object:
                for batch in MemoryRecords(bytes(records._buffer)):
                    codec = batch.compression_type
                    batch._maybe_uncompress()
                    seen.append((codec, len(batch._buffer)))
                return super()._unpack_records(tp, records, *more)

        self._fetcher.PartitionRecords = Records


def batches_of(broker: str, topic: str) -> list[tuple[int, int]]:
    """Return codec and uncompressed size of each batch of a topic."""
    consumer = Sizes(bootstrap_servers=broker)
    partitions = [KafkaPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        consumer.poll(timeout_ms=200)
    consumer.close(autocommit=False)
    return consumer.seen


def event(number: int, item: str) -> bytes:
    """Return an event that is three kilobytes with what is not read of it."""
    record = {"user_id": f"u{number % 40}", "item_id": item, "timestamp_ms": now_ms()}
    return json.dumps(record | {"context": {"page": f"{number:04d}" * 720}}).encode()


def send(broker: str, topic: str, values: Iterable[bytes], codec: str | None) -> None:
    producer = KafkaProducer(
        bootstrap_servers=broker, compression_type=codec, batch_size=4 << 20, linger_ms=2_000,
        max_request_size=8 << 20,
    )  # fmt: skip
    futures = [producer.send(topic, value=value, key=b"k", partition=0) for value in values]
    producer.flush()
    for future in futures:
        future.get(timeout=20)
    producer.close()


def fill(site: Site, in_java: bool) -> None:
    """Write a large batch by each codec to a topic of its own, and items by each to one topic.

    `in_java`: the broker compresses the events, as the topic's `compression.type` says.
    """
    for codec in CODECS:
        topic = f"{site.stem}-{codec}"
        make_topic(site.broker, topic, configs={"compression.type": codec} if in_java else {})
        values = (event(number, f"{codec}-{number % 30}") for number in range(EVENTS))
        send(site.broker, topic, values, "gzip" if in_java else codec)
        ((number, size),) = batches_of(site.broker, topic)
        assert number == CODECS[codec]
        assert size > 1 << 20
    make_topic(site.broker, f"{site.stem}-plain")
    send(site.broker, f"{site.stem}-plain", [POISON], None)
    make_topic(site.broker, f"{site.stem}-dead_letters")  # of the default size
    make_topic(site.broker, f"{site.stem}-items", configs={"cleanup.policy": "compact"})
    for codec in CODECS:  # a batch that compression does not make smaller goes as it is
        items = [f"{codec}-{number % 5}" for number in range(60)]
        send(site.broker, f"{site.stem}-items", map(withdrawn, items), codec)
    assert {number for number, _ in batches_of(site.broker, f"{site.stem}-items")} == set(CODECS.values())
    site.create_topics()


def withdrawn(item: str) -> bytes:
    return json.dumps({"item_id": item, "available": False}).encode()


def test_a_service_reads_every_codec_and_writes_one(
    broker: str, request: pytest.FixtureRequest, topic_name: Name, tmp_path: Path
) -> None:
    stem = topic_name("codecs")
    topics = json.dumps([f"{stem}-{codec}" for codec in (*CODECS, "plain")])
    options = {"topics.events": topics, "kafka.options.compression_type": "zstd"}
    with Site(broker, stem, tmp_path, partitions=1, settings=options) as site:
        fill(site, in_java="apache" in request.node.callspec.id)
        settings = site.configured()
        found = list(all_findings(settings, {}, False, now_ms))
        assert readable(found) == {*settings.topics.event_topics(), settings.topics.items}
        service = site.run()
        service.wait_learned(EVENTS * len(CODECS))
        newest = service.until(lambda: len(lists := site.newest()) > 40 and lists, "every user has a list")
        reduced = service.until(lambda: too_large(service), "the poison record is a dead letter")
        service.end()
        shown = {item["item_id"] for ranking in newest.values() for item in ranking["items"]}
        assert shown
        assert shown.isdisjoint({f"{codec}-{number}" for codec in CODECS for number in range(5)})
        (letter,) = lying_on(broker, settings.topics.dead_letters)
        headers = dict(letter.headers)
        assert (letter.value, headers["truncated"]) == (POISON[:65_536], b"true")
        assert headers["value_bytes"] == str(len(POISON)).encode()
        assert (headers["topic"], headers["offset"]) == (f"{stem}-plain".encode(), b"0")
        labels = f'{{outcome="truncated",topic="{settings.topics.dead_letters}"}}'
        assert reduced == {f"afresh_records_too_large_total{labels}": 1}
        assert CODECS["zstd"] in {number for number, _ in batches_of(broker, settings.topics.recommendations)}
        assert watched_codecs(settings) == set(CODECS)


def too_large(service: Process) -> dict[str, float]:
    return {name: n for name, n in service.metrics().items() if "records_too_large" in name and n}


def readable(found: Iterable[Finding]) -> set[str]:
    read = [each for each in found if each.about.startswith("records of ") and "newest" in each.found]
    return {each.about.removeprefix("records of ") for each in read}


def watched_codecs(settings: Settings) -> set[str]:
    """Publish lists by each codec, and return those that `watch` shows."""
    for codec in CODECS:
        options = settings.kafka.options | {"compression_type": codec}
        sink = KafkaSink(msgspec.structs.replace(settings.kafka, options=options), settings.topics, now_ms)
        lists = [RankedItem(f"i{place}", 1.0, []) for place in range(50)]
        sink.publish(Publication([Ranking(codec, "r", lists, 0, 0, "m", 0)])).wait(20)
        sink.close()
    lines = watch(settings, Wanted(list(CODECS), as_json=True), lambda: None)
    users = {json.loads(line)["user_id"] for line in itertools.islice(lines, len(CODECS))}
    lines.close()
    return users


@pytest.fixture
def broken(embedded_broker: str, topic_name: Name, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """A topic with good batches, and between them one that is broken for each codec.

    On the embedded broker alone: Apache Kafka looks into each batch that is written.
    """
    topic = topic_name("broken")
    make_topic(embedded_broker, topic)
    send(embedded_broker, topic, [withdrawn(f"first-{n}") for n in range(3)], None)
    for codec in CODECS:
        with monkeypatch.context() as patch:
            patch.setattr(record_format, f"{codec}_encode", lambda data: b"\x00broken\xff" * 3)
            send(embedded_broker, topic, [withdrawn(f"bad-{n}") for n in range(50)], codec)
        send(embedded_broker, topic, [withdrawn(f"{codec}-{n}") for n in range(3)], codec)
    return config(embedded_broker, topic), topic


def test_an_unreadable_batch_is_one_record_at_every_read(broken: Broken, caplog: Log) -> None:
    kafka, topic = broken
    source, _ = open_source(kafka, topic)
    polled = [record for batch in poll_until(source, 19) for record in batch.records]
    last = [52 + 53 * n for n in range(4)]  # of each broken batch
    offsets = [*range(3), *(offset for at in last for offset in range(at, at + 4))]
    assert [record.offset for record in polled] == offsets
    bad = [record for record in polled if getattr(record, "unreadable", "")]
    assert [(record.offset, record.value, record.key) for record in bad] == [(at, None, None) for at in last]
    assert bad[0].unreadable.startswith("the record batch at offsets 3 to 52 can't be read: ")
    assert {record.stands_for for record in bad} == {50}
    span = Span(topic, 0, 2, offsets[-1] + 1)
    again = source.read((span,), None).records
    assert [(r.offset, r.value) for r in again] == [(r.offset, r.value) for r in polled[2:]]
    inside = Span(topic, 0, 20, 54)  # begins within the batch
    assert [r.offset for r in source.read((inside,), None).records] == [52, 53]
    source.close()
    warned = [r for r in caplog.records if r.name == "consumers.kafka.batches" and r.levelname == "WARNING"]
    assert len(warned) == 2  # of the member and of the reader, each once a partition


def test_a_broken_batch_of_items_is_a_dead_letter_and_the_next_ones_are_read(broken: Broken) -> None:
    kafka, topic = broken
    items = KafkaItems(kafka, topic)
    items.start({})
    news: list[CatalogUpdate] = []
    whole = False
    while not whole:
        some, whole = items.poll()
        news.append(some)
    items.close()
    expected = {f"{stem}-{n}" for stem in ("first", *CODECS) for n in range(3)}
    assert {change.item_id for some in news for change in some.changes} == expected
    bad = [each for some in news for each in some.bad]
    assert Counter(each.reason for each in bad) == {"unreadable_batch": 4}
    assert "offsets 3 to 52" in bad[0].detail


def test_check_tells_what_can_not_be_read(
    broken: Broken, topic_name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka, topic = broken
    empty = topic_name("empty")
    make_topic(kafka.bootstrap_servers, empty)
    as_events = Settings(kafka=kafka, topics=TopicsConfig(events=[topic], items=empty))
    as_items = Settings(kafka=kafka, topics=TopicsConfig(events=[empty], items=topic))

    def found(settings: Settings) -> list[Finding]:
        findings = all_findings(settings, {}, False, now_ms)
        return [each for each in findings if each.about == f"records of {topic}"]

    assert any(each.found.startswith("unreadable_batch: 4, such as") for each in found(as_events))
    warnings = [each for each in found(as_items) if each.level is Level.WARN]
    assert any(each.found.startswith("unreadable_batch: 4, such as") for each in warnings)
    monkeypatch.setattr(client_codec, "has_lz4", lambda: False)
    for settings in (as_events, as_items):
        (fault,) = found(settings)
        assert fault.level is Level.FAULT
        assert f"{topic}-0 offset 109: Libraries for lz4 compression codec not found; expected" in fault.found
    source, _ = open_source(kafka, topic)
    with pytest.raises(UsageError, match="lz4 compression codec not found; expected gzip, snappy, lz4"):
        poll_until(source, 100)
    source.close()

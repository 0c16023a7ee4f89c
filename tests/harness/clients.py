"""Plain Kafka clients for broker tests: create topics, write and read records, record rebalance callbacks."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import ConsumerRecord

from consumers.kafka.source import KafkaSource
from pipeline.events.batch import Polled, TopicPartition
from pipeline.service.ports import Source
from pipeline.settings import BatchConfig, KafkaConfig

# a member that stops polling or is removed notices within seconds
QUICK = {"heartbeat_interval_ms": 100, "session_timeout_ms": 6_000, "retry_backoff_ms": 20}


class Row(NamedTuple):
    partition: int
    timestamp: int
    value: bytes


def config(address: str, group: str = "group", **more: object) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=address, group_id=group, options=QUICK, **more)  # type: ignore[arg-type]


def make_topic(address: str, topic: str, partitions: int = 1, configs: dict[str, str] | None = None) -> None:
    """Create a topic that keeps records of any age, and wait until it can be used."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    configs = {"retention.ms": "-1"} | (configs or {})
    spec = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
    admin.create_topics({topic: spec}, wait_for_metadata=True)
    admin.close()


def write(address: str, topic: str, rows: Iterable[Row], **options: object) -> None:
    producer = KafkaProducer(bootstrap_servers=address, linger_ms=5, batch_size=65_536, **options)
    futures = [
        producer.send(topic, value=row.value, key=b"k", partition=row.partition, timestamp_ms=row.timestamp)
        for row in rows
    ]
    for future in futures:
        future.get(timeout=20)
    producer.close()


def lying_on(address: str, topic: str) -> list[ConsumerRecord]:
    """Return every committed record of a topic, by partition and offset."""
    consumer = KafkaConsumer(
        bootstrap_servers=address,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
    )
    partitions = [KafkaPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    found: list[ConsumerRecord] = []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(timeout_ms=100).values():
            found += records
    consumer.close(autocommit=False)
    return sorted(found, key=lambda record: (record.partition, record.offset))


def values(batches: Iterable[Polled]) -> list[bytes | None]:
    return [record.value for batch in batches for record in batch.records]


def ends(batches: Iterable[Polled]) -> dict[TopicPartition, int]:
    return {span.source: span.stop for batch in batches for span in batch.spans}


class Recorder:
    """A rebalance listener that records calls, and seeks to `offsets`, the commit or the earliest record."""

    def __init__(self, source: Source, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        self.source, self.offsets = source, offsets or {}
        self.held: set[TopicPartition] = set()
        self.calls: list[tuple[str, list[TopicPartition]]] = []
        self.threads: set[int] = set()
        self.on_revoked: Callable[[Sequence[TopicPartition]], None] = lambda partitions: None
        source.start(self)

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._record("assigned", partitions)
        self.held.update(partitions)
        offsets = {**self.source.committed(partitions), **self.offsets}
        for partition in partitions:
            self.source.seek(partition, offsets.get(partition))

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._record("revoked", partitions)
        self.on_revoked(partitions)
        self.held.difference_update(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._record("lost", partitions)
        self.held.difference_update(partitions)

    def partitions_of(self, event: str) -> list[TopicPartition]:
        """Return the partitions of every call of this kind, in order."""
        return [partition for kind, partitions in self.calls if kind == event for partition in partitions]

    def _record(self, event: str, partitions: Sequence[TopicPartition]) -> None:
        self.calls.append((event, sorted(partitions)))
        self.threads.add(threading.get_ident())


def open_source(kafka: KafkaConfig, *topics: str) -> tuple[KafkaSource, Recorder]:
    source = KafkaSource(kafka, topics, BatchConfig())
    return source, Recorder(source)


def poll_forever(source: KafkaSource, after: Callable[[], None] = lambda: None) -> NoReturn:
    """Poll until something is raised; the test's time limit ends it otherwise."""
    while True:
        source.poll(10, 0.05)
        after()


def poll_until(source: KafkaSource, enough: int, max_events: int = 128, wait_s: float = 0.05) -> list[Polled]:
    """Poll until `enough` records have come; the test's time limit ends it otherwise."""
    batches: list[Polled] = []
    while sum(len(batch.records) for batch in batches) < enough:
        if batch := source.poll(max_events, wait_s):
            batches.append(batch)
    return batches

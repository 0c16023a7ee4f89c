"""A batch as records: which topic, key, partition and bytes each ranking, dead letter and alarm becomes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureRecordMetadata

from pipeline.errors import PublishFailed
from pipeline.event.batch import Record, Reject
from pipeline.event.records import DriftAlarm, Ranking
from pipeline.settings import TopicsConfig

DETAIL_BYTES = 1_000  # of the header `exception`
Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch in the client's hands."""

    futures: list[FutureRecordMetadata] = field(default_factory=list)  # one a record, in the order sent
    # the last of each partition, whose records are acknowledged in order
    last: dict[tuple[str, int], FutureRecordMetadata] = field(default_factory=dict)

    def add(self, topic: str, partition: int, future: FutureRecordMetadata) -> None:
        """Note one more record."""
        self.futures.append(future)
        self.last[topic, partition] = future


class Outgoing:
    """Hands batches to a producer, without waiting for it."""

    def __init__(self, topics: TopicsConfig) -> None:
        self._topics = topics
        self._encode = msgspec.json.Encoder().encode
        self._hash = functools.lru_cache(maxsize=131_072)(key_hash)

    def send(
        self,
        producer: KafkaProducer,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
    ) -> Sent:
        """Send a batch. Raise `PublishFailed` when the client takes no more."""
        sent = Sent()
        try:
            self._send_rankings(producer, rankings, gone, sent)
            self._send_dead_letters(producer, rejects, sent)
            for alarm in alarms:
                topic, key = self._topics.drift, alarm.signal.encode()
                partition = self._hash(key) % len(producer.partitions_for(topic))
                value = self._encode(alarm)
                sent.add(topic, partition, producer.send(topic, value=value, key=key, partition=partition))
        except (KafkaError, ValueError) as error:
            total = len(rankings) + len(gone) + len(rejects) + len(alarms)
            raise failed(error, total - len(sent.futures), total) from error
        return sent

    def _send_rankings(
        self,
        producer: KafkaProducer,
        rankings: Sequence[Ranking],
        gone: Sequence[str],
        sent: Sent,
    ) -> None:
        topic, send, encode, hashed = self._topics.recommendations, producer.send, self._encode, self._hash
        count = len(producer.partitions_for(topic))
        for ranking in rankings:
            key = ranking.user_id.encode()
            partition = hashed(key) % count
            sent.add(topic, partition, send(topic, value=encode(ranking), key=key, partition=partition))
        for user_id in gone:
            key = user_id.encode()
            partition = hashed(key) % count
            sent.add(topic, partition, send(topic, value=None, key=key, partition=partition))

    def _send_dead_letters(
        self,
        producer: KafkaProducer,
        rejects: Sequence[Reject],
        sent: Sent,
    ) -> None:
        """Keep each source partition's rejects together and in order."""
        if not rejects:
            return
        topic = self._topics.dead_letters
        count = len(producer.partitions_for(topic))
        for reject in rejects:
            record, headers = reject.record, _headers(reject)
            value = record.value
            if value is None and record.key is None:  # the client refuses what a topic may hold
                value = b""
                headers.append(("value", b"null"))
            partition = record.partition % count
            future = producer.send(topic, value=value, key=record.key, headers=headers, partition=partition)
            sent.add(topic, partition, future)


def key_hash(key: bytes) -> int:
    """Hash a key as Kafka's default partitioner does; the partition is this modulo the number of partitions.

    >>> key_hash(b"ann") % 4
    2
    """
    return int(murmur2(key)) & 0x7FFFFFFF


def _headers(reject: Reject) -> Headers:
    record: Record = reject.record
    return [
        ("reason", reject.reason.encode()),
        ("exception", reject.detail.encode()[:DETAIL_BYTES].decode(errors="ignore").encode()),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
    ]


def failed(error: Exception, missing: int, total: int) -> PublishFailed:
    """Make the error of a batch of which so many records were not taken."""
    return PublishFailed(
        f"{missing} of {total} records of a batch were not acknowledged: {type(error).__name__}: {error}; "
        "its events stay uncommitted and will be read again"
    )

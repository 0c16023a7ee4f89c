"""Rankings, dead letters and drift alarms to Kafka topics.

Everything of a batch goes out without waiting; its receipt knows when all of it is acknowledged. A mode with
transactions would open one in `publish` and close it, offsets included, when the receipt is done: the seam is
there, the mode is not.
"""

import functools
import time
from collections.abc import Sequence

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureRecordMetadata

from consumers.kafka_client import connect
from pipeline.errors import PublishFailed, UsageError
from pipeline.event.batch import Record, Reject
from pipeline.event.records import DriftAlarm, Ranking
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka_client import producer_options
from producers.topics import missing_topics

CLOSE_WAIT_S = 5.0
DETAIL_BYTES = 1_000  # of the header `exception`
Headers = list[tuple[str, bytes]]


class KafkaReceipt:
    """A batch on its way out: see `pipeline.run.ports.Receipt`."""

    def __init__(self, futures: Sequence[FutureRecordMetadata]) -> None:
        self._futures = futures
        self._acknowledged = 0  # the first so many are; each future is looked at once, no callback is needed

    def done(self) -> bool:
        """Say whether everything is acknowledged; raise `PublishFailed` when something can't be."""
        futures, index = self._futures, self._acknowledged
        while index < len(futures) and futures[index].is_done:
            if futures[index].exception is not None:
                raise _failed(futures[index].exception, len(futures) - index, len(futures))
            index += 1
        self._acknowledged = index
        return index == len(futures)

    def wait(self, timeout_s: float) -> None:
        """Return when everything is acknowledged; raise `PublishFailed` otherwise."""
        until = time.monotonic() + timeout_s
        while not self.done():
            future = self._futures[self._acknowledged]
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except KafkaError as error:
                if isinstance(error, KafkaTimeoutError) and not future.is_done:
                    error = KafkaTimeoutError(f"no acknowledgement within {timeout_s:g} s")
                raise _failed(error, len(self._futures) - self._acknowledged, len(self._futures)) from error


class KafkaSink:
    """The sink of the service: see `pipeline.run.ports.Sink`.

    Raises `UsageError` when no broker answers at construction or a topic doesn't exist.
    """

    def __init__(self, kafka: KafkaConfig, topics: TopicsConfig) -> None:
        self._topics = topics
        absent = missing_topics(kafka, (topics.recommendations, topics.dead_letters, topics.drift))
        if absent:
            raise UsageError(
                f"topic {absent[0]!r} does not exist on {kafka.bootstrap_servers}: expected the topics of "
                "[topics]; create it, or correct the name"
            )
        self._producer: KafkaProducer = connect(KafkaProducer, producer_options(kafka))
        self._encode = msgspec.json.Encoder().encode
        self._hash = functools.lru_cache(maxsize=131_072)(key_hash)

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
    ) -> KafkaReceipt:
        """Send without waiting. Raise `PublishFailed` when the client takes no more."""
        futures: list[FutureRecordMetadata] = []
        total = len(rankings) + len(gone) + len(rejects) + len(alarms)
        try:
            self._send_rankings(rankings, gone, futures)
            self._send_dead_letters(rejects, futures)
            for alarm in alarms:
                key = alarm.signal.encode()
                futures.append(self._producer.send(self._topics.drift, value=self._encode(alarm), key=key))
        except (KafkaError, ValueError) as error:
            raise _failed(error, total - len(futures), total) from error
        return KafkaReceipt(futures)

    def close(self) -> None:
        """Send what is left, waiting a few seconds for it, and close."""
        try:
            self._producer.close(timeout=CLOSE_WAIT_S)
        except KafkaTimeoutError as error:
            raise PublishFailed(
                f"records were still unacknowledged {CLOSE_WAIT_S:g} s after close"
            ) from error

    def _send_rankings(
        self, rankings: Sequence[Ranking], gone: Sequence[str], futures: list[FutureRecordMetadata]
    ) -> None:
        topic, send, encode, hashed = (
            self._topics.recommendations,
            self._producer.send,
            self._encode,
            self._hash,
        )
        count = len(self._producer.partitions_for(topic))
        for ranking in rankings:
            key = ranking.user_id.encode()
            futures.append(send(topic, value=encode(ranking), key=key, partition=hashed(key) % count))
        for user_id in gone:
            key = user_id.encode()
            futures.append(send(topic, value=None, key=key, partition=hashed(key) % count))

    def _send_dead_letters(self, rejects: Sequence[Reject], futures: list[FutureRecordMetadata]) -> None:
        """Keep each source partition's rejects together and in order."""
        if not rejects:
            return
        topic = self._topics.dead_letters
        count = len(self._producer.partitions_for(topic))
        for reject in rejects:
            record, headers = reject.record, _headers(reject)
            value = record.value
            if value is None and record.key is None:  # the client refuses what a topic may hold
                value = b""
                headers.append(("value", b"null"))
            futures.append(
                self._producer.send(
                    topic, value=value, key=record.key, headers=headers, partition=record.partition % count
                )
            )


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


def _failed(error: Exception, missing: int, total: int) -> PublishFailed:
    return PublishFailed(
        f"{missing} of {total} records of a batch were not acknowledged: {type(error).__name__}: {error}; "
        "its events stay uncommitted and will be read again"
    )

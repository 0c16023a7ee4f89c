"""Kafka records of a batch: topic, key, partition and bytes of each ranking, dead letter and drift alarm.

The largest record that a topic takes (`max.message.bytes`) is known once the topic has rejected one. A dead
letter that is too large is truncated, any other record is dropped: no record may stop the service.
"""

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import kafka.errors
import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureRecordMetadata

from pipeline.errors import PublishFailed
from pipeline.events.batch import Record, Reject
from pipeline.service.ports import Publication
from pipeline.settings import TopicsConfig

logger = logging.getLogger(__name__)

MAX_DETAIL_BYTES = 1_000  # of the header `exception`
# First bytes of key and value that a truncated dead letter keeps: the first size that fits.
TRUNCATED_BYTES = (65_536, 4_096, 256, 0)
TOO_LARGE = (kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError)


class Outbound(NamedTuple):
    """A record to send."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def size_bytes(self) -> int:
        """Return the bytes of key, value and headers."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Reduced(NamedTuple):
    """What happened to a record that its topic does not take as a whole."""

    topic: str
    outcome: str  # truncated or dropped


ReducedCounts = Mapping[Reduced, int]


@dataclass(frozen=True, slots=True)
class Sent:
    """Records that were handed to the client."""

    records: list[Outbound] = field(default_factory=list)  # before truncation
    futures: list[FutureRecordMetadata] = field(default_factory=list)  # one a record, in the order sent
    reduced: Counter[Reduced] = field(default_factory=Counter)
    not_sent: list[Outbound] = field(default_factory=list)  # because a record before them was too large

    def too_large(self) -> bool:
        """Return whether a record was rejected as too large.

        The producer is unusable then: kafka-python 3.0.12 fails all its later records with the same error.
        """
        done = (future.exception for future in self.futures if future.is_done)
        return bool(self.not_sent) or any(isinstance(error, TOO_LARGE) for error in done)

    def unacknowledged(self) -> list[Outbound]:
        """Return the records that are not acknowledged."""
        pairs = zip(self.records, self.futures, strict=True)
        return [record for record, future in pairs if not future.succeeded()] + self.not_sent


class RecordWriter:
    """Encodes batches as records and hands them to a producer."""

    def __init__(self, topics: TopicsConfig) -> None:
        self._topics = topics
        self._encode = msgspec.json.Encoder().encode
        self._hash = functools.lru_cache(maxsize=131_072)(key_hash)
        self._rejected_bytes: dict[str, int] = {}  # topic -> size of the smallest record that it rejected

    def records(self, producer: KafkaProducer, publication: Publication) -> list[Outbound]:
        """Return the records of a batch in the order of sending."""
        topics, encode, hashed = self._topics, self._encode, self._hash
        keyed: list[tuple[str, bytes, bytes | None]] = [
            (topics.recommendations, each.user_id.encode(), encode(each)) for each in publication.rankings
        ]
        keyed += [(topics.recommendations, user_id.encode(), None) for user_id in publication.removed_users]
        keyed += [(topics.drift, each.signal.encode(), encode(each)) for each in publication.alarms]
        count = functools.cache(lambda topic: len(producer.partitions_for(topic)))
        out = [Outbound(topic, hashed(key) % count(topic), key, value, []) for topic, key, value in keyed]
        topic = topics.dead_letters  # those of one source partition stay together and in order
        return out + [_dead_letter(topic, count(topic), reject) for reject in publication.rejects]

    def send(self, producer: KafkaProducer, records: Sequence[Outbound], singly_s: float = 0.0) -> Sent:
        """Send records without waiting; with `singly_s`, wait up to that many seconds for each one.

        Sending one record at a time shows which one is too large: `Sent.not_sent` then starts with it, and
        the next call sends it in a smaller form or drops it. Raise `PublishFailed` when the client fails.
        """
        sent = Sent()
        try:
            for index, record in enumerate(records):
                handed = self._hand_over(producer, record)
                if handed is None:
                    sent.reduced[Reduced(record.topic, "dropped")] += 1
                    continue
                form, future = handed
                if singly_s and not self._taken(producer, form, future, singly_s):
                    sent.not_sent.extend(records[index:])
                    break
                sent.records.append(record)
                sent.futures.append(future)
                if form is not record:
                    sent.reduced[Reduced(record.topic, "truncated")] += 1
        except (KafkaError, ValueError) as error:
            if any(isinstance(cause, TOO_LARGE) for cause in error.args):  # a record that was sent before
                return Sent(not_sent=list(records))
            raise publish_failed(error, len(records) - len(sent.futures), len(records)) from error
        return sent

    def _hand_over(
        self, producer: KafkaProducer, record: Outbound
    ) -> tuple[Outbound, FutureRecordMetadata] | None:
        """Hand the largest form of a record that its topic may take to the client; None: no form fits."""
        while (form := self._largest_form(record)) is not None:
            try:
                return form, producer.send(
                    form.topic, value=form.value, key=form.key, headers=form.headers, partition=form.partition
                )
            except TOO_LARGE:  # max_request_size, the client's own limit
                self._note_rejected(form)
        return None

    def _taken(
        self, producer: KafkaProducer, form: Outbound, future: FutureRecordMetadata, wait_s: float
    ) -> bool:
        """Wait for the acknowledgement of a record; return False when it is too large."""
        flush(producer, wait_s)
        try:
            future.get(timeout=wait_s)
        except TOO_LARGE:
            self._note_rejected(form)
            return False
        return True

    def _largest_form(self, record: Outbound) -> Outbound | None:
        """Return the record, or a truncated dead letter, below the size that its topic rejects; None: no
        form is."""
        limit = self._rejected_bytes.get(record.topic)
        if limit is None:
            return record
        sizes = TRUNCATED_BYTES if record.topic == self._topics.dead_letters else ()
        forms = (record, *(_truncated(record, size) for size in sizes))
        return next((form for form in forms if form.size_bytes() < limit), None)

    def _note_rejected(self, form: Outbound) -> None:
        """Note the size of a record that its topic rejects, and log the first one of each topic."""
        level = logging.DEBUG if form.topic in self._rejected_bytes else logging.WARNING
        self._rejected_bytes[form.topic] = form.size_bytes()
        effect = (
            f"dead letters of this size and above are truncated to their first {TRUNCATED_BYTES[0]:,} bytes "
            "or less"
            if form.topic == self._topics.dead_letters
            else "records of this size and above are not published (a lower rank.k makes rankings smaller)"
        )
        logger.log(
            level,
            "topic %r rejects a record of %s bytes: from now on %s. To publish them as a whole, raise the "
            "topic's max.message.bytes (and kafka.options.max_request_size, if set) and restart the worker",
            form.topic, f"{form.size_bytes():,}", effect,
        )  # fmt: skip


def flush(producer: KafkaProducer, wait_s: float | None = None) -> None:
    """Send everything that is buffered. The futures hold the outcome."""
    # kafka-python 3.0.12 raises this after it has split a record batch that was too large as a whole
    with suppress(kafka.errors.UnknownError):
        producer.flush(timeout=wait_s)


def key_hash(key: bytes) -> int:
    """Hash a key as Kafka's default partitioner does; the partition is this modulo the number of partitions.

    >>> key_hash(b"ann") % 4
    2
    """
    return int(murmur2(key)) & 0x7FFFFFFF


def publish_failed(error: Exception, missing: int, total: int) -> PublishFailed:
    """Return the error of a batch of which `missing` records are not acknowledged."""
    return PublishFailed(
        f"{missing} of {total} records of a batch were not acknowledged: {type(error).__name__}: {error}; "
        "its events stay uncommitted and will be read again"
    )


def _dead_letter(topic: str, partitions: int, reject: Reject) -> Outbound:
    record: Record = reject.record
    headers = [
        ("reason", reject.reason.encode()),
        ("exception", reject.detail.encode()[:MAX_DETAIL_BYTES].decode(errors="ignore").encode()),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
    ]
    value = record.value
    if value is None and record.key is None:  # the client rejects such a record, a topic may hold it
        value = b""
        headers.append(("value", b"null"))
    return Outbound(topic, record.partition % partitions, record.key, value, headers)


def _truncated(record: Outbound, size: int) -> Outbound:
    """Return a dead letter with `size` bytes of its key and value; headers state the full lengths."""
    key, value, headers = record.key, record.value, [*record.headers, ("truncated", b"true")]
    if key is not None:
        headers.append(("key_bytes", str(len(key)).encode()))
    if value is not None:
        headers.append(("value_bytes", str(len(value)).encode()))
    return record._replace(key=key and key[:size], value=value and value[:size], headers=headers)

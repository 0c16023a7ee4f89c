"""A batch as records: which topic, key, partition and bytes each ranking, dead letter and alarm becomes.

How large a record a topic takes (`max.message.bytes`) is known once it has rejected one. Of a dead letter
that does not fit the head is sent, of anything else nothing: no record may stop the service.
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
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.settings import TopicsConfig

logger = logging.getLogger(__name__)

DETAIL_BYTES = 1_000  # of the header `exception`
# Of a dead letter that is not taken whole: so many bytes of its key and of its value, the first that fits.
HEAD_BYTES = (65_536, 4_096, 256, 0)
TOO_LARGE = (kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError)
Headers = list[tuple[str, bytes]]


class Outbound(NamedTuple):
    """A record to be sent."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def bytes(self) -> int:
        """Return the bytes of key, value and headers."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Reduced(NamedTuple):
    """What became of a record that its topic does not take whole."""

    topic: str
    outcome: str  # truncated or dropped


ReducedCounts = Mapping[Reduced, int]


@dataclass(frozen=True, slots=True)
class Sent:
    """Records in the client's hands."""

    records: list[Outbound] = field(default_factory=list)  # as they were before any was truncated
    futures: list[FutureRecordMetadata] = field(default_factory=list)  # one a record, in the order sent
    # the last of each partition, whose records are acknowledged in order
    last: dict[tuple[str, int], FutureRecordMetadata] = field(default_factory=dict)
    reduced: Counter[Reduced] = field(default_factory=Counter)

    def add(self, record: Outbound, future: FutureRecordMetadata) -> None:
        """Note one more record."""
        self.records.append(record)
        self.futures.append(future)
        self.last[record.topic, record.partition] = future

    def has_too_large(self) -> bool:
        """Return whether a record was rejected as too large. An idempotent producer can't be used after that:
        kafka-python 3.0.12 fails all that it is still to send, with the same error."""
        return any(isinstance(future.exception, TOO_LARGE) for future in self.futures if future.is_done)

    def left(self) -> list[Outbound]:
        """Return the records that are not acknowledged."""
        pairs = zip(self.records, self.futures, strict=True)
        return [record for record, future in pairs if not future.is_done or future.exception is not None]


class RecordTooLarge(Exception):
    """A record was rejected as too large. `sent` is acknowledged, `left` is not; both are empty where it is
    not known which one it was."""

    def __init__(self, sent: Sent, left: Sequence[Outbound] = ()) -> None:
        super().__init__("a record was too large for its topic")
        self.sent, self.left = sent, list(left)


class Outgoing:
    """Makes records of batches and hands them to a producer."""

    def __init__(self, topics: TopicsConfig) -> None:
        self._topics = topics
        self._encode = msgspec.json.Encoder().encode
        self._hash = functools.lru_cache(maxsize=131_072)(key_hash)
        self._too_large: dict[str, int] = {}  # topic -> bytes of the smallest record that it has rejected

    def records(
        self,
        producer: KafkaProducer,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
    ) -> list[Outbound]:
        """Return a batch's records in the order of sending."""
        out: list[Outbound] = []
        topic, encode, hashed = self._topics.recommendations, self._encode, self._hash
        count = len(producer.partitions_for(topic))
        for ranking in rankings:
            key = ranking.user_id.encode()
            out.append(Outbound(topic, hashed(key) % count, key, encode(ranking), []))
        for user_id in gone:
            key = user_id.encode()
            out.append(Outbound(topic, hashed(key) % count, key, None, []))
        if rejects:  # each source partition's are kept together and in order
            topic = self._topics.dead_letters
            count = len(producer.partitions_for(topic))
            out += [_dead_letter(topic, count, reject) for reject in rejects]
        for alarm in alarms:
            topic, key = self._topics.drift, alarm.signal.encode()
            partition = hashed(key) % len(producer.partitions_for(topic))
            out.append(Outbound(topic, partition, key, encode(alarm), []))
        return out

    def send(self, producer: KafkaProducer, records: Sequence[Outbound], singly_s: float = 0.0) -> Sent:
        """Send records without waiting; with `singly_s` wait so many seconds for each one's acknowledgement
        before the next is sent.

        Raise `RecordTooLarge` when one was rejected as too large: the next call knows its size, if it was
        sent singly. Raise `PublishFailed` when the client takes no more.
        """
        sent = Sent()
        try:
            for index, record in enumerate(records):
                form, future = self._send(producer, record)
                if form is None or future is None:
                    sent.reduced[Reduced(record.topic, "dropped")] += 1
                    continue
                if singly_s and not self._acknowledged(producer, form, future, singly_s):
                    raise RecordTooLarge(sent, records[index:])
                sent.add(record, future)
                if form is not record:
                    sent.reduced[Reduced(record.topic, "truncated")] += 1
        except (KafkaError, ValueError) as error:
            if any(isinstance(cause, TOO_LARGE) for cause in error.args):  # one that was sent before
                raise RecordTooLarge(Sent()) from error
            raise failed(error, len(records) - len(sent.futures), len(records)) from error
        return sent

    def _send(
        self, producer: KafkaProducer, record: Outbound
    ) -> tuple[Outbound, FutureRecordMetadata] | tuple[None, None]:
        """Hand a record to the client in the largest form that its topic may take, and return that; None
        where there is none."""
        while (form := self._form(record)) is not None:
            try:
                return form, producer.send(
                    form.topic, value=form.value, key=form.key, headers=form.headers, partition=form.partition
                )
            except TOO_LARGE:  # max_request_size, the client's own limit
                self._note(form)
        return None, None

    def _acknowledged(
        self, producer: KafkaProducer, form: Outbound, future: FutureRecordMetadata, wait_s: float
    ) -> bool:
        """Wait for one record; note its size and return False when it is too large."""
        flush(producer, wait_s)
        try:
            future.get(timeout=wait_s)
        except TOO_LARGE:
            self._note(form)
            return False
        return True

    def _form(self, record: Outbound) -> Outbound | None:
        """Return the record, or of a dead letter its head, in the largest form that is not known to be too
        large; None: there is none."""
        limit = self._too_large.get(record.topic)
        if limit is None or record.bytes() < limit:
            return record
        if record.topic == self._topics.dead_letters:
            for head_bytes in HEAD_BYTES:
                form = _head(record, head_bytes)
                if form.bytes() < limit:
                    return form
        return None

    def _note(self, form: Outbound) -> None:
        """Note that a topic does not take so large a record; say once what comes of that."""
        known, self._too_large[form.topic] = form.topic in self._too_large, form.bytes()
        what = (
            f"dead letters of this size and above go there as their first {HEAD_BYTES[0]:,} bytes, or less"
            if form.topic == self._topics.dead_letters
            else "what is as large is not published (a lower rank.k makes rankings smaller)"
        )
        logger.log(
            logging.DEBUG if known else logging.WARNING,
            "topic %r does not take a record of %s bytes: from now on %s. To have them whole, raise the "
            "topic's max.message.bytes (kafka.options.max_request_size, if it is set) and restart the worker",
            form.topic, f"{form.bytes():,}", what,
        )  # fmt: skip


def flush(producer: KafkaProducer, wait_s: float | None = None) -> None:
    """Send everything that is buffered. The futures hold the outcome."""
    # kafka-python 3.0.12 raises this where it has split a batch that was too large as a whole
    with suppress(kafka.errors.UnknownError):
        producer.flush(timeout=wait_s)


def key_hash(key: bytes) -> int:
    """Hash a key as Kafka's default partitioner does; the partition is this modulo the number of partitions.

    >>> key_hash(b"ann") % 4
    2
    """
    return int(murmur2(key)) & 0x7FFFFFFF


def _dead_letter(topic: str, partitions: int, reject: Reject) -> Outbound:
    record: Record = reject.record
    headers = [
        ("reason", reject.reason.encode()),
        ("exception", reject.detail.encode()[:DETAIL_BYTES].decode(errors="ignore").encode()),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
    ]
    value = record.value
    if value is None and record.key is None:  # the client rejects what a topic may hold
        value = b""
        headers.append(("value", b"null"))
    return Outbound(topic, record.partition % partitions, record.key, value, headers)


def _head(record: Outbound, head_bytes: int) -> Outbound:
    """Return a dead letter with so many bytes of its key and value, and headers with their full lengths."""
    key, value, headers = record.key, record.value, [*record.headers, ("truncated", b"true")]
    if key is not None:
        headers.append(("key_bytes", str(len(key)).encode()))
    if value is not None:
        headers.append(("value_bytes", str(len(value)).encode()))
    return record._replace(key=key and key[:head_bytes], value=value and value[:head_bytes], headers=headers)


def failed(error: Exception, missing: int, total: int) -> PublishFailed:
    """Make the error of a batch of which so many records were not taken."""
    return PublishFailed(
        f"{missing} of {total} records of a batch were not acknowledged: {type(error).__name__}: {error}; "
        "its events stay uncommitted and will be read again"
    )

"""Record batches that can't be read: broken compression, a wrong checksum, another format of records.

kafka-python 3.0.12 raises at such a batch and, polled again, never returns. Here the batch becomes one record
without key and value at its last offset, with the problem in `unreadable`, and the next batches are read. It
is the same record at every read, as a replay needs.
"""

import logging
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError, UnsupportedCodecError

logger = logging.getLogger(__name__)


class UnreadableBatch(ConsumerRecord):  # type: ignore[misc]  # the client has no types
    """A record that stands for those of a batch."""

    unreadable = ""  # a sentence: the offsets and the problem
    stands_for = 1  # offsets


class _Watched:
    """The batches of a fetch, and the current one."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.batch: Any = None

    def next_batch(self) -> Any:
        self.batch = None  # a batch without a readable header is not skipped
        self.batch = self._records.next_batch()
        return self.batch


def read_on(consumer: KafkaConsumer) -> None:
    """Let a consumer continue after batches that can't be read."""
    warned: set[tuple[str, int]] = set()

    class Records(Fetcher.PartitionRecords):  # type: ignore[misc]
        next_fetch_offset: int

        def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[ConsumerRecord]:
            watched = _Watched(records)
            while True:
                try:
                    yield from super()._unpack_records(tp, watched, *deserializers)
                    return
                except UnsupportedCodecError as error:
                    where = f"{tp.topic}-{tp.partition} offset {self.next_fetch_offset}"
                    raise UnsupportedCodecError(f"{where}: {error.args[0]}") from error
                except Exception as error:
                    replacement = _replacement(self, tp, watched.batch, error)
                    next_offset, self.next_fetch_offset = self.next_fetch_offset, replacement.offset + 1
                    if next_offset <= replacement.offset:  # else all its records were read
                        level = logging.DEBUG if tp in warned else logging.WARNING
                        warned.add(tp)
                        logger.log(level, "%s-%d: %s", tp.topic, tp.partition, replacement.unreadable)
                        yield replacement

    consumer._fetcher.PartitionRecords = Records  # there is no public way


def _replacement(records: Any, tp: Any, batch: Any, error: Exception) -> UnreadableBatch:
    """Return the record that stands for a batch's rest. Raise the error for implausible offsets."""
    if batch is None or batch.magic < 2 or batch.last_offset < max(records.next_fetch_offset - 1, 0):
        raise CorruptRecordError(
            f"{tp.topic}-{tp.partition} offset {records.next_fetch_offset}: {error}"
        ) from error
    start = max(batch.base_offset, 0)
    made = UnreadableBatch(
        tp.topic, tp.partition, batch.leader_epoch, batch.last_offset, batch.max_timestamp,
        batch.timestamp_type, None, None, [], None, -1, -1, -1,
    )  # fmt: skip
    made.unreadable = (
        f"the record batch at offsets {start} to {batch.last_offset} can't be read: "
        f"{type(error).__name__}: {error}; expected Kafka's format, compressed with gzip, snappy, lz4 or "
        "zstd. Its records are not learned; publish them again"
    )
    made.stands_for = batch.last_offset - start + 1
    return made

"""Record batches that can't be read: broken compression, a wrong checksum, records of another form.

kafka-python 3.0.12 raises at such a batch and, polled again, never returns. Here the batch becomes one
record without key and value at its last offset, with what is wrong with it in `unreadable`, and the batches
behind it are read. It is the same record at every read, as a replay needs it.
"""

import logging
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError, UnsupportedCodecError

logger = logging.getLogger(__name__)


class UnreadableBatch(ConsumerRecord):  # type: ignore[misc]  # the client has no types
    """A record in place of a batch's records."""

    unreadable = ""  # a sentence: its offsets, and why
    stands_for = 1  # offsets


class _Watched:
    """The batches of a fetch, and the one that was taken last."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.batch: Any = None

    def next_batch(self) -> Any:
        self.batch = None  # a batch that can't even be delimited is not skipped
        self.batch = self._records.next_batch()
        return self.batch


def read_on(consumer: KafkaConsumer) -> None:
    """Let a consumer read on behind batches that can't be read."""
    warned: set[tuple[str, int]] = set()

    class Records(Fetcher.PartitionRecords):  # type: ignore[misc]  # as above
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
                    stand_in = _stand_in(self, tp, watched.batch, error)
                    is_missing = self.next_fetch_offset <= stand_in.offset  # else all its records were read
                    self.next_fetch_offset = stand_in.offset + 1
                    if is_missing:
                        level = logging.DEBUG if tp in warned else logging.WARNING
                        warned.add(tp)
                        logger.log(level, "%s-%d: %s", tp.topic, tp.partition, stand_in.unreadable)
                        yield stand_in

    consumer._fetcher.PartitionRecords = Records  # there is no public way around a batch


def _stand_in(records: Any, tp: Any, batch: Any, error: Exception) -> UnreadableBatch:
    """Return the record in place of what is left of a batch. Raise the error where the batch's own offsets
    can't be right."""
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

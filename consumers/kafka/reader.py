"""One Kafka consumer, as every reader of topics uses it: offsets, fetches, errors, and a check on the broker.

Nothing here decides where to read or what to commit: members of the group, readers of a whole topic and
readers of known spans differ in that alone.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable

import kafka.errors
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from consumers.kafka.client import MEMBERSHIP, Patience, connect, consumer_options, translated
from consumers.kafka.group import replaced
from pipeline.errors import OffsetsGone
from pipeline.events.batch import Record, TopicPartition
from pipeline.settings import KafkaConfig

Fetched = dict[TopicPartition, list[Record]]
Offsets = dict[TopicPartition, int]

# One poll takes everything that was fetched (bounded by fetch_max_bytes). kafka-python 3.0.12 never serves a
# partition again that was paused with its records half taken.
ALL_RECORDS = 1 << 30
PROBE_EVERY_S = 2.0  # an idle topic and a dead broker look the same to a fetch


class PartitionReader:
    """Read partitions through one `KafkaConsumer`. `reading` names the records in messages.

    Every call raises `BrokerLost` when the broker has not answered for `kafka.broker_timeout_s`, `UsageError`
    for missing rights, `AfreshError` for other errors that a retry does not solve.
    """

    def __init__(
        self, kafka: KafkaConfig, reading: str, *, in_group: bool = False, patience: Patience | None = None
    ) -> None:
        options = consumer_options(kafka, in_group=in_group)
        self.consumer: KafkaConsumer = connect(KafkaConsumer, options)
        self.patience = Patience(kafka) if patience is None else patience
        self._kafka, self._reading = kafka, reading
        self._probe_every_s = min(PROBE_EVERY_S, kafka.broker_timeout_s / 5)
        self._answered_at = time.monotonic()
        self._probed: deque[KafkaPartition] = deque()

    def count(self, topic: str) -> int:
        """Return the topic's number of partitions; 0: it does not exist."""
        try:
            return len(self.consumer.partitions_for_topic(topic) or ())
        except KafkaError as error:
            raise translated(error, f"looking at topic {topic!r}") from error

    def assign(self, sources: Iterable[TopicPartition]) -> None:
        """Read these partitions, in no group; a new one must be sought."""
        self.consumer.assign([KafkaPartition(*source) for source in sources])
        self.probe_with(sources)

    def probe_with(self, sources: Iterable[TopicPartition]) -> None:
        """Set the partitions that the broker is asked about to see whether it answers."""
        self._probed = deque(KafkaPartition(*source) for source in sources)

    def seek(self, source: TopicPartition, offset: int) -> None:
        """Continue at `offset`."""
        self.consumer.seek(KafkaPartition(*source), offset)

    def position(self, source: TopicPartition) -> int:
        """Return the next offset, past those without a record (markers of transactions)."""
        return int(self.consumer.position(KafkaPartition(*source), timeout_ms=0) or 0)

    def starts(self, sources: Iterable[TopicPartition]) -> Offsets:
        """Return the offset of each partition's oldest record."""
        found, ends = self._ask(self.consumer.beginning_offsets, sources), self.ends(sources)
        # the embedded broker answers with the log's end while the first record is in an open transaction
        return {source: min(offset, ends[source]) for source, offset in found.items()}

    def ends(self, sources: Iterable[TopicPartition]) -> Offsets:
        """Return the offset after each partition's last record that can be read."""
        return self._ask(self.consumer.end_offsets, sources)

    def poll(self, wait_s: float, max_records: int = ALL_RECORDS, probe: bool = True) -> Fetched:
        """Return what was fetched, after `wait_s` at the latest; see `fetched_by`."""
        return self.fetched_by(
            lambda: self.consumer.poll(timeout_ms=wait_s * 1000, max_records=max_records), probe
        )

    def fetched_by(self, poll: Callable[[], Fetched], probe: bool = True) -> Fetched:
        """Return the records of a client's poll; none where it failed and may be tried again.

        While none come the broker is asked whether it is there, unless `probe` is False: then a poll without
        an error counts as an answer. Raise `OffsetsGone` for a position that the topic does not hold.
        """
        began = time.monotonic()
        try:
            fetched = poll()
            if fetched or not probe:
                self.answered()
            elif began - self._answered_at >= self._probe_every_s and self._probed:
                self._probed.rotate(-1)  # another partition, perhaps of another broker, each time
                self.consumer.end_offsets([self._probed[0]], timeout_ms=self._probe_every_s * 500)
                self.answered()
        except KafkaError as error:
            self.check(error, began)
            return {}
        return fetched

    def answered(self) -> None:
        """Record that the broker has answered."""
        self._answered_at = time.monotonic()
        self.patience.answered()

    def check(self, error: KafkaError, began: float) -> None:
        """Raise an error that a retry does not solve; count others as no answer since `began`."""
        doing = f"reading {self._reading}"
        if lost := _missing(error):
            source, wanted = lost
            self.raise_gone(source, wanted, error)
        if isinstance(error, kafka.errors.NoOffsetForPartitionError):
            raise RuntimeError("listener.assigned did not seek every partition") from error
        if isinstance(error, kafka.errors.FencedInstanceIdError):
            raise replaced(self._kafka) from error
        if not isinstance(error, (*MEMBERSHIP, kafka.errors.RetriableError)):
            raise translated(error, doing) from error
        self.patience.failed(doing, began, error)

    def raise_gone(self, source: TopicPartition, wanted: str, cause: Exception | None = None) -> None:
        """Raise `OffsetsGone` with the range that the topic holds."""
        start, end = self.starts([source])[source], self.ends([source])[source]
        raise OffsetsGone(
            f"{source.topic}-{source.partition}: wanted {wanted}, but the topic holds {start} to {end}. It "
            "was created again or has deleted records that the checkpoint needs: let it keep them longer "
            "than the oldest checkpoint, or start from an empty checkpoint folder"
        ) from cause

    def close(self) -> None:
        """Close the connection."""
        self.consumer.close(autocommit=False)

    def _ask(
        self, call: Callable[..., dict[KafkaPartition, int]], sources: Iterable[TopicPartition]
    ) -> Offsets:
        asked = [KafkaPartition(*source) for source in sources]
        if not asked:
            return {}
        found = self.patience.insist(lambda ms: call(asked, timeout_ms=ms), "asking for offsets")
        return {TopicPartition(*source): int(offset) for source, offset in found.items()}


def _missing(error: KafkaError) -> tuple[TopicPartition, str] | None:
    """Return the partition and what is missing in it; None for errors of another kind."""
    if isinstance(error, OffsetOutOfRangeError):
        (source, offset), *_ = error.args[0].items()
        return TopicPartition(*source), f"offset {offset}"
    if isinstance(error, LogTruncationError):
        return TopicPartition(*next(iter(error.divergent_offsets))), "records that were read before"
    return None

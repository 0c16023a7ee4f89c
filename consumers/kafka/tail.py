"""Read a topic from where it is, in no group: nothing is committed, and nobody's place is taken."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import kafka.errors
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from consumers.kafka.client import Patience, connect, consumer_options, partition_count, translated
from consumers.kafka.member import EVERYTHING
from consumers.kafka.reader import missed
from pipeline.errors import UsageError
from pipeline.events.batch import Record
from pipeline.settings import KafkaConfig

WAIT_S = 0.25  # for one fetch; how soon a stop is heard
PROBE_EVERY_S = 2.0  # an idle topic and a dead broker look the same to a fetch


class Tail:
    """Read a topic from a start on, and go on with what comes: "earliest" or "end", or so many of the newest
    records, taken evenly from the partitions.

    `partitions` picks some out of how many there are; None: all. Partitions that are added are read from
    their earliest record. Raise `UsageError` when no broker answers, it refuses us, or there is no such
    topic. A context manager.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        start: Literal["earliest", "end"] | int,
        partitions: Callable[[int], Iterable[int]] | None = None,
    ) -> None:
        self._patience = Patience(kafka)
        self._probe_every_s = min(PROBE_EVERY_S, kafka.broker_timeout_s / 5)
        self._heard_at = time.monotonic()
        self._consumer: KafkaConsumer = connect(KafkaConsumer, consumer_options(kafka, in_group=False))
        try:
            self._topic, self._pick = topic, partitions or range
            self._count = self._partition_count(kafka, topic)
            self._looked_at = time.monotonic()
            self._theirs = self._picked()
            self._consumer.assign(self._theirs)
            self._ends = self._offsets("end", self._theirs)
            first = self._ends if start == "end" else self._offsets("beginning", self._theirs)
            for partition, offset in first.items():
                end = self._ends[partition]
                newest = end - -(-start // len(self._theirs)) if isinstance(start, int) else offset
                # the embedded broker may name a beginning behind the end of what can be read
                self._consumer.seek(partition, min(max(offset, newest), end))
        except BaseException:
            self.close()
            raise

    @property
    def ends(self) -> dict[int, int]:
        """Where each partition ended at construction: the offset that comes next."""
        return {partition.partition: offset for partition, offset in self._ends.items()}

    def existing(self, wait_s: float = float("inf")) -> Iterator[Record]:
        """Yield what lies between the start and the end that the topic had at construction; less where it
        does not come within `wait_s`. Raise `BrokerLost`, or `AfreshError` for a refusal.
        """
        until = time.monotonic() + wait_s
        while time.monotonic() < until and any(
            self._position(partition) < end for partition, end in self._ends.items()
        ):
            yield from self.poll()

    def poll(self, wait_s: float = WAIT_S) -> list[Record]:
        """Return what has come, after `wait_s` at the latest; raise as `existing`.

        With 0 it returns what the fetch of the call before has brought, and begins another one.
        """
        began = time.monotonic()
        if began - self._looked_at >= self._probe_every_s:
            self._looked_at = began
            self._look_for_more()
        try:
            fetched = self._consumer.poll(timeout_ms=wait_s * 1000, max_records=EVERYTHING)
        except KafkaError as error:
            self._judge(error, began)
            return []
        if fetched:
            self._heard()
        elif began - self._heard_at >= self._probe_every_s:
            self._probe()
        return [record for partition in sorted(fetched) for record in fetched[partition]]

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)

    def __enter__(self) -> "Tail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _position(self, partition: KafkaPartition) -> int:
        """Return the next offset, past those that hold no record (markers of transactions)."""
        return int(self._consumer.position(partition, timeout_ms=0) or 0)

    def _picked(self) -> list[KafkaPartition]:
        return [KafkaPartition(self._topic, number) for number in sorted(set(self._pick(self._count)))]

    def _look_for_more(self) -> None:
        """Read partitions that were added; the client refreshes what it remembers of the topic."""
        count = partition_count(self._consumer, self._topic)
        if count <= self._count:
            return
        self._count = count
        added = [partition for partition in self._picked() if partition not in self._theirs]
        self._theirs += added
        self._consumer.assign(self._theirs)
        for partition, offset in self._offsets("beginning", added).items():
            self._consumer.seek(partition, offset)

    def _offsets(
        self, edge: Literal["beginning", "end"], partitions: list[KafkaPartition]
    ) -> dict[KafkaPartition, int]:
        if not partitions:
            return {}
        call = self._consumer.beginning_offsets if edge == "beginning" else self._consumer.end_offsets
        found: dict[KafkaPartition, int] = self._patience.insist(
            lambda timeout_ms: call(partitions, timeout_ms=timeout_ms), "asking for offsets"
        )
        return found

    def _partition_count(self, kafka: KafkaConfig, topic: str) -> int:
        count = partition_count(self._consumer, topic)
        if count:
            return count
        raise UsageError(
            f"topic {topic!r} does not exist on {kafka.bootstrap_servers}, or may not be read: correct the "
            "name in [topics], or see what `afresh check` says"
        )

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        self._patience.answered()

    def _probe(self) -> None:
        began = time.monotonic()
        try:
            self._consumer.end_offsets(self._theirs[:1], timeout_ms=self._probe_every_s * 500)
        except KafkaError as error:
            self._judge(error, began)
        else:
            self._heard()

    def _judge(self, error: KafkaError, began: float) -> None:
        """Raise what can't be retried; count the rest as no answer since `began`."""
        if missed(error):  # retention was faster than we: go on with what is left
            for partition, offset in self._offsets("beginning", self._theirs).items():
                self._consumer.seek(partition, max(offset, self._position(partition)))
            return
        if isinstance(error, kafka.errors.TopicAuthorizationFailedError):
            topic = self._theirs[0].topic
            raise UsageError(
                f"the broker does not let us read topic {topic!r}: we need the right to Read it "
                f"(kafka-acls.sh --add --operation Read --topic {topic} ...)"
            ) from error
        if not isinstance(error, kafka.errors.RetriableError):
            raise translated(error, "reading the topic") from error
        self._patience.failed("reading the topic", began, error)

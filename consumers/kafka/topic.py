"""Read a whole topic, in no group: nothing is committed, and no member of the group is replaced."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from consumers.kafka.reader import ALL_RECORDS, PartitionReader
from pipeline.errors import AfreshError, OffsetsGone, UsageError
from pipeline.events.batch import Record, TopicPartition
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

WAIT_S = 0.25  # for one fetch; how soon a stop is noticed

# "end": only new records; a number: that many of the newest, the same share of each partition; offsets: from
# these, where the topic holds them, else from the earliest
Start = Literal["earliest", "end"] | int | Mapping[TopicPartition, int]


class TopicReader:
    """Read a topic from `start` on, and go on with new records.

    `partitions` picks some, given how many there are; None: all. Partitions that are added are read from
    their earliest record, as are those of which the next record was deleted. Raise `UsageError` when no
    broker answers, it denies access, or there is no such topic. A context manager.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        start: Start,
        partitions: Callable[[int], Iterable[int]] | None = None,
    ) -> None:
        self._topic, self._pick = topic, partitions or range
        self._look_every_s = min(2.0, kafka.broker_timeout_s / 5)
        self._reader = PartitionReader(kafka, f"the topic {topic!r}")
        try:
            self._count = self._reader.count(topic)
            if not self._count:
                raise UsageError(
                    f"topic {topic!r} does not exist on {kafka.bootstrap_servers}, or may not be read: "
                    "correct the name in [topics], or see what `afresh check` says"
                )
            self._looked_at = time.monotonic()
            self._sources = self._picked()
            self._reader.assign(self._sources)
            self._ends = self._reader.ends(self._sources)
            for source, offset in self._places(start).items():
                self._reader.seek(source, offset)
        except BaseException:
            self.close()
            raise

    @property
    def ends(self) -> dict[int, int]:
        """Where each partition ended when it was first read: the offset that came next."""
        return {source.partition: offset for source, offset in self._ends.items()}

    def existing(self, wait_s: float = float("inf")) -> Iterator[Record]:
        """Yield the records between the start and the ends that were seen; less where they do not come within
        `wait_s`. Raise `BrokerLost`, or `AfreshError` for missing rights.
        """
        until = time.monotonic() + wait_s
        while time.monotonic() < until and not self.is_at_end():
            yield from self.poll()

    def is_at_end(self) -> bool:
        """Return whether every record is read that was there when the partitions were first seen."""
        return all(self._reader.position(source) >= end for source, end in self._ends.items())

    def poll(
        self, wait_s: float = WAIT_S, max_records: int = ALL_RECORDS, probe: bool = True
    ) -> list[Record]:
        """Return new records, after `wait_s` at the latest; raise as `existing`.

        With 0 it returns what the fetch of the call before has brought, and begins another one. Without
        `probe` a silent broker is not asked whether it is there.
        """
        if time.monotonic() - self._looked_at >= self._look_every_s:
            self._looked_at = time.monotonic()
            self._add_partitions()
        try:
            fetched = self._reader.poll(wait_s, max_records, probe)
        except OffsetsGone:
            self._reposition()
            return []
        return [record for source in sorted(fetched) for record in fetched[source]]

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def __enter__(self) -> "TopicReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _picked(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in sorted(set(self._pick(self._count)))]

    def _places(self, start: Start) -> dict[TopicPartition, int]:
        """Return the offset at which each partition is read."""
        if start == "end":
            return self._ends
        starts = self._reader.starts(self._sources)
        if isinstance(start, int):
            share = -(-start // len(self._sources))
            return {source: max(first, self._ends[source] - share) for source, first in starts.items()}
        wanted = starts if isinstance(start, str) else starts | dict(start)
        return {
            source: wanted[source] if first <= wanted[source] <= self._ends[source] else first
            for source, first in starts.items()
        }

    def _reposition(self) -> None:
        """Continue behind records that were deleted; from the earliest where the topic was created again."""
        self._ends = self._reader.ends(self._sources)
        positions = {source: self._reader.position(source) for source in self._sources}
        is_new = any(positions[source] > end for source, end in self._ends.items())
        for source, offset in self._places("earliest" if is_new else positions).items():
            self._reader.seek(source, offset)

    def _add_partitions(self) -> None:
        """Read partitions that were added; the client refreshes what it knows of the topic."""
        try:
            count = self._reader.count(self._topic)
        except AfreshError as error:
            logger.debug("did not look at topic %r: %s", self._topic, error)  # the next look may do better
            return
        if count <= self._count:
            return
        logger.info("topic %r has %d partitions now", self._topic, count)
        self._count = count
        added = [source for source in self._picked() if source not in self._sources]
        self._sources += added
        self._reader.assign(self._sources)
        self._ends |= self._reader.ends(added)
        for source, offset in self._reader.starts(added).items():
            self._reader.seek(source, offset)

"""Read a whole topic, in no group: nothing is committed, and no member of the group is replaced."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from consumers.kafka.reader import ALL_RECORDS, Offsets, PartitionReader
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
        self._ends: Offsets = {}
        try:
            self._count = self._reader.count(topic)
            if not self._count:
                raise UsageError(
                    f"topic {topic!r} does not exist on {kafka.bootstrap_servers}, or may not be read: "
                    "correct the name in [topics], or see what `afresh check` says"
                )
            self._looked_at = time.monotonic()
            self._add_partitions(start)
        except BaseException:
            self.close()
            raise

    @property
    def ends(self) -> dict[int, int]:
        """Where each partition ended when it was first read: the offset that came next."""
        return {source.partition: offset for source, offset in self._ends.items()}

    def existing(self, wait_s: float = float("inf")) -> Iterator[Record]:
        """Yield the records up to the ends that were seen; less if they do not come within `wait_s`.

        Raise `BrokerLost`, or `AfreshError` for missing rights.
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
            self._look_for_partitions()
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

    def _look_for_partitions(self) -> None:
        """Read partitions that were added; the client refreshes what it knows of the topic."""
        try:
            count = self._reader.count(self._topic)
        except AfreshError as error:
            logger.debug("did not look at topic %r: %s", self._topic, error)  # the next look may do better
            return
        if count > self._count:
            logger.info("topic %r has %d partitions now", self._topic, count)
            self._count = count
            self._add_partitions("earliest")

    def _add_partitions(self, start: Start) -> None:
        picked = [TopicPartition(self._topic, number) for number in sorted(set(self._pick(self._count)))]
        added = [source for source in picked if source not in self._ends]
        self._reader.assign([*self._ends, *added])
        self._seek(start, added)

    def _reposition(self) -> None:
        """Continue behind records that were deleted; from the earliest where the topic was created again."""
        sources = list(self._ends)
        positions = {source: self._reader.position(source) for source in sources}
        is_new = any(positions[source] > end for source, end in self._reader.ends(sources).items())
        self._seek("earliest" if is_new else positions, sources)

    def _seek(self, start: Start, sources: list[TopicPartition]) -> None:
        for source, held in self._reader.ranges(sources).items():
            self._ends[source] = held.stop
            if start == "end":
                wanted = held.stop
            elif isinstance(start, int):
                wanted = held.stop - math.ceil(start / len(sources))
            else:
                wanted = held.start if isinstance(start, str) else start.get(source, held.start)
            self._reader.seek(source, wanted if held.start <= wanted <= held.stop else held.start)

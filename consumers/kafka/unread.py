"""Partitions of the events topics that exist and that no worker of the group reads yet.

Added partitions are handed out once the group's leader sees them. A member that restarts under its old name
takes its old place back without a rebalance, and the client of a leader that did so does not know that it
leads: without a further rebalance nobody would ever hand them out. So where records wait in such a partition
the group is asked to join again, once for each partition.
"""

import logging
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from pipeline.events.batch import TopicPartition

logger = logging.getLogger(__name__)


class Group(Protocol):
    """What is asked of the group's source."""

    def partitions(self) -> list[TopicPartition]: ...
    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...


class Unread:
    """`records` holds how many records lie in each partition that no worker reads yet.

    A partition that another worker reads has a commit within about a second of its first record; one that has
    none and is not ours counts as unread.
    """

    def __init__(self, every_s: float) -> None:
        self.records: dict[TopicPartition, int] = {}
        self._every_s = every_s
        self._looked_s = float("-inf")
        self._read: set[TopicPartition] = set()
        self._told: set[TopicPartition] = set()

    def due(self) -> bool:
        """Say whether the last look is long enough ago."""
        return time.monotonic() - self._looked_s >= self._every_s

    def look(self, group: Group, held: Collection[TopicPartition]) -> bool:
        """Look for unread partitions beside those `held` here; return whether the group has to join again.

        That is when some were unread at the look before too: another worker may be about to commit.
        """
        self._looked_s = time.monotonic()
        others = set(group.partitions()) - self._read - set(held)
        self._read |= group.committed(others).keys()
        left = sorted(others - self._read)
        starts, ends = group.start_offsets(left), group.end_offsets(left)
        counts = {source: ends[source] - starts[source] for source in left}
        before, self.records = self.records, {source: count for source, count in counts.items() if count > 0}
        new = self.records.keys() & before.keys() - self._told
        self._told |= new
        if new:
            names = ", ".join(f"{source.topic}-{source.partition}" for source in sorted(new)[:10])
            logger.warning(
                "%d partitions hold records and are not read yet: %s%s; asking the group to hand them out",
                len(new), names, ", ..." * (len(new) > 10),
            )  # fmt: skip
        return bool(new)

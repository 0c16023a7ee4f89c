"""What is known by partition: its users, by their newest event, and the event ids seen before.

A user's state moves with the user. Axes: B = events of a batch, U = user rows.
"""

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import TopicPartition
from pipeline.state.store import Column, Store
from pipeline.state.tables import hash_of

logger = logging.getLogger(__name__)

WINDOW = 100_000  # events with an id that a partition remembers
IntArray = npt.NDArray[np.int32]


class UserPartition(Store):
    """Column: `partition` int32 [U], the place in `sources` of the partition of each user's newest event."""

    def __init__(self, capacity: int) -> None:
        self.partition = Column(np.full(capacity, -1, np.int32), "user", -1)
        self.sources: list[TopicPartition] = []  # all that were ever seen
        self._numbers: dict[TopicPartition, int] = {}
        self._moves_logged = False

    def number_of(self, source: TopicPartition) -> int:
        """Return the partition's place in `sources`, a new one at its first appearance."""
        number = self._numbers.setdefault(source, len(self.sources))
        if number == len(self.sources):
            self.sources.append(source)
        return number

    def update(
        self, user_B: IntArray, source_B: IntArray, previous_B: IntArray, id_of_U: Sequence[str]
    ) -> int:
        """Let users follow their newest event; return how many moved to another partition of a topic.

        `source_B` are places in `sources`, `previous_B` those of the users' events before in this batch, -1
        for none. A user's events of two topics lie in two partitions by nature: that is no move. The first
        move is logged: such users lose part of their history with every change of workers.
        """
        before_B = np.where(previous_B >= 0, source_B[previous_B], self.partition.data[user_B])
        self.partition.data[user_B] = source_B
        moved = [
            b
            for b in np.flatnonzero((before_B >= 0) & (before_B != source_B)).tolist()
            if self.sources[before_B[b]].topic == self.sources[source_B[b]].topic
        ]
        if moved and not self._moves_logged:
            self._moves_logged = True
            b = moved[0]
            topic, now = self.sources[source_B[b]]
            logger.warning(
                "an event of user %r lies in partition %d of topic %s, the one before in %d: expected one "
                "partition, as the user's state lies there. Let every producer take the user's id as key and "
                "the same partitioner (murmur2, Kafka's own; librdkafka needs partitioner=murmur2_random). "
                "After partitions were added this ends by itself. Counted in afresh_user_moves_total",
                id_of_U[user_B[b]], now, topic, self.sources[before_B[b]].partition,
            )  # fmt: skip
        return len(moved)


class Duplicates:
    """Remembers the last WINDOW event ids of a partition; two share a hash with odds of WINDOW / 2**64."""

    def __init__(self, hashes: npt.NDArray[np.uint64] | None = None) -> None:
        self._ring: deque[int] = deque([] if hashes is None else hashes.tolist(), maxlen=WINDOW)
        self._seen = set(self._ring)

    def seen(self, event_id: str) -> bool:
        """Return whether the id came before, and remember it."""
        number = hash_of(event_id)
        if number in self._seen:
            return True
        if len(self._ring) == WINDOW:
            self._seen.discard(self._ring[0])
        self._ring.append(number)
        self._seen.add(number)
        return False

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hashes, oldest first."""
        return np.array(self._ring, np.uint64)

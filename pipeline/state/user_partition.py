"""Which partition each user belongs to: that of the newest event. A user's state moves with it.

Axes: B = events of a batch, U = user rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import TopicPartition
from pipeline.state.store import Column, Store

IntArray = npt.NDArray[np.int32]


class UserPartition(Store):
    """The partition each user's newest event came from, as a column `partition` int32 [U] of registered
    numbers.
    """

    def __init__(self, capacity: int) -> None:
        self.partition = Column(np.full(capacity, -1, np.int32), "user", -1)

    def update(
        self, user_B: IntArray, source_B: IntArray, previous_B: IntArray, partitions: Sequence[TopicPartition]
    ) -> tuple[npt.NDArray[np.intp], IntArray]:
        """Note where a batch's events came from; return the places of those that came from another partition
        of the same topic than their user's event before, and the number of the partition of each [B].

        `source_B` are numbers of `partitions`, `previous_B` the places of the users' events before in this
        batch, -1 for none. A user's events of two topics lie in two partitions by nature: that is no move.
        """
        before_B = np.where(previous_B >= 0, source_B[previous_B], self.partition.data[user_B])
        self.partition.data[user_B] = source_B
        moved = np.flatnonzero((before_B >= 0) & (before_B != source_B))
        if moved.size:
            topic_of = np.unique([source.topic for source in partitions], return_inverse=True)[1]
            moved = moved[topic_of[before_B[moved]] == topic_of[source_B[moved]]]
        return moved, before_B

"""The items that appeared last: candidates before anything is known of them, without features."""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, may_show, slot_of
from pipeline.features.family import Family
from pipeline.features.lessons import Lessons
from pipeline.kernels import kernel
from pipeline.state.store import Column

KEPT = 64
NEWEST = 8  # candidates


class Newest(Family):
    """Columns: `seen` bool [M], `ring` int32 [KEPT] (item rows, -1: empty), `count` int64 [1] (so far)."""

    def __init__(self, capacity: int) -> None:
        self.seen = Column(np.zeros(capacity, np.bool_), "item")
        self.ring = Column(np.full(KEPT, -1, np.int32), "none", -1, of_items=True)
        self.count = Column(np.zeros(1, np.int64), "none")

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self.ring.data, self.count.data)

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        """Keep the items that no lesson has named before, whether the event is counted or not."""
        _update(lessons.item_B, self.seen.data, self.ring.data, self.count.data)


@kernel()
def _retrieve(block, ring, count):  # type: ignore[no-untyped-def]
    for b in range(block.count_B.shape[0]):
        taken = 0
        for k in range(min(count[0], ring.shape[0])):
            m = ring[(count[0] - 1 - k) % ring.shape[0]]
            if taken == NEWEST:
                break
            if m >= 0 and may_show(block, b, m):
                taken += 1
                slot_of(block, b, m, RETRIEVED)


@kernel()
def _update(item_B, seen, ring, count):  # type: ignore[no-untyped-def]
    for b in range(item_B.shape[0]):
        m = item_B[b]
        if m >= 0 and not seen[m]:
            seen[m] = True
            ring[count[0] % ring.shape[0]] = m
            count[0] += 1

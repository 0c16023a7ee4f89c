"""A small family of count features as a newcomer would add it: what the last event before this one took.

follows_last  1 if m is the item that came last after the newest item of the history, by anyone
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, slot_of
from pipeline.features.family import Family, FloatArray, Shown
from pipeline.features.lessons import Lessons
from pipeline.kernels import kernel
from pipeline.state.store import Column


class Toy(Family):
    """Column: `last` int32 [M], what came last after an item (-1: nothing)."""

    features = ("follows_last",)

    def __init__(self, capacity: int) -> None:
        self.last = Column(np.full(capacity, -1, np.int32), "item", -1, of_items=True)

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self.last.data, at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        held = (shown.length_B > 0)[:, None]
        out_BKP[:, :, 0] += np.where(held, shown.value_BKF[:, :, at], 0)
        out_BKP[:, :, -1] += np.where(held, 0, shown.value_BKF[:, :, at])

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        counted = (lessons.item_B >= 0) & (lessons.weight_B > 0) & (lessons.length_B > 0)
        for b in np.flatnonzero(counted).tolist():
            self.last.data[lessons.items_BL[b, 0]] = lessons.item_B[b]


@kernel()
def _retrieve(block, last, at):  # type: ignore[no-untyped-def]
    for b in range(block.length_B.shape[0]):
        if block.length_B[b] > 0:
            c = slot_of(block, b, last[block.items_BL[b, 0]], RETRIEVED)
            if c >= 0:
                block.features_BCF[b, c, at] = np.float32(1)

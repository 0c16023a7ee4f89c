"""What came right after the newest item, by counts with a half-life of HALF_LIFE events.

recent_back_off  ln(1 + weight / (10 r_m))    r_m: smoothed popularity share at a half-life of 300 events
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, slot_of
from pipeline.features.family import Family, FloatArray, Shown
from pipeline.features.lessons import Lessons
from pipeline.features.pair_table import PairTable
from pipeline.features.popularity import P300, SCALE, Popularity, share_of
from pipeline.kernels import kernel, log32
from pipeline.state.tables import IdTable

HALF_LIFE = 3000.0  # events
BACK_OFF = 10.0  # pseudo-count


class RecentTransitions(Family):
    """Its columns are those of a `PairTable` that looks one item back."""

    features = ("recent_back_off",)

    def __init__(self, items: IdTable, popularity: Popularity) -> None:
        self._items, self._popularity = items, popularity
        self.pairs = PairTable(items.capacity, 1, 1.0, HALF_LIFE, both=False)

    def retrieve(self, block: Block, at: int) -> None:
        scale = np.float32(self.pairs.scale)
        _retrieve(block, self.pairs.partner.data, self.pairs.stored.data, scale, at)

    def finish(self, block: Block, at: int) -> None:
        _finish(block, self._popularity.shares(P300, len(self._items), BACK_OFF), at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        out_BKP[:, :, 0] += shown.value_BKF[:, :, at]

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        self.pairs.update(lessons, status_M, seed)


@kernel()
def _retrieve(block, partner, stored, scale, at):  # type: ignore[no-untyped-def]
    for b in range(block.length_B.shape[0]):
        if block.length_B[b] > 0:
            h = block.items_BL[b, 0]
            for s in range(partner.shape[1]):
                c = slot_of(block, b, partner[h, s], RETRIEVED)
                if c >= 0:
                    block.features_BCF[b, c, at] += scale * stored[h, s]


@kernel()
def _finish(block, priors, at):  # type: ignore[no-untyped-def]
    one, scale = np.float32(1), np.float32(SCALE)
    for b in range(block.length_B.shape[0]):
        for c in range(block.count_B[b]):
            x = block.features_BCF[b, c, at]
            if x > 0:
                prior = share_of(priors, block.rows_BC[b, c])
                block.features_BCF[b, c, at] = log32(one + x / prior) * scale

"""What came the last times after the newest item, with more weight where the same items came before it.

    matched  ln(1 + 1000 sum_r w_r^2 / sum of all w_r^2)
    sharp    ln(1 + sum_r w_r^4)

Sums over those of the newest item's last occurrences r that were followed by m; w_r = 1 + for each of the
BEFORE items before that occurrence 1 if the same place of this history holds it, .5 if a place close by does.
Axes: M = item rows, R = occurrences kept of an item.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, slot_of
from pipeline.features.family import Family, FloatArray, Shown
from pipeline.features.lessons import Lessons
from pipeline.features.popularity import SCALE
from pipeline.kernels import kernel, log32
from pipeline.state.store import Column

OCCURRENCES = 32  # kept of an item
BEFORE = 4  # items kept before each
CLOSE = 6  # places of the history that are close by


class ContextMatches(Family):
    """Columns: `occurrence` int32 [M, R, 1 + BEFORE] (what followed, then what came before, newest first) and
    `seen` int64 [M] (occurrences since the past was last cut off).
    """

    features = ("matched", "sharp")

    def __init__(self, capacity: int) -> None:
        shape = (capacity, OCCURRENCES, 1 + BEFORE)
        self.occurrence = Column(np.full(shape, -1, np.int32), "item", -1, of_items=True)
        self.seen = Column(np.zeros(capacity, np.int64), "item")

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self.occurrence.data, self.seen.data, at)

    def finish(self, block: Block, at: int) -> None:
        _finish(block, at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        out_BKP[:, :, 0] += shown.value_BKF[:, :, at : at + 2].sum(2)

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        _add(lessons, self.occurrence.data, self.seen.data)

    def fade(self, weakening: float, share: float) -> None:
        """Keep this share of the newest occurrences of each item."""
        kept = round(OCCURRENCES * share)
        _fade(kept, self.occurrence.data, self.seen.data, np.empty_like(self.occurrence.data[0]))


@kernel()
def _retrieve(block, occurrence, seen, at):  # type: ignore[no-untyped-def]
    features = block.features_BCF
    for b in range(block.length_B.shape[0]):
        length = block.length_B[b]
        if length == 0:
            continue
        history = block.items_BL[b]
        h = history[0]
        total = np.float32(0)
        for r in range(min(seen[h], occurrence.shape[1])):
            match = np.float32(1)
            for q in range(1, 1 + BEFORE):
                p = occurrence[h, r, q]
                if p < 0:
                    continue
                if q < length and history[q] == p:
                    match += np.float32(1)
                else:
                    for k in range(1, min(length, CLOSE)):
                        if history[k] == p:
                            match += np.float32(0.5)
                            break
            square = match * match
            total += square
            c = slot_of(block, b, occurrence[h, r, 0], RETRIEVED)
            if c >= 0:
                features[b, c, at] += square
                features[b, c, at + 1] += square * square
        for c in range(block.count_B[b]):
            if features[b, c, at] > 0:
                features[b, c, at] /= total


@kernel()
def _finish(block, at):  # type: ignore[no-untyped-def]
    one, scale = np.float32(1), np.float32(SCALE)
    for b in range(block.length_B.shape[0]):
        for c in range(block.count_B[b]):
            x = block.features_BCF[b, c]
            if x[at] > 0:
                x[at] = log32(one + np.float32(1000) * x[at]) * scale
                x[at + 1] = log32(one + x[at + 1]) * scale


@kernel()
def _add(lessons, occurrence, seen):  # type: ignore[no-untyped-def]
    for b in range(lessons.item_B.shape[0]):
        m, length = lessons.item_B[b], lessons.length_B[b]
        if m < 0 or lessons.weight_B[b] <= 0 or length == 0:
            continue
        h = lessons.items_BL[b, 0]
        r = seen[h] % occurrence.shape[1]
        occurrence[h, r, 0] = m
        for q in range(1, 1 + BEFORE):
            occurrence[h, r, q] = lessons.items_BL[b, q] if q < length else -1
        seen[h] += 1


@kernel()
def _fade(kept, occurrence, seen, newest):  # type: ignore[no-untyped-def]
    places = occurrence.shape[1]
    for m in range(seen.shape[0]):
        if min(seen[m], places) <= kept:
            continue
        for k in range(kept):
            for q in range(occurrence.shape[2]):
                newest[k, q] = occurrence[m, (seen[m] - kept + k) % places, q]
        for k in range(places):
            for q in range(occurrence.shape[2]):
                occurrence[m, k, q] = newest[k, q] if k < kept else -1
        seen[m] = kept

"""What this user comes back to, where repeats are allowed.

last    4 - ln(1 + k) for the newest place k of the window that holds m
often   ln(1 + places that hold m)
again   ln(1 + sum over places k > 0 of a_k where the place after k, in time, holds m)
        a_k = 1 if place k holds the newest item h_0, 3 if h_1 came before it then too; else .3 if it
        holds h_1
"""

import numpy as np

from pipeline.features.block import RETRIEVED, Block, slot_of
from pipeline.features.family import Family, FloatArray, Shown
from pipeline.features.popularity import SCALE
from pipeline.kernels import inlined, kernel, log32

SAME, SAME_TWO, PASSED = 1.0, 3.0, 0.3


class Repeats(Family):
    """Keeps nothing: the window has it all. `allowed`: whether an item of the history may be shown again."""

    features = ("last", "often", "again")

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def retrieve(self, block: Block, at: int) -> None:
        if self.allowed:
            _retrieve(block, at)

    def finish(self, block: Block, at: int) -> None:
        if self.allowed:
            _finish(block, at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        """Give recency and number to m's own newest place, and `again` to the places before its returns."""
        if self.allowed:
            _attribute(shown, at, out_BKP)


@inlined
def _likeness(history, length, k):  # type: ignore[no-untyped-def]
    """Return a_k."""
    if history[k] == history[0]:
        return np.float32(SAME_TWO if k + 1 < length and history[k + 1] == history[1] else SAME)
    return np.float32(PASSED if history[k] == history[1] else 0.0)


@kernel()
def _retrieve(block, at):  # type: ignore[no-untyped-def]
    for b in range(block.length_B.shape[0]):
        history, length = block.items_BL[b], block.length_B[b]
        for k in range(length):
            c = slot_of(block, b, history[k], RETRIEVED)
            if c >= 0:
                x = block.features_BCF[b, c]
                if x[at] == 0:
                    x[at] = np.float32(1) / np.float32(1 + k)
                x[at + 1] += np.float32(1)
                if k + 1 < length:
                    x[at + 2] += _likeness(history, length, k + 1)


@kernel()
def _finish(block, at):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    for b in range(block.length_B.shape[0]):
        for c in range(block.count_B[b]):
            x = block.features_BCF[b, c]
            if x[at] > 0:
                x[at] = (np.float32(4) + log32(x[at])) * np.float32(SCALE)
                x[at + 1] = log32(one + x[at + 1])
                x[at + 2] = log32(one + x[at + 2])


@kernel()
def _attribute(shown, at, out_BKP):  # type: ignore[no-untyped-def]
    for b in range(shown.rows_BK.shape[0]):
        history, length = shown.items_BL[b], shown.length_B[b]
        for i in range(shown.rows_BK.shape[1]):
            m, value = shown.rows_BK[b, i], shown.value_BKF[b, i]
            if m < 0:
                continue
            total = np.float32(0)
            for k in range(length - 1):
                if history[k] == m:
                    total += _likeness(history, length, k + 1)
            for k in range(length - 1):
                if history[k] == m and total > 0:
                    out_BKP[b, i, k + 1] += value[at + 2] * _likeness(history, length, k + 1) / total
            for k in range(length):
                if history[k] == m:
                    out_BKP[b, i, k] += value[at] + value[at + 1]
                    break

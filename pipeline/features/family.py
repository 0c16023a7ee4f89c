"""The base of a family of count features. To add one: a file with such a class, and a line in bank.py.

Axes of all families: B = queries, L = places of a window (newest first), C = candidate slots of a query, F =
features, M = item rows, K = shown items, P = L + 1. h_k is the k-th newest item of the history.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Block
from pipeline.features.lessons import Lessons
from pipeline.kernels import inlined
from pipeline.state.store import Store

FloatArray = npt.NDArray[np.float32]


class Shown(NamedTuple):
    """Items of lists to be explained. `value_BKF` is what each feature adds to an item's score.

    Rows below 0 hold nothing. `session_B` is the key of the user's newest session.
    """

    items_BL: npt.NDArray[np.int32]
    length_B: npt.NDArray[np.int32]
    session_B: npt.NDArray[np.uint64]
    rows_BK: npt.NDArray[np.int32]
    value_BKF: FloatArray


class Family(Store):
    """Storage, update, features and attribution of one family; what it has no need of stays as it is here.

    `at` is the place of its first feature among all features of the bank.
    """

    features: tuple[str, ...] = ()  # names

    def retrieve(self, block: Block, at: int) -> None:
        """Add candidates to the block's queries (`slot_of`), and sums to their features."""

    def finish(self, block: Block, at: int) -> None:
        """Turn sums into features once all families have retrieved; look up each candidate's features."""

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        """Add the family's part of each shown item's score to the places of the window that it rests on.

        What no place accounts for is added to the last place, L.
        """

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        """Count a batch. `seed`: for the draws of this batch, the same for every family."""

    def forget(self, rows: npt.NDArray[np.int32]) -> None:
        """Remove item rows from totals, before their columns are cleared."""

    def fade(self, weakening: float, share: float) -> None:
        """Let the past count less after a drift: see FeatureBank.fade."""


@inlined
def _bit_of(m):  # type: ignore[no-untyped-def]
    return np.uint64(1) << (np.uint64(m) * np.uint64(2654435761) >> np.uint64(20) & np.uint64(63))


@inlined
def bits_of(rows_K):  # type: ignore[no-untyped-def]
    """Return a Bloom filter of a list's item rows, for `place_in`."""
    bits = np.uint64(0)
    for m in rows_K:
        if m >= 0:
            bits |= _bit_of(m)
    return bits


@inlined
def place_in(rows_K, bits, m):  # type: ignore[no-untyped-def]
    """Return the place of item row `m` in a list, -1 where it has none."""
    if m >= 0 and bits & _bit_of(m):
        for i in range(rows_K.shape[0]):
            if rows_K[i] == m:
                return i
    return -1

"""What a checkpoint holds, made to fit columns of today: settings choose some lengths, versions add columns.

Axes: N = saved rows, H = ring slots a user, P = places of the present ring.
"""

import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.state.store import AnyArray, Column

logger = logging.getLogger(__name__)

RINGS = ("histories.items", "histories.types", "histories.times")  # slot = number of the push % length


class Differences(NamedTuple):
    """Full names of columns that a checkpoint lacks, and of those in it that this version doesn't know."""

    lacking: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: "Differences") -> "Differences":
        return Differences(self.lacking | other.lacking, self.unknown | other.unknown)

    def words(self) -> str:
        """Return what becomes of these columns, "" where there are none.

        >>> Differences(frozenset(["a.b"])).words()
        'a.b: not in it, an older version saved it; starts empty'
        """
        parts = []
        if self.lacking:
            names = ", ".join(sorted(self.lacking))
            parts.append(f"{names}: not in it, an older version saved it; starts empty")
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            parts.append(f"{names}: not known to this version; left out")
        return "; ".join(parts)

    def tell(self) -> None:
        """Log what becomes of these columns, in one line."""
        if words := self.words():
            logger.info("checkpoint of another version: %s", words)


def misfit(saved: AnyArray, column: Column) -> str:
    """Say why a saved array can't be taken into a column; "" where it can, cut or filled up perhaps."""
    shapes = []
    for array in (saved, column.data):
        shape: list[int | None] = list(array.shape)
        if column.axis != "none" and shape:
            shape[0] = None
        if 0 <= column.stretch < len(shape):
            shape[column.stretch] = None
        shapes.append(shape)
    if shapes[0] == shapes[1] and saved.dtype == column.data.dtype:
        return ""
    held, wanted = (f"{array.dtype}{list(array.shape)}" for array in (saved, column.data))
    return f"it holds {held}, this version expects {wanted}"


def fitted(saved: AnyArray, column: Column) -> AnyArray:
    """Return a saved array in the column's length along its stretch: cut, or filled up with what is empty.

    >>> fitted(np.array([[1, 2, 3]]), Column(np.zeros((8, 2), np.int64), "user", stretch=1)).tolist()
    [[1, 2]]
    """
    axis = column.stretch
    if axis < 0 or saved.shape[axis] == column.data.shape[axis]:
        return saved
    shape = list(saved.shape)
    shape[axis] = column.data.shape[axis]
    out = np.full(shape, column.fill, saved.dtype)
    kept = [slice(None)] * saved.ndim
    kept[axis] = slice(min(shape[axis], saved.shape[axis]))
    out[tuple(kept)] = saved[tuple(kept)]
    return out


def laid_anew(ring_NH: AnyArray, pushed_N: npt.NDArray[np.int64], length: int, fill: float) -> AnyArray:
    """Return rings of another length [N, length]: the newest pushes that both have room for, each in the slot
    where it lies now.

    >>> laid_anew(np.array([[4, 5, 3]]), np.array([5]), 4, -1).tolist()  # pushed: 1 to 5
    [[5, -1, 3, 4]]
    """
    held = ring_NH.shape[1]
    if held == length:
        return ring_NH
    out = np.full((ring_NH.shape[0], length), fill, ring_NH.dtype)
    every_N = np.arange(ring_NH.shape[0])
    for back in range(min(held, length)):
        there = pushed_N > back
        number_N = pushed_N[there] - 1 - back
        out[every_N[there], number_N % length] = ring_NH[every_N[there], number_N % held]
    return out

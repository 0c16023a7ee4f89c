"""Saved arrays, made to fit today's columns: settings choose some lengths, versions add columns.

Axes: N = saved rows, H = ring slots a user.
"""

import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.state.store import AnyArray, Column

logger = logging.getLogger(__name__)

RINGS = ("histories.items", "histories.types", "histories.times")  # slot = number of the push % length


class Differences(NamedTuple):
    """Columns that a checkpoint lacks, and columns in it that this version doesn't know, by full name."""

    lacking: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: "Differences") -> "Differences":
        return Differences(self.lacking | other.lacking, self.unknown | other.unknown)

    def tell(self) -> None:
        """Log what becomes of these columns, in one line."""
        effects = (
            (self.lacking, "not in it, an older version saved it; starts empty"),
            (self.unknown, "not known to this version; left out"),
        )
        parts = [f"{', '.join(sorted(names))}: {effect}" for names, effect in effects if names]
        if parts:
            logger.info("checkpoint of another version: %s", "; ".join(parts))


def misfit(saved: AnyArray, column: Column) -> str:
    """Return why a saved array can't be taken into a column; "" where it can, perhaps cut or filled up."""
    free_axes = {column.stretch} if column.axis == "none" else {0, column.stretch}
    held, wanted = (
        (array.dtype, [size for axis, size in enumerate(array.shape) if axis not in free_axes], array.ndim)
        for array in (saved, column.data)
    )
    if held == wanted:
        return ""
    held_text, wanted_text = (f"{array.dtype}{list(array.shape)}" for array in (saved, column.data))
    return f"it holds {held_text}, this version expects {wanted_text}"


def fitted(saved: AnyArray, column: Column) -> AnyArray:
    """Return a saved array in the column's length along its stretch: cut, or filled up.

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
    """Return rings of another length [N, length] with the newest pushes that both have room for.

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

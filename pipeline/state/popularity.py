"""Decayed popularity of every item at several half-lives: the first of the streaming memories.

Decay touches no table: a column adds a growing weight g instead of shrinking what is there, and value =
stored / g.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.state.store import Column

DAY_MS = 86_400_000
GAP_MS = 30 * 60 * 1000  # a longer pause starts a new session
# columns: all time, half-life 1,000 and 300 events, one day by event time, then half-life 300 in six cells
# of the user's moment (see `cells`)
ALL, P1000, P300, DAY, CELL = 0, 1, 2, 3, 4
CELLS = 6
WIDTH = CELL + CELLS
HALF_LIVES = np.array([np.inf, 1000.0, 300.0, np.inf] + [300.0] * CELLS)
_RESCALE = 1e20


class Popularity:
    """Counts per item, column and weight.

    Columns: `stored` float32 [M, WIDTH], `gain` float64 [WIDTH] (the present g), `total` float64 [WIDTH] (sum
    over items, stored scale), `clock_ms` int64 [1] (newest event time that the one-day column has seen).
    """

    def __init__(self, capacity: int) -> None:
        self.stored = Column(np.zeros((capacity, WIDTH), np.float32), "item")
        self.gain = Column(np.ones(WIDTH), "none")
        self.total = Column(np.zeros(WIDTH), "none")
        self.clock_ms = Column(np.zeros(1, np.int64), "none")
        self.version = 0  # moves with every change; not saved
        self.rescaled = 0  # how often `stored` was rounded anew; not saved

    def columns(self) -> dict[str, Column]:
        return {"stored": self.stored, "gain": self.gain, "total": self.total, "clock_ms": self.clock_ms}

    def values(self, column: int) -> npt.NDArray[np.float32]:
        """Return the decayed counts [M] of one column."""
        return np.asarray(self.stored.data[:, column] / np.float32(self.gain.data[column]), np.float32)

    def add(self, item_B: Any, weight_B: Any, cell_B: Any, time_ms_B: Any) -> None:
        """Count events in order; rows below 0 and weights of 0 are left out."""
        self.rescaled += _add(
            item_B, weight_B, cell_B, time_ms_B, HALF_LIVES, self.stored.data, self.gain.data,
            self.total.data, self.clock_ms.data, np.zeros(WIDTH),
        )  # fmt: skip
        self.version += 1

    def forget(self, rows: npt.NDArray[np.integer]) -> None:
        """Take rows out of the totals, before they are cleared."""
        if rows.size == 0:
            return
        self.total.data -= self.stored.data[rows].sum(0, dtype=np.float64)
        np.maximum(self.total.data, 0, out=self.total.data)
        self.version += 1


def cells(times_BL: Any, length_B: Any, now_ms_B: Any) -> npt.NDArray[np.int8]:
    """Return each moment's cell [B]: 0 no history; 1 a pause of 30 minutes or more; else 2-5 by the steps
    made in this session before the newest one: 0, 1, 2-4, 5 or more.
    """
    out = np.zeros(length_B.shape[0], np.int8)
    _cells(times_BL, length_B, now_ms_B, out)
    return out


@kernel()
def _cells(times_BL, length_B, now_B, out):  # type: ignore[no-untyped-def]
    for b in range(length_B.shape[0]):
        n = length_B[b]
        if n == 0:
            out[b] = 0
        elif now_B[b] - times_BL[b, 0] >= GAP_MS:
            out[b] = 1
        else:
            steps = 0
            while steps + 1 < n and steps < 5 and times_BL[b, steps] - times_BL[b, steps + 1] < GAP_MS:
                steps += 1
            out[b] = 2 if steps == 0 else (3 if steps == 1 else (4 if steps < 5 else 5))


@kernel()
def _add(item_B, weight_B, cell_B, time_B, half_lives, stored, gain, total, clock, growth):  # type: ignore[no-untyped-def]
    for c in range(growth.shape[0]):
        growth[c] = np.exp(math.log(2.0) / half_lives[c])
    rescaled = 0
    for b in range(item_B.shape[0]):
        m, w = item_B[b], weight_B[b]
        if m < 0 or w <= 0:
            continue
        if clock[0] == 0:
            clock[0] = time_B[b]
        if time_B[b] > clock[0]:
            gain[DAY] *= 2.0 ** min((time_B[b] - clock[0]) / DAY_MS, 60.0)
            clock[0] = time_B[b]
            rescaled += _rescale(DAY, stored, gain, total)
        own = CELL + cell_B[b]
        for c in range(CELL + CELLS):
            if c < CELL or c == own:
                stored[m, c] += w * gain[c]
                total[c] += w * gain[c]
            if c != DAY:
                gain[c] *= growth[c]
                rescaled += _rescale(c, stored, gain, total)
    return rescaled


@kernel()
def _rescale(c, stored, gain, total):  # type: ignore[no-untyped-def]
    """Bring a column's weights back to 1 before float32 can't hold them; return how often (0 or 1).

    At once, not after the batch: three pauses of two months in one batch are more than float32 holds.
    """
    if gain[c] <= _RESCALE:
        return 0
    for m in range(stored.shape[0]):
        stored[m, c] /= np.float32(gain[c])
    total[c] /= gain[c]
    gain[c] = 1.0
    return 1

"""Adagrad for streams: of dense parameters, and of touched rows.

The accumulator takes the sum of the squared gradients of single events, not the square of their sum, so that
n events move a parameter nearly as far in one batch as in n batches of one (Duchi et al. 2011):

    A += sum_b g_b^2          step = lr * sum_b g_b / sqrt(A)

For dense parameters, which every event pulls at, A takes (sum_b g_b)^2 / AGREE where that is larger: many
events that pull the same way are not independent. Axes: R = touched rows, D = row width.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import inlined, kernel

FloatArray = npt.NDArray[np.float32]
EPSILON = np.float32(1e-10)
# measured: nothing lost in batches of 128, and in those of 512 half of what too long steps cost is won back
AGREE = np.float32(8)
# no parameter leaves -BOUND .. BOUND: a stream that pulls one way without end, or an event type of great
# weight, ends there and not in infinity. Largest on recorded streams: 3.1 after 40,000 events, 4.4 after
# 300,000
BOUND = np.float32(8)


def adagrad(
    parameter: FloatArray,
    accumulator: FloatArray,
    total: FloatArray,
    squares: FloatArray,
    rate: float,
    most: float,
    bound: float,
) -> None:
    """Move a dense parameter in place within `bound`, no entry further than `most`: the first steps have no
    scale yet.

    >>> p, a = np.zeros(1, np.float32), np.zeros(1, np.float32)
    >>> adagrad(p, a, np.float32([2.0]), np.float32([4.0]), rate=0.1, most=1.0, bound=9.0)
    >>> round(float(p[0]), 3), float(a[0])
    (-0.1, 4.0)
    """
    flat = (parameter.reshape(-1), accumulator.reshape(-1), np.ravel(total), np.ravel(squares))
    _adagrad(*flat, np.float32(rate), np.float32(most), np.float32(bound))


@kernel()
def _adagrad(parameter, accumulator, total, squares, rate, most, bound):  # type: ignore[no-untyped-def]
    for n in range(parameter.shape[0]):
        accumulator[n] += max(squares[n], total[n] * total[n] / AGREE)
        step = min(max(rate * total[n] / np.sqrt(accumulator[n] + EPSILON), -most), most)
        parameter[n] = min(max(parameter[n] - step, -bound), bound)


class RowSums(NamedTuple):
    """Gradients of touched rows, for kernels. `slot` of a row is valid where its `stamp` is `tag`."""

    tag: int
    stamp: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    total: FloatArray  # [R, D]
    squares: FloatArray  # [R]: summed squares of single events' gradients, mean over D
    used: npt.NDArray[np.int64]  # [1]


class RowGradients:
    """Sums the gradients of the rows that a batch touches; scratch space, no state."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._stamp = np.zeros(0, np.int64)
        self._slot = np.zeros(0, np.int32)
        self._rows = np.zeros(1024, np.int32)
        self._total = np.zeros((1024, dim), np.float32)
        self._squares = np.zeros(1024, np.float32)
        self._used = np.zeros(1, np.int64)
        self._tag = 0

    def begin(self, known: int, most: int) -> RowSums:
        """Start a batch; make room for `known` rows of which at most `most` are touched."""
        if self._stamp.shape[0] < known:
            self._stamp, self._slot, self._tag = np.zeros(known, np.int64), np.zeros(known, np.int32), 0
        most = min(most, known)
        if self._rows.shape[0] < most:
            most = max(most, 2 * self._rows.shape[0])
            self._rows = np.zeros(most, np.int32)
            self._total, self._squares = np.zeros((most, self.dim), np.float32), np.zeros(most, np.float32)
        self._tag += 1
        self._used[0] = 0
        return RowSums(self._tag, self._stamp, self._slot, self._rows, self._total, self._squares, self._used)


def norm_of(sums: RowSums) -> float:
    """Return the norm of all summed gradients."""
    return float(np.linalg.norm(sums.total[: sums.used[0]]))


@inlined
def slot_of(row, sums):  # type: ignore[no-untyped-def]
    """Return the row's slot, a zeroed one at its first touch in the batch."""
    if sums.stamp[row] != sums.tag:
        sums.stamp[row] = sums.tag
        s = sums.used[0]
        sums.slot[row] = s
        sums.rows[s] = row
        for d in range(sums.total.shape[1]):
            sums.total[s, d] = np.float32(0)
        sums.squares[s] = 0
        sums.used[0] = s + 1
    return sums.slot[row]


@kernel()
def add_rows(row_N, grad_ND, square_N, sums):  # type: ignore[no-untyped-def]
    """Add gradients [N, D] of rows (-1: none) with their summed squares [N] (mean over D)."""
    for n in range(row_N.shape[0]):
        if row_N[n] >= 0:
            s = slot_of(row_N[n], sums)
            for d in range(grad_ND.shape[1]):
                sums.total[s, d] += grad_ND[n, d]
            sums.squares[s] += square_N[n]


@kernel()
def apply(table, accumulator, rate, sums):  # type: ignore[no-untyped-def]
    """Move every touched row of `table` [M, D] within BOUND: row-wise Adagrad, one accumulator a row."""
    for s in range(sums.used[0]):
        row = sums.rows[s]
        accumulator[row] += sums.squares[s]
        step = rate / np.sqrt(accumulator[row] + EPSILON)
        for d in range(sums.total.shape[1]):
            table[row, d] = min(max(table[row, d] - step * sums.total[s, d], -BOUND), BOUND)

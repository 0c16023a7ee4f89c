"""Adagrad, in the three shapes that a stream needs; one scaling rule for all.

The rule: the accumulator takes the sum of the squared gradients of single events, not the square of their
sum:

    A += sum_b g_b^2          step = lr * sum_b g_b / sqrt(A)

so that n events move a parameter nearly as far in one batch as in n batches of one (Duchi et al. 2011 is the
case of one event a batch). For dense parameters, which every event pulls at, A takes (sum_b g_b)^2 / AGREE
where that is larger: many events that pull the same way are no independent witnesses.
Axes: R = touched rows, D = row width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel

FloatArray = npt.NDArray[np.float32]
EPSILON = np.float32(1e-10)
# measured: nothing lost in batches of 128, and in those of 512 half of what too long steps cost is won back
AGREE = np.float32(8)
# no parameter leaves -BOUND .. BOUND: a stream that pulls one way for ever, or an event type of great weight,
# ends there and not in infinity. Largest on recorded streams: 3.1 after 40,000 events, 4.4 after 300,000
BOUND = np.float32(8)


def adagrad(
    parameter: FloatArray,
    accumulator: FloatArray,
    total: FloatArray,
    squares: FloatArray,
    rate: float,
    most: float,
) -> None:
    """Move a dense parameter in place. No entry moves further than `most` at once: the first steps have no
    scale yet.

    >>> p, a = np.zeros(1, np.float32), np.zeros(1, np.float32)
    >>> adagrad(p, a, np.float32([2.0]), np.float32([4.0]), rate=0.1, most=1.0)
    >>> round(float(p[0]), 3), float(a[0])
    (-0.1, 4.0)
    """
    accumulator += np.maximum(squares, total**2 / AGREE)
    parameter -= np.clip(np.float32(rate) * total / np.sqrt(accumulator + EPSILON), -most, most)


class RowGradients:
    """Sums the gradients of the rows that a batch touches; scratch space, no state.

    `add` kernels write to `total` [R, D] and `squares` [R] at the slot of a row; `slot_of` finds it by stamp.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.stamp = np.zeros(0, np.int64)
        self.slot = np.zeros(0, np.int32)
        self.rows = np.zeros(1024, np.int32)
        self.total = np.zeros((1024, dim), np.float32)
        self.squares = np.zeros(1024, np.float32)
        self.used = np.zeros(1, np.int64)
        self.tag = 0

    def begin(self, known: int, most: int) -> None:
        """Forget the last batch; make room for `known` item rows of which at most `most` are touched."""
        if self.stamp.shape[0] < known:
            self.stamp, self.slot, self.tag = np.zeros(known, np.int64), np.zeros(known, np.int32), 0
        most = min(most, known)
        if self.rows.shape[0] < most:
            most = max(most, 2 * self.rows.shape[0])
            self.rows = np.zeros(most, np.int32)
            self.total, self.squares = np.zeros((most, self.dim), np.float32), np.zeros(most, np.float32)
        self.tag += 1
        self.used[0] = 0

    @property
    def scratch(self) -> tuple[Any, ...]:
        """What the kernels need, in the order of their arguments."""
        return self.tag, self.stamp, self.slot, self.rows, self.total, self.squares, self.used

    def norm(self) -> float:
        """Return the norm of all summed gradients."""
        return float(np.linalg.norm(self.total[: self.used[0]]))


@kernel()
def slot_of(row, tag, stamp, slot, rows, total, squares, used):  # type: ignore[no-untyped-def]
    """Return the row's slot, a fresh zeroed one at its first touch in the batch."""
    if stamp[row] != tag:
        stamp[row] = tag
        s = used[0]
        slot[row] = s
        rows[s] = row
        total[s, :] = 0
        squares[s] = 0
        used[0] = s + 1
    return slot[row]


@kernel()
def add_rows(row_N, grad_ND, square_N, tag, stamp, slot, rows, total, squares, used):  # type: ignore[no-untyped-def]
    """Add gradients [N, D] of rows (-1: none) with their summed squares [N] (mean over D)."""
    for n in range(row_N.shape[0]):
        if row_N[n] >= 0:
            s = slot_of(row_N[n], tag, stamp, slot, rows, total, squares, used)
            for d in range(grad_ND.shape[1]):
                total[s, d] += grad_ND[n, d]
            squares[s] += square_N[n]


@kernel()
def add_windows(items_BL, length_B, grad_BLD, tag, stamp, slot, rows, total, squares, used):  # type: ignore[no-untyped-def]
    """Add the gradients of window items [B, L, D]; each place counts as one event."""
    dim = grad_BLD.shape[2]
    for b in range(items_BL.shape[0]):
        for k in range(min(length_B[b], grad_BLD.shape[1])):
            s = slot_of(items_BL[b, k], tag, stamp, slot, rows, total, squares, used)
            square = np.float32(0)
            for d in range(dim):
                g = grad_BLD[b, k, d]
                total[s, d] += g
                square += g * g
            squares[s] += square / dim


@kernel()
def apply(table, accumulator, rate, tag, stamp, slot, rows, total, squares, used):  # type: ignore[no-untyped-def]
    """Move every touched row of `table` [M, >= D] within BOUND: row-wise Adagrad, one accumulator a row.

    The only place where item parameters change.
    """
    for s in range(used[0]):
        row = rows[s]
        accumulator[row] += squares[s]
        step = rate / np.sqrt(accumulator[row] + EPSILON)
        for d in range(total.shape[1]):
            table[row, d] = min(max(table[row, d] - step * total[s, d], -BOUND), BOUND)

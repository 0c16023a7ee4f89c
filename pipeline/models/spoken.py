"""What a history's items say of other items, over what holds of every item: scores that are mostly the same
for all queries, so that exact ranks over the catalogue need no pass over it.

    score_b(m) = base(m) + sum of the values of query b's entries that name m

Ranks among the bases come from one sort a batch; the entries then correct them, item by item. Axes: B =
queries, C = candidate slots, E = entries, K = rows asked for, L = places of a window, M = item rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.models.model import FloatArray, IntArray, Targets
from pipeline.models.tested import RankResult
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE


class Spoken(NamedTuple):
    """Entries of every query: those of b lie from `border_B[b]` to `border_B[b + 1]`.

    `place_E` is the place in the window of the item that speaks. An item may be named more than once.
    """

    row_E: IntArray
    place_E: IntArray
    value_E: FloatArray
    border_B: npt.NDArray[np.int64]


class Ranker:
    """Scores and ranks of spoken entries over a base; holds scratch space only."""

    def __init__(self) -> None:
        self._sums = np.zeros(0, np.float32)
        self._stamp = np.zeros(0, np.int64)
        self._tag = 1

    def ranks(
        self,
        spoken: Spoken,
        base_M: FloatArray,
        status_M: npt.NDArray[np.uint8],
        queries: Queries,
        targets: Targets,
    ) -> RankResult:
        """Return where each target stands among all rows that may be shown, exactly."""
        live_M = status_M == LIVE
        ranks = np.zeros((3, targets.row_B.shape[0]), np.int64)
        self._room(base_M.shape[0])
        _ranks(
            *spoken, base_M, np.sort(base_M[live_M]), live_M, targets.row_B, queries.barred, queries.border_B,
            self._sums, self._stamp, self._tag, *ranks,
        )  # fmt: skip
        self._tag += targets.row_B.shape[0]
        return RankResult(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B)

    def scores(self, spoken: Spoken, base_M: FloatArray, rows_BC: IntArray, count_B: IntArray) -> FloatArray:
        """Return the scores [B, C] of each query's candidates; 0 past its count."""
        out = np.zeros(rows_BC.shape, np.float32)
        self._room(base_M.shape[0])
        _scores(*spoken, base_M, rows_BC, count_B, self._sums, self._stamp, self._tag, out)
        self._tag += rows_BC.shape[0]
        return out

    def _room(self, rows: int) -> None:
        if self._sums.shape[0] < rows:
            self._sums, self._stamp = np.zeros(rows, np.float32), np.zeros(rows, np.int64)


def parts(spoken: Spoken, base_M: FloatArray, rows_BK: IntArray, length: int) -> FloatArray:
    """Return each place's share of the score of each row [B, K, L + 1]; the base is the last place's.

    Rows below 0 hold nothing.
    """
    out = np.zeros((*rows_BK.shape, length + 1), np.float32)
    out[:, :, -1] = np.where(rows_BK >= 0, base_M[np.maximum(rows_BK, 0)], 0)
    _parts(*spoken, rows_BK, out)
    return out


@kernel()
def _fill(b, row_E, value_E, border_B, base_M, sums, stamp, mark):  # type: ignore[no-untyped-def]
    """Write the scores of the items that query b's entries name, and mark them."""
    for e in range(border_B[b], border_B[b + 1]):
        m = row_E[e]
        if stamp[m] != mark:
            stamp[m], sums[m] = mark, base_M[m]
        sums[m] += value_E[e]


@kernel()
def _ranks(  # type: ignore[no-untyped-def]
    row_E, place_E, value_E, border_B, base_M, ordered, live_M, target_B, barred, barred_border, sums, stamp,
    tag, greater_B, equal_B, candidates_B,
):  # fmt: skip
    n = ordered.shape[0]
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        mark = tag + b
        _fill(b, row_E, value_E, border_B, base_M, sums, stamp, mark)
        own = sums[t] if stamp[t] == mark else base_M[t]
        upto = np.searchsorted(ordered, own, side="right")
        greater, equal, seen = n - upto, upto - np.searchsorted(ordered, own, side="left"), n
        for e in range(barred_border[b], barred_border[b + 1]):
            m = barred[e]
            if m >= 0 and live_M[m]:
                greater -= base_M[m] > own
                equal -= base_M[m] == own
                seen -= 1
                stamp[m] = 0  # whatever is said of it
        for e in range(border_B[b], border_B[b + 1]):
            m = row_E[e]
            if stamp[m] != mark or not live_M[m]:
                continue
            stamp[m] = 0  # each item once
            greater += np.int64(sums[m] > own) - np.int64(base_M[m] > own)
            equal += np.int64(sums[m] == own) - np.int64(base_M[m] == own)
        greater_B[b], equal_B[b], candidates_B[b] = greater, equal - 1, seen


@kernel()
def _scores(  # type: ignore[no-untyped-def]
    row_E, place_E, value_E, border_B, base_M, rows_BC, count_B, sums, stamp, tag, out_BC
):
    for b in range(rows_BC.shape[0]):
        mark = tag + b
        _fill(b, row_E, value_E, border_B, base_M, sums, stamp, mark)
        for c in range(count_B[b]):
            m = rows_BC[b, c]
            out_BC[b, c] = sums[m] if stamp[m] == mark else base_M[m]


@kernel()
def _parts(row_E, place_E, value_E, border_B, rows_BK, out):  # type: ignore[no-untyped-def]
    for b in range(rows_BK.shape[0]):
        for e in range(border_B[b], border_B[b + 1]):
            for k in range(rows_BK.shape[1]):
                if rows_BK[b, k] == row_E[e]:
                    out[b, k, place_E[e]] += value_E[e]

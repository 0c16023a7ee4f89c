"""Shares the memories' part of a score out among the history items that it was summed over."""

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.state.successors import Successors
from pipeline.train.memories import (
    D_CELL,
    DENSE,
    PARENTS,
    S_BACKOFF,
    S_CONTEXT,
    S_COSINE,
    S_NEAR,
    S_OFTEN,
    S_OWN,
    Candidates,
)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def explain(
    items_BL: IntArray,
    length_B: IntArray,
    cell_B: npt.NDArray[np.int8],
    rows_BK: IntArray,
    candidates: Candidates,
    coef_BF: FloatArray,
    table: FloatArray,
    dim: int,
    successors: Successors,
    out_BKP: FloatArray,
) -> None:
    """Add to `out` [B, K, L + 1] what each place of the window adds to the memories' part of a score.

    A sum over history items is shared out as it was summed, whatever logarithm was taken of it; what depends
    on no history item (popularity) goes to the last place.
    """
    _explain(
        items_BL, length_B, cell_B, rows_BK, candidates.rows, candidates.count, candidates.features, coef_BF,
        table, dim, successors.partner.data, successors.forward.data, successors.backward.data,
        successors.count.data, out_BKP,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _explain(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, rows_BK, rows_BC, count_B, X, coef, table, dim, partner, forward, backward,
    count_M, out,
):  # fmt: skip
    rest = out.shape[2] - 1
    part = np.zeros((3, PARENTS), np.float32)
    for b in range(rows_BK.shape[0]):
        parents = min(length_B[b], PARENTS)
        for k in range(rows_BK.shape[1]):
            m = rows_BK[b, k]
            if m < 0:
                continue
            for f in range(D_CELL):
                out[b, k, rest] += table[m, dim + f] * coef[b, f]
            out[b, k, rest] += table[m, dim + D_CELL + cell_B[b]] * coef[b, D_CELL]
            c = 0
            while c < count_B[b] and rows_BC[b, c] != m:
                c += 1
            if c == count_B[b]:
                continue
            part[:] = 0
            fade6, fade8 = np.float32(1), np.float32(1)
            for p in range(parents):
                h = items_BL[b, p]
                for s in range(partner.shape[1]):
                    if partner[h, s] == m:
                        both = forward[h, s] + backward[h, s]
                        part[0, p] = fade6 * forward[h, s]
                        part[1, p] = fade8 * both / np.sqrt(np.float32(1) + count_M[h])
                        part[2, p] = fade8 * both
                        break
                fade6 *= np.float32(0.6)
                fade8 *= np.float32(0.8)
            for i in range(3):
                f = S_BACKOFF if i == 0 else (S_COSINE if i == 1 else S_NEAR)
                total = part[i].sum()
                if total > 0:
                    for p in range(parents):
                        out[b, k, p] += X[b, c, f] * coef[b, DENSE + f] * part[i, p] / total
            if length_B[b] > 0:
                out[b, k, 0] += X[b, c, S_CONTEXT] * coef[b, DENSE + S_CONTEXT]
            if X[b, c, S_OFTEN] > 0:
                own = X[b, c, S_OWN] * coef[b, DENSE + S_OWN] + X[b, c, S_OFTEN] * coef[b, DENSE + S_OFTEN]
                for p in range(length_B[b]):
                    if items_BL[b, p] == m:
                        out[b, k, p] += own
                        break

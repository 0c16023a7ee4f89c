"""Shares the memories' part of a score out among the history items that it was summed over."""

import numpy as np
import numpy.typing as npt

from pipeline.features import occurrences, own, sessions, successors
from pipeline.features.memories import D_CELL, REACHED, Candidates
from pipeline.kernels import kernel
from pipeline.state.counts import Counts
from pipeline.state.queries import Queries

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def explain(
    queries: Queries,
    rows_BK: IntArray,
    candidates: Candidates,
    coef_BF: FloatArray,
    table: FloatArray,
    dim: int,
    counts: Counts,
    prior_M: FloatArray,
    out_BKP: FloatArray,
) -> None:
    """Add to `out` [B, K, L + 1] what each place of the window adds to the memories' part of a score.

    A sum over history items is shared out as it was summed, whatever logarithm was taken of it; what depends
    on no history item (popularity) goes to the last place.
    """
    tables, held = counts.successors, counts.sessions
    shown, slots = rows_BK.shape[1], held.number.data.shape[0]
    found, shared = sessions.scratch(held.visits.data)
    _explain(
        queries.items_BL, queries.length_B, queries.cell_B, held.own(queries.user_B), rows_BK,
        candidates.rows, candidates.count, candidates.features, prior_M, coef_BF, table, dim,
        tables.partner.data, tables.forward.data, tables.backward.data, tables.count.data, held.items.data,
        held.number.data, held.steps.data, held.visits.data, held.visited.data,
        np.zeros(slots, np.float32), found, shared, np.empty(slots, np.int32),
        np.zeros(table.shape[0], np.int32), np.empty((shown, sessions.REACH), np.float32),
        np.empty((3, REACHED), np.float32), np.empty(shown, np.int64), out_BKP,
    )  # fmt: skip


@kernel()
def _explain(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, own_B, rows_BK, rows_BC, count_B, X, prior_M, coef, table, dim, partner,
    forward, backward, count_M, held, number, steps, visits, visited, near_N, found, shared, newest_N,
    place_M, part_KP, part_3P, at_K, out,
):  # fmt: skip
    rest = out.shape[2] - 1
    for b in range(rows_BK.shape[0]):
        history = items_BL[b, : length_B[b]]
        for k in range(rows_BK.shape[1]):
            m = rows_BK[b, k]
            at_K[k] = -1
            if m < 0:
                continue
            for f in range(D_CELL):
                out[b, k, rest] += table[m, dim + f] * coef[b, f]
            out[b, k, rest] += table[m, dim + D_CELL + cell_B[b]] * coef[b, D_CELL]
            c = 0
            while c < count_B[b] and rows_BC[b, c] != m:
                c += 1
            if c == count_B[b] or history.shape[0] == 0:
                continue
            at_K[k] = c
            successors.share(
                history,
                m,
                X[b, c],
                coef[b],
                partner,
                forward,
                backward,
                count_M,
                prior_M,
                part_3P,
                out[b, k],
            )
            occurrences.share(X[b, c], coef[b], out[b, k])
            own.share(history, m, X[b, c], coef[b], out[b, k])
        sessions.share(
            history, own_B[b], rows_BK[b], at_K, X[b], coef[b], held, number, steps, visits, visited, near_N,
            found, shared, newest_N, place_M, part_KP, out[b],
        )  # fmt: skip

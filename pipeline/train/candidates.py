"""Finds each query's candidates and what the memories say of them, in one pass over the counts.

Axes: B = queries, C = candidate slots, L = places of the window, M = item rows, S = sparse features. h_k is
the k-th newest item of the history.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.state.popularity import CELL, Popularity
from pipeline.state.successors import Successors
from pipeline.state.tables import LIVE
from pipeline.train.families import neighbours, occurrences, own, successors
from pipeline.train.families.popularity import priors
from pipeline.train.families.slots import BARRED, SHIFT, SPOKEN_OF
from pipeline.train.memories import (
    POPULAR,
    S_AGAIN,
    S_BACKOFF,
    S_CONTEXT,
    S_COSINE,
    S_NAIVE,
    S_NEIGHBOUR,
    S_OFTEN,
    S_OWN,
    S_SHARP,
    SCALE,
    SPARSE,
    Candidates,
)

IntArray = npt.NDArray[np.int32]


class Gatherer:
    """Finds candidates and their features for a batch of queries; holds scratch space only, no state."""

    def __init__(self, least: int) -> None:
        self.least = max(least, POPULAR)
        self._tag = 0
        self._seen = np.zeros(0, np.int64)
        self._near = np.zeros(0, np.float32)

    def gather(
        self,
        items_BL: IntArray,
        length_B: IntArray,
        cell_B: npt.NDArray[np.int8],
        barred: IntArray,
        barred_border_B: npt.NDArray[np.int64],
        repeats: bool,
        wanted: tuple[int, ...],
        known: int,
        counts: Successors,
        popularity: Popularity,
        lists: IntArray,
        status_M: npt.NDArray[np.uint8],
    ) -> Candidates:
        """Return the candidates of each query.

        `barred[border[b]:border[b + 1]]` are rows that query b may not show. `lists` int32 [WIDTH, LISTED]
        holds the most popular rows by each popularity column, -1 at the end; `wanted` names those to draw
        from. `known` rows hold an item. A query left with fewer than `least` candidates gets known rows in
        order of their number.
        """
        width = SPOKEN_OF + len(wanted) * POPULAR + self.least
        rows = np.full((items_BL.shape[0], width), -1, np.int32)
        count = np.zeros(items_BL.shape[0], np.int32)
        features = np.zeros((items_BL.shape[0], width, SPARSE), np.float32)
        size = status_M.shape[0]
        if self._seen.shape[0] < size:
            self._seen, self._tag = np.zeros(size, np.int64), 0
            self._near = np.zeros(size, np.float32)
        _gather(
            items_BL, length_B, cell_B, barred, barred_border_B, repeats, counts.partner.data,
            counts.forward.data, counts.backward.data, counts.count.data, counts.context.data,
            counts.contexts.data, priors(popularity, known), lists, np.array(wanted, np.int64), self.least,
            status_M, self._tag, self._seen, self._near, rows, count, features,
        )  # fmt: skip
        self._tag += items_BL.shape[0] + 1
        return Candidates(rows, count, features)


@njit(cache=True, nogil=True)
def _gather(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, barred, border, repeats, partner, forward, backward, count_M, context,
    contexts, prior_M, lists, wanted, least, status_M, tag, seen, near_M, rows, count_B, X,
):  # fmt: skip
    for b in range(items_BL.shape[0]):
        tag += 1
        base = tag << SHIFT
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                seen[barred[e]] = base + BARRED
        history = items_BL[b, : length_B[b]]
        n = successors.speak(
            0, history, partner, forward, backward, count_M, prior_M, status_M, base, seen, rows[b], X[b]
        )
        n, weights = occurrences.speak(n, history, context, contexts, status_M, base, seen, rows[b], X[b])
        n = neighbours.speak(n, history, context, contexts, status_M, base, seen, near_M, rows[b], X[b])
        if repeats:
            n = own.speak(n, history, status_M, base, seen, rows[b], X[b])
        _logarithms(n, weights, prior_M, rows[b], X[b])
        n = _popular(n, cell_B[b], lists, wanted, status_M, base, seen, rows[b])
        m = 0
        while n < least and m < status_M.shape[0]:
            if status_M[m] == LIVE and seen[m] < base:
                seen[m], rows[b, n] = base + n, m
                n += 1
            m += 1
        count_B[b] = n


@njit(cache=True, nogil=True)
def _logarithms(n, weights, prior_M, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Turn the families' sums into features, all on about the same scale."""
    one, scale, thousand = np.float32(1), np.float32(SCALE), np.float32(1000)
    for c in range(n):
        mine = prior_M[rows_C[c]]
        X_CS[c, S_BACKOFF] = np.log(one + X_CS[c, S_BACKOFF] / mine) * scale
        X_CS[c, S_COSINE] = np.log(one + thousand * X_CS[c, S_COSINE]) * scale
        X_CS[c, S_NAIVE] *= scale
        if weights > 0:
            X_CS[c, S_CONTEXT] = np.log(one + thousand * X_CS[c, S_CONTEXT] / weights) * scale
            X_CS[c, S_SHARP] = np.log(one + X_CS[c, S_SHARP]) * scale
        X_CS[c, S_NEIGHBOUR] = np.log(one + X_CS[c, S_NEIGHBOUR] / mine) * scale
        if X_CS[c, S_OWN] > 0:
            X_CS[c, S_OWN] = (np.float32(4) + np.log(X_CS[c, S_OWN])) * scale
            X_CS[c, S_OFTEN] = np.log(one + X_CS[c, S_OFTEN])
            X_CS[c, S_AGAIN] = np.log(one + X_CS[c, S_AGAIN])


@njit(cache=True, nogil=True)
def _popular(n, cell, lists, wanted, status_M, base, seen, rows_C):  # type: ignore[no-untyped-def]
    """Add the most popular items that may be shown, POPULAR of each wanted list."""
    for choice in range(wanted.shape[0]):
        which = wanted[choice] + cell if wanted[choice] == CELL else wanted[choice]
        taken = 0
        for e in range(lists.shape[1]):
            m = lists[which, e]
            if m < 0 or taken == POPULAR:
                break
            c = seen[m] - base
            if status_M[m] != LIVE or c == BARRED:
                continue
            taken += 1
            if c < 0:
                seen[m], rows_C[n] = base + n, m
                n += 1
    return n

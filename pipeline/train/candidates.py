"""Finds each query's candidates and what the memories say of them, in one pass over the counts.

Axes: B = queries, C = candidate slots, L = places of the window, M = item rows, S = sparse features. h_k is
the k-th newest item of the history.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.state.popularity import CELL, P1000, Popularity
from pipeline.state.successors import BEFORE, Successors
from pipeline.state.tables import LIVE
from pipeline.train.memories import (
    BACK_OFF,
    PARENTS,
    POPULAR,
    S_BACKOFF,
    S_CONTEXT,
    S_COSINE,
    S_NEAR,
    S_OFTEN,
    S_OWN,
    SCALE,
    SMALL,
    SPARSE,
    Candidates,
    smoothed_total,
)

IntArray = npt.NDArray[np.int32]
SPOKEN_OF = 200  # slots for what the history's items speak of; the rest is for popular items
SHIFT = 11  # a query has fewer than 2 ** SHIFT slots: 200, 40 a list, and at most 1,000 for a list of K
BARRED = (1 << SHIFT) - 1


class Gatherer:
    """Finds candidates and their features for a batch of queries; holds scratch space only, no state."""

    def __init__(self, least: int) -> None:
        self.least = max(least, POPULAR)
        self._tag = 0
        self._seen = np.zeros(0, np.int64)

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
        successors: Successors,
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
        _gather(
            items_BL, length_B, cell_B, barred, barred_border_B, repeats, successors.partner.data,
            successors.forward.data, successors.backward.data, successors.count.data, successors.context.data,
            successors.contexts.data, popularity.stored.data, popularity.gain.data,
            smoothed_total(popularity, max(known, 1)), lists, np.array(wanted, np.int64), self.least,
            status_M, self._tag, self._seen, rows, count, features,
        )  # fmt: skip
        self._tag += items_BL.shape[0] + 1
        return Candidates(rows, count, features)


# In `seen` [M] the item of slot c of the query at hand holds (tag << SHIFT) + c, a barred item + BARRED:
# one array answers whether, and where. How an item gets its slot is written out three times: as a function
# it took nine times as long, since numba counts references to every array at each call.


@njit(cache=True, nogil=True)
def _gather(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, barred, border, repeats, partner, forward, backward, count_M, context,
    contexts, stored, gain, share, lists, wanted, least, status_M, tag, seen, rows, count_B, X,
):  # fmt: skip
    gain1000 = np.float32(gain[P1000])
    for b in range(items_BL.shape[0]):
        tag += 1
        base = tag << SHIFT
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                seen[barred[e]] = base + BARRED
        history = items_BL[b, : length_B[b]]
        n = _successors(history, partner, forward, backward, count_M, status_M, base, seen, rows[b], X[b])
        n, weights = _contexts(n, history, context, contexts, status_M, base, seen, rows[b], X[b])
        if repeats:
            n = _own(n, history, status_M, base, seen, rows[b], X[b])
        _logarithms(n, weights, stored, gain1000, share, rows[b], X[b])
        n = _popular(n, cell_B[b], lists, wanted, status_M, base, seen, rows[b])
        m = 0
        while n < least and m < status_M.shape[0]:
            if status_M[m] == LIVE and seen[m] < base:
                seen[m], rows[b, n] = base + n, m
                n += 1
            m += 1
        count_B[b] = n


@njit(cache=True, nogil=True)
def _successors(  # type: ignore[no-untyped-def]
    history, partner, forward, backward, count_M, status_M, base, seen, rows_C, X_CS
):
    """Sum over the newest items h_k: S_BACKOFF .6^k forward; S_NEAR .8^k (forward + backward); S_COSINE that
    over sqrt(1 + count of h_k).
    """
    n = 0
    fade6, fade8, one = np.float32(1), np.float32(1), np.float32(1)
    for k in range(min(history.shape[0], PARENTS)):
        h = history[k]
        norm = fade8 / np.sqrt(one + count_M[h])
        for s in range(partner.shape[1]):
            m = partner[h, s]
            if m < 0 or status_M[m] != LIVE:
                continue
            c = seen[m] - base
            if c < 0 and n < SPOKEN_OF:
                c = n
                seen[m], rows_C[n] = base + n, m
                n += 1
            if 0 <= c < BARRED:
                both = forward[h, s] + backward[h, s]
                X_CS[c, S_BACKOFF] += fade6 * forward[h, s]
                X_CS[c, S_COSINE] += norm * both
                X_CS[c, S_NEAR] += fade8 * both
        fade6 *= np.float32(0.6)
        fade8 *= np.float32(0.8)
    return n


@njit(cache=True, nogil=True)
def _contexts(n, history, context, contexts, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Sum over what followed the newest item before: S_CONTEXT is the square of 1 + how well its surroundings
    match, 1 for an item in the same place of this history, .5 for one close by. Return the sum over all too.
    """
    weights = np.float32(0)
    length = history.shape[0]
    if length == 0:
        return n, weights
    h = history[0]
    for r in range(min(contexts[h], context.shape[1])):
        match = np.float32(1)
        for q in range(1, 1 + BEFORE):
            p = context[h, r, q]
            if p < 0:
                continue
            if q < length and history[q] == p:
                match += np.float32(1)
            else:
                for k in range(1, min(length, 6)):
                    if history[k] == p:
                        match += np.float32(0.5)
                        break
        weights += match * match
        m = context[h, r, 0]
        if m < 0 or status_M[m] != LIVE:
            continue
        c = seen[m] - base
        if c < 0 and n < SPOKEN_OF:
            c = n
            seen[m], rows_C[n] = base + n, m
            n += 1
        if 0 <= c < BARRED:
            X_CS[c, S_CONTEXT] += match * match
    return n, weights


@njit(cache=True, nogil=True)
def _own(n, history, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Count own items: S_OWN by recency of the newest occurrence, S_OFTEN by number."""
    for k in range(history.shape[0]):
        m = history[k]
        if status_M[m] != LIVE:
            continue
        c = seen[m] - base
        if c < 0 and n < SPOKEN_OF:
            c = n
            seen[m], rows_C[n] = base + n, m
            n += 1
        if 0 <= c < BARRED:
            if X_CS[c, S_OWN] == 0:
                X_CS[c, S_OWN] = np.float32(1) / np.float32(1 + k)
            X_CS[c, S_OFTEN] += np.float32(1)
    return n


@njit(cache=True, nogil=True)
def _logarithms(n, weights, stored, gain1000, share, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Turn sums into features: successors backed off to popularity, all on about the same scale."""
    one, scale, thousand = np.float32(1), np.float32(SCALE), np.float32(1000)
    for c in range(n):
        mine = np.float32((stored[rows_C[c], P1000] / gain1000 + SMALL) / share) * np.float32(BACK_OFF)
        X_CS[c, S_BACKOFF] = np.log(one + X_CS[c, S_BACKOFF] / mine) * scale
        X_CS[c, S_NEAR] = np.log(one + X_CS[c, S_NEAR] / (mine + mine)) * scale
        X_CS[c, S_COSINE] = np.log(one + thousand * X_CS[c, S_COSINE]) * scale
        if weights > 0:
            X_CS[c, S_CONTEXT] = np.log(one + thousand * X_CS[c, S_CONTEXT] / weights) * scale
        if X_CS[c, S_OWN] > 0:
            X_CS[c, S_OWN] = (np.float32(4) + np.log(X_CS[c, S_OWN])) * scale
            X_CS[c, S_OFTEN] = np.log(one + X_CS[c, S_OFTEN])


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

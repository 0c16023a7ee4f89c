"""The streaming memories: what counts alone know about an item, as features, and the context that gates them.

Axes: B = queries, C = candidate slots of a query, M = item rows, D = dense features, S = sparse features,
G = gate context, U = user rows.

Dense features are defined for every item and lie as columns beside the item embeddings (one matrix product
scores them all); sparse features are zero but for a query's candidates. Formulae: natural logarithms, h_k the
k-th newest item of the history, p_m the smoothed popularity share of item m at half-life 1,000.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.state.popularity import CELL, CELLS, DAY, P300, P1000, Popularity
from pipeline.state.successors import BEFORE, Successors
from pipeline.state.tables import LIVE

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# dense: ln p_m; ln(popularity at half-life 300 + SMALL), as such and in the moment's cell; the same by one
# day of event time
D_SHARE, D_RECENT, D_DAY, D_CELL = 0, 1, 2, 3
DENSE = 4  # features; the cell's feature takes CELLS columns, of which a query uses its own
COLUMNS = D_CELL + CELLS
# sparse, see `_gather`
S_BACKOFF, S_CONTEXT, S_COSINE, S_NEAR, S_OWN, S_OFTEN = 0, 1, 2, 3, 4, 5
SPARSE = 6
FEATURES = DENSE + SPARSE
# memories whose success with each user is followed: the four sparse ones, recent popularity, one-day
# popularity
KINDS = 6
GATE = 8 + KINDS

SMALL = 0.02  # pseudo-count of popularity
BACK_OFF = 20.0  # pseudo-count of successors
SCALE = 1.0 / 3.0  # brings the logarithms to about -2 .. 2
PARENTS = 5  # newest items whose successors become candidates
POPULAR = 40  # unexcluded items taken from each popularity list
LISTED = 256  # length of a popularity list
LISTS_SHOWN = (
    P1000,
    DAY,
    CELL,
)  # the lists that the memories draw from; CELL stands for the moment's own cell


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items a query's memories speak of: `rows` int32 [B, C] (-1 past `count`), `features` float32 [B, C,
    S].
    """

    rows: IntArray
    count: IntArray
    features: FloatArray


def smoothed_total(popularity: Popularity, known: int) -> float:
    """Return the sum that popularity shares at half-life 1,000 are taken of: counts and pseudo-counts."""
    return float(popularity.total.data[P1000] / popularity.gain.data[P1000]) + SMALL * known


def dense_columns(popularity: Popularity, known: int, out: FloatArray) -> None:
    """Write the dense features of all item rows, `known` of which hold an item, to `out` [M, COLUMNS]."""
    _dense(popularity.stored.data, popularity.gain.data, smoothed_total(popularity, max(known, 1)), out)


@njit(cache=True, nogil=True)
def _dense(stored, gain, total, out):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    g1000, g300, day = (
        one / np.float32(gain[P1000]),
        one / np.float32(gain[P300]),
        one / np.float32(gain[DAY]),
    )
    norm, scale, small = np.float32(np.log(total)), np.float32(SCALE), np.float32(SMALL)
    for m in range(stored.shape[0]):
        out[m, D_SHARE] = (np.log(stored[m, P1000] * g1000 + small) - norm + np.float32(8)) * scale
        out[m, D_RECENT] = np.log(stored[m, P300] * g300 + small) * scale
        out[m, D_DAY] = np.log(stored[m, DAY] * day + small) * scale
        for c in range(CELLS):
            out[m, D_CELL + c] = np.log(stored[m, CELL + c] / np.float32(gain[CELL + c]) + small) * scale


class Gatherer:
    """Finds candidates and their features for a batch of queries; holds scratch space only, no state."""

    def __init__(self, least: int) -> None:
        self.least = max(least, POPULAR)
        self.width = 320 + self.least
        self._tag = 0
        self._stamp = np.zeros(0, np.int64)
        self._barred = np.zeros(0, np.int64)
        self._place = np.zeros(0, np.int32)

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
        rows = np.full((items_BL.shape[0], self.width), -1, np.int32)
        count = np.zeros(items_BL.shape[0], np.int32)
        features = np.zeros((items_BL.shape[0], self.width, SPARSE), np.float32)
        size = status_M.shape[0]
        if self._stamp.shape[0] < size:
            self._stamp, self._barred = np.zeros(size, np.int64), np.zeros(size, np.int64)
            self._place, self._tag = np.zeros(size, np.int32), 0
        _gather(
            items_BL, length_B, cell_B, barred, barred_border_B, repeats, successors.partner.data,
            successors.forward.data, successors.backward.data, successors.count.data,
            successors.followed.data, successors.context.data, successors.contexts.data,
            popularity.stored.data, popularity.gain.data, smoothed_total(popularity, max(known, 1)), lists,
            np.array(wanted, np.int64), self.least, status_M, self._tag, self._stamp, self._barred,
            self._place, rows, count, features,
        )  # fmt: skip
        self._tag += items_BL.shape[0] + 1
        return Candidates(rows, count, features)


@njit(cache=True, nogil=True)
def _gather(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, barred, border, repeats, partner, forward, backward, count_M, followed,
    context, contexts, stored, gain, share, lists, wanted, least, status_M, tag, stamp, barred_M, place,
    rows, count_B, X,
):  # fmt: skip
    width = rows.shape[1]
    room = width - wanted.shape[0] * POPULAR - least
    slots = partner.shape[1]
    one = np.float32(1)
    g1000 = one / np.float32(gain[P1000])
    scale, thousand, back_off = np.float32(SCALE), np.float32(1000), np.float32(BACK_OFF)
    for b in range(items_BL.shape[0]):
        tag += 1
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                barred_M[barred[e]] = tag
        n, length = 0, length_B[b]
        # successors of the newest items: S_BACKOFF sums .6^k forward, S_COSINE .8^k (forward + backward) /
        # sqrt(count),
        # S_NEAR .8^k (forward + backward)
        fade6, fade8 = one, one
        for k in range(min(length, PARENTS)):
            h = items_BL[b, k]
            norm = fade8 / np.sqrt(one + count_M[h])
            for s in range(slots):
                m = partner[h, s]
                if m < 0 or status_M[m] != LIVE or barred_M[m] == tag:
                    continue
                if stamp[m] != tag:
                    if n == room:
                        continue
                    stamp[m], place[m], rows[b, n] = tag, n, m
                    n += 1
                c = place[m]
                both = forward[h, s] + backward[h, s]
                X[b, c, S_BACKOFF] += fade6 * forward[h, s]
                X[b, c, S_COSINE] += norm * both
                X[b, c, S_NEAR] += fade8 * both
            fade6 *= np.float32(0.6)
            fade8 *= np.float32(0.8)
        # what followed the newest item before, weighted by how far its surroundings match this history
        weights = np.float32(0)
        if length > 0:
            h = items_BL[b, 0]
            for r in range(min(contexts[h], context.shape[1])):
                m = context[h, r, 0]
                match = one
                for q in range(1, 1 + BEFORE):
                    p = context[h, r, q]
                    if p < 0:
                        continue
                    if q < length and items_BL[b, q] == p:
                        match += one
                    else:
                        for k in range(1, min(length, 6)):
                            if items_BL[b, k] == p:
                                match += np.float32(0.5)
                                break
                weights += match * match
                if m < 0 or status_M[m] != LIVE or barred_M[m] == tag:
                    continue
                if stamp[m] != tag:
                    if n == room:
                        continue
                    stamp[m], place[m], rows[b, n] = tag, n, m
                    n += 1
                X[b, place[m], S_CONTEXT] += match * match
        # own items, where they may come again: S_OWN by recency of the newest occurrence, S_OFTEN by number
        if repeats:
            for k in range(length):
                m = items_BL[b, k]
                if status_M[m] != LIVE or barred_M[m] == tag:
                    continue
                if stamp[m] != tag:
                    if n == room:
                        continue
                    stamp[m], place[m], rows[b, n] = tag, n, m
                    n += 1
                c = place[m]
                if X[b, c, S_OWN] == 0:
                    X[b, c, S_OWN] = one / (one + np.float32(k))
                X[b, c, S_OFTEN] += one
        for c in range(n):
            m = rows[b, c]
            mine = np.float32((stored[m, P1000] * g1000 + np.float32(SMALL)) / share) * back_off
            X[b, c, S_BACKOFF] = np.log(one + X[b, c, S_BACKOFF] / mine) * scale
            X[b, c, S_NEAR] = np.log(one + X[b, c, S_NEAR] / (mine + mine)) * scale
            X[b, c, S_COSINE] = np.log(one + thousand * X[b, c, S_COSINE]) * scale
            if weights > 0:
                X[b, c, S_CONTEXT] = np.log(one + thousand * X[b, c, S_CONTEXT] / weights) * scale
            if X[b, c, S_OWN] > 0:
                X[b, c, S_OWN] = (np.float32(4) + np.log(X[b, c, S_OWN])) * scale
                X[b, c, S_OFTEN] = np.log(one + X[b, c, S_OFTEN])
        # the most popular items that may be shown
        for choice in range(wanted.shape[0]):
            which = wanted[choice] + cell_B[b] if wanted[choice] == CELL else wanted[choice]
            taken = 0
            for e in range(lists.shape[1]):
                m = lists[which, e]
                if m < 0 or taken == POPULAR:
                    break
                if status_M[m] != LIVE or barred_M[m] == tag:
                    continue
                taken += 1
                if stamp[m] != tag:
                    stamp[m], place[m], rows[b, n] = tag, n, m
                    n += 1
        m = 0
        while n < least and m < status_M.shape[0]:
            if status_M[m] == LIVE and barred_M[m] != tag and stamp[m] != tag:
                stamp[m], rows[b, n] = tag, m
                n += 1
            m += 1
        count_B[b] = n


def contexts(
    user_B: IntArray,
    items_BL: IntArray,
    times_BL: npt.NDArray[np.int64],
    length_B: IntArray,
    now_ms_B: npt.NDArray[np.int64],
    cell_B: npt.NDArray[np.int8],
    pushed_U: npt.NDArray[np.int64],
    repeats_U: FloatArray,
    success_BK: FloatArray,
    successors: Successors,
) -> FloatArray:
    """Return the gate's context [B, GATE] of each moment, every entry about -1 .. 2.

    Log history length, log count of the newest item, log time since it, log support of its successor row,
    steps in this session, new session, no history, rate of repeats, and how well each kind of memory has
    served the user so far.
    """
    out = np.zeros((user_B.shape[0], GATE), np.float32)
    has = length_B > 0
    newest = np.where(has, items_BL[:, 0], 0)
    gap_s = np.where(has, np.maximum(now_ms_B - times_BL[:, 0], 0) / 1000.0, 0)
    pushed = pushed_U[user_B]
    out[:, 0] = np.log1p(length_B) / 2 - 0.5
    out[:, 1] = np.where(has, np.log1p(successors.count.data[newest]) / 4 - 0.5, 0)
    out[:, 2] = np.where(has, np.log1p(gap_s) / 8, 1.6)
    out[:, 3] = np.where(has, np.log1p(successors.followed.data[newest]) / 4 - 0.5, 0)
    out[:, 4] = np.where(cell_B >= 2, (cell_B - 1) / 4.0, 0)
    out[:, 5] = cell_B == 1
    out[:, 6] = ~has
    out[:, 7] = repeats_U[user_B] / np.maximum(pushed, 1)
    out[:, 8:] = success_BK
    return out


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

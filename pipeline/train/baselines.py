"""Baselines behind the protocol `Model`: popularity of all time, recent popularity, item-kNN. They read the
counts that the memories keep, so a live line of each costs next to nothing; they learn nothing themselves.

Axes: B = queries, C = candidate slots, M = item rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

from pipeline.state.popularity import ALL, DAY, P300, P1000, Popularity
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.successors import REACH, Successors
from pipeline.state.tables import LIVE, IdTable
from pipeline.train.model import FloatArray, IntArray, Learned, Pool, Targets
from pipeline.train.tested import Tested

KNN_FADE = 0.4  # measured on recorded streams from .2 to .8: none is better on all, .8 is worst on playlists
HALF_LIFE_COLUMNS = {"all": ALL, "300": P300, "1000": P1000, "24h": DAY}


class Counter:
    """What all baselines share: no parameters, no loss, no update."""

    name: str
    lists: tuple[int, ...] = (P1000,)

    def columns(self) -> Mapping[str, Column]:
        return {}

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Nothing to prepare for new items."""

    def learned(self, tested: Tested) -> Learned:
        """Return a lesson without a step."""
        return Learned(tested, float("nan"), 0.0, "no_parameters")


class PopularityModel(Counter):
    """Ranks by decayed popularity: the same list for everybody, less what each has consumed.

    `half_life`: "all" (none), "300" or "1000" learned events, or "24h" of event time.
    """

    def __init__(self, popularity: Popularity, items: IdTable, half_life: str, name: str) -> None:
        self.popularity, self.items, self.name = popularity, items, name
        self.settings = {"half_life": half_life}
        self.column = HALF_LIFE_COLUMNS[half_life]
        self.lists = (self.column,)

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the decayed counts [B, C]."""
        return self.popularity.values(self.column)[np.maximum(pool.candidates.rows, 0)]

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> Learned:
        """Rank the targets; see `Model`."""
        stored = self.popularity.stored.data[:, self.column]
        live = self.items.status.data == LIVE
        ranks = np.zeros((3, targets.row_B.shape[0]), np.int64)
        _popularity_ranks(
            stored,
            np.sort(stored[live]),
            live,
            targets.row_B,
            queries.barred,
            queries.border_B,
            ranks[0],
            ranks[1],
            ranks[2],
        )
        return self.learned(Tested(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B))

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Popularity is no history item's doing: all of it lies in the last place."""
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, -1] = self.popularity.values(self.column)[np.maximum(rows_BK, 0)]
        return out


class ItemKnnModel(Counter):
    """Item-kNN on decayed co-occurrence: score(m) = sum over the newest REACH items h_k of KNN_FADE^k times
    how often m came after h_k (directed), or after or before it (undirected).
    """

    name = "item_knn"

    def __init__(
        self, successors: Successors, items: IdTable, directed: bool = True, name: str = "item_knn"
    ) -> None:
        self.successors, self.items, self.name = successors, items, name
        self.directed = directed
        self.settings = {"directed": directed}
        self._scratch = np.zeros(0, np.float32)

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the summed weights [B, C]."""
        out = np.zeros(pool.candidates.rows.shape, np.float32)
        s = self.successors
        _knn_scores(
            queries.items_BL, queries.length_B, s.partner.data, s.forward.data, s.backward.data,
            self.directed, self._room(), pool.candidates.rows, pool.candidates.count, out,
        )  # fmt: skip
        return out

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> Learned:
        """Rank the targets; see `Model`."""
        ranks = np.zeros((3, targets.row_B.shape[0]), np.int64)
        s = self.successors
        status = self.items.status.data
        _knn_ranks(
            queries.items_BL, queries.length_B, s.partner.data, s.forward.data, s.backward.data,
            self.directed, self._room(), status, np.count_nonzero(status == LIVE), targets.row_B,
            queries.barred, queries.border_B, ranks[0], ranks[1], ranks[2],
        )  # fmt: skip
        return self.learned(Tested(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B))

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Return each history item's summand [B, K, L + 1]."""
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        s = self.successors
        _knn_parts(
            queries.items_BL,
            queries.length_B,
            s.partner.data,
            s.forward.data,
            s.backward.data,
            self.directed,
            rows_BK,
            out,
        )
        return out

    def _room(self) -> FloatArray:
        if self._scratch.shape[0] < self.items.capacity:
            self._scratch = np.zeros(self.items.capacity, np.float32)
        return self._scratch


@njit(cache=True, nogil=True)
def _popularity_ranks(  # type: ignore[no-untyped-def]
    stored, ordered, live, target_B, barred, border, greater_B, equal_B, candidates_B
):
    n = ordered.shape[0]
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        own = stored[t]
        greater = n - np.searchsorted(ordered, own, side="right")
        equal = n - greater - np.searchsorted(ordered, own, side="left") - 1
        seen = n
        for e in range(border[b], border[b + 1]):
            m = barred[e]
            if m >= 0 and live[m]:
                greater -= stored[m] > own
                equal -= stored[m] == own
                seen -= 1
        greater_B[b], equal_B[b], candidates_B[b] = greater, equal, seen


@njit(cache=True, nogil=True)
def _knn_fill(b, items_BL, length_B, partner, forward, backward, directed, sums, sign):  # type: ignore[no-untyped-def]
    """Add (sign 1) or clear (sign 0) the query's sums in the scratch array [M]."""
    fade = np.float32(1)
    for k in range(min(length_B[b], REACH)):
        h = items_BL[b, k]
        for s in range(partner.shape[1]):
            m = partner[h, s]
            if m >= 0:
                if sign == 0:
                    sums[m] = 0
                else:
                    sums[m] += fade * (forward[h, s] if directed else forward[h, s] + backward[h, s])
        fade *= np.float32(KNN_FADE)


@njit(cache=True, nogil=True)
def _knn_scores(  # type: ignore[no-untyped-def]
    items_BL, length_B, partner, forward, backward, directed, sums, rows, count_B, out
):
    for b in range(items_BL.shape[0]):
        _knn_fill(b, items_BL, length_B, partner, forward, backward, directed, sums, 1)
        for c in range(count_B[b]):
            out[b, c] = sums[rows[b, c]]
        _knn_fill(b, items_BL, length_B, partner, forward, backward, directed, sums, 0)


@njit(cache=True, nogil=True)
def _knn_ranks(  # type: ignore[no-untyped-def]
    items_BL, length_B, partner, forward, backward, directed, sums, status, live, target_B, barred, border,
    greater_B, equal_B, candidates_B,
):  # fmt: skip
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        _knn_fill(b, items_BL, length_B, partner, forward, backward, directed, sums, 1)
        seen = live
        for e in range(border[b], border[b + 1]):
            m = barred[e]
            if m >= 0 and status[m] == LIVE and sums[m] >= 0:
                sums[m] = -1  # out of the comparison, and counted once
                seen -= 1
        own = sums[t]
        greater, equal, scored = 0, 0, 0
        for k in range(min(length_B[b], REACH)):
            h = items_BL[b, k]
            for s in range(partner.shape[1]):
                m = partner[h, s]
                if m >= 0 and status[m] == LIVE and sums[m] > 0:
                    greater += sums[m] > own
                    equal += sums[m] == own
                    scored += 1
                    sums[m] = -sums[m] - 2  # each item once; what is barred stays at -1
        if own == 0:
            equal = seen - scored
        greater_B[b], equal_B[b], candidates_B[b] = greater, equal - 1, seen
        _knn_fill(b, items_BL, length_B, partner, forward, backward, directed, sums, 0)
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                sums[barred[e]] = 0


@njit(cache=True, nogil=True)
def _knn_parts(items_BL, length_B, partner, forward, backward, directed, rows_BK, out):  # type: ignore[no-untyped-def]
    for b in range(rows_BK.shape[0]):
        fade = np.float32(1)
        for k in range(min(length_B[b], REACH)):
            h = items_BL[b, k]
            for s in range(partner.shape[1]):
                for place in range(rows_BK.shape[1]):
                    if partner[h, s] >= 0 and partner[h, s] == rows_BK[b, place]:
                        out[b, place, k] += fade * (
                            forward[h, s] if directed else forward[h, s] + backward[h, s]
                        )
            fade *= np.float32(KNN_FADE)

"""Baselines that rank by what came after the user's last items, over popularity: Markov and item-kNN.

    score_b(m) = sum over the newest items h_k of fade^k n(h_k, m) + weight * share(m)

n are the counts of a table of pairs, share is popularity's: what every item is worth that the neighbours know
nothing of. A query's entries name the items that its neighbours give scores to; every other item scores its
base. Axes as in pipeline/models/model.py; E = entries, M = item rows, P = places of a window.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.features.lessons import Lessons
from pipeline.features.pair_table import PairTable
from pipeline.features.popularity import Popularity
from pipeline.features.transitions import REACH, Transitions
from pipeline.kernels import inlined, kernel
from pipeline.models.baselines.baseline import Baseline, counted
from pipeline.models.baselines.popularity import HALF_LIFE_COLUMNS, popular_items
from pipeline.models.model import (
    MISS,
    FloatArray,
    IntArray,
    RankResult,
    Scores,
    Targets,
    TrainingCandidates,
    TrainResult,
)
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE, IdTable

KNN_FADE = 0.4  # measured on recorded streams from .2 to .8: none is better on all, .8 is worst on playlists


class Entries(NamedTuple):
    """Entries of every query: those of b lie from `indptr[b]` to `indptr[b + 1]`.

    `place_E` is the place in the window of the item that the value comes from. An item may be named more than
    once.
    """

    row_E: IntArray
    place_E: IntArray
    value_E: FloatArray
    indptr: npt.NDArray[np.int64]


class BackOff(NamedTuple):
    """How much popularity is worth beside the counts: `weight` times its share, at a half-life that the count
    features keep.
    """

    half_life: str = "1000"
    weight: float = 1.0

    @property
    def column(self) -> int:
        """The popularity column of that half-life."""
        return HALF_LIFE_COLUMNS[self.half_life]


FILL = BackOff()  # popularity decides where neighbours know nothing, and hardly elsewhere


class Base(NamedTuple):
    """Every item's base score: `stored_M[m] * scale`. `ordered` [listed] are those of the most popular items,
    ascending; from `floor` on it is complete.
    """

    stored_M: FloatArray
    scale: np.float32
    ordered: FloatArray
    floor: np.float32
    live: int


class Scratch(NamedTuple):
    """Sums of the query at hand: `sum_M[m]` is valid where `stamp_M[m]` is its tag."""

    sum_M: FloatArray
    stamp_M: npt.NDArray[np.int64]


class Neighbours(Baseline):
    """What these baselines share: entries of the history's items over popularity."""

    def __init__(self, popularity: Popularity, items: IdTable, back_off: BackOff, name: str) -> None:
        self._popularity, self._items, self._back_off, self.name = popularity, items, back_off, name
        self.lists = (back_off.column,)
        self._scratch = Scratch(np.zeros(0, np.float32), np.zeros(0, np.int64))
        self._tag = 1

    def entries(self, queries: Queries) -> Entries:
        """Return the entries of the history's items; pure."""
        raise NotImplementedError

    def count(self, queries: Queries, targets: Targets) -> None:
        """Count the batch's positive events. Nothing to do where the count features count them."""

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        """Return the scores [N]; pure."""
        out, entries = np.zeros(candidates.rows.shape[0], np.float32), self.entries(queries)
        tag = self._tags(queries)
        _scores(entries, self._base(), candidates.rows, candidates.indptr, self._scratch, tag, out)
        return Scores(out, entries)

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets, then count the batch; see `Model`."""
        batch = targets.item_B.shape[0]
        greater_B, equal_B = np.full(batch, MISS, np.int64), np.zeros(batch, np.int64)
        below_B = np.full(batch, np.nan, np.float32)
        tag = self._tags(queries)
        _ranks(
            self.entries(queries), self._base(), self._items.status.data, targets.item_B,
            (queries.excluded, queries.excluded_indptr), (training.negatives_S, training.other_BS),
            self._scratch, tag, (greater_B, equal_B, below_B),
        )  # fmt: skip
        self.count(queries, targets)
        return counted(
            RankResult(greater_B, equal_B, training.shown_B, targets.tested_B, targets.known_B, below_B)
        )

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray:
        """Return each history item's summand, popularity's in the last place: [B, K, L + 1]."""
        rows_BK = candidates.at(places_BK)
        base = self._base()
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, -1] = np.where(rows_BK >= 0, base.stored_M[np.maximum(rows_BK, 0)] * base.scale, 0)
        _parts(scores.detail, rows_BK, out)
        return out

    def _base(self) -> Base:
        order = popular_items(self._popularity, self._back_off.column)
        total = float(self._popularity.total.data[self._back_off.column])
        scale = np.float32(self._back_off.weight / total if total > 0 else 0.0)
        return Base(
            order.stored_M, scale, order.ordered_E * scale, np.float32(order.floor * scale), self._items.live
        )

    def _tags(self, queries: Queries) -> int:
        """Return the first of as many unused tags as there are queries."""
        rows = self._items.capacity
        if self._scratch.sum_M.shape[0] < rows:
            self._scratch, self._tag = Scratch(np.zeros(rows, np.float32), np.zeros(rows, np.int64)), 1
        tag, self._tag = self._tag, self._tag + queries.user_B.shape[0]
        return tag


class ItemKnnModel(Neighbours):
    """Item-kNN on the transitions of the count features, so that it costs next to nothing beside the served
    model: how often m came after h_k (directed), or after or before it (undirected).
    """

    def __init__(
        self,
        transitions: Transitions,
        popularity: Popularity,
        items: IdTable,
        directed: bool = True,
        back_off: BackOff = FILL,
        name: str = "item_knn",
    ) -> None:
        super().__init__(popularity, items, back_off, name)
        self._transitions, self._directed = transitions, directed

    def entries(self, queries: Queries) -> Entries:
        """Return the entries of the history's items; pure."""
        t = self._transitions
        weights = (t.forward.data, t.forward.data if self._directed else t.backward.data)
        return pair_entries(queries, t.partner.data, weights, not self._directed, 1.0, REACH)


class PairsModel(Neighbours):
    """Markov (pairs of reach 1) and item-kNN (of more) on decaying counts of their own."""

    def __init__(
        self,
        pairs: PairTable,
        popularity: Popularity,
        items: IdTable,
        back_off: BackOff,
        name: str,
        seed: int,
    ) -> None:
        super().__init__(popularity, items, back_off, name)
        self.pairs, self._seed = pairs, seed

    def entries(self, queries: Queries) -> Entries:
        """Return the entries of the history's items; pure."""
        p = self.pairs
        return pair_entries(queries, p.partner.data, (p.stored.data, p.stored.data), False, p.scale, p.reach)

    def count(self, queries: Queries, targets: Targets) -> None:
        """Count the batch's positive events after the items before them."""
        seed = int(np.random.default_rng((self._seed, targets.seq, 2)).integers(2**63))
        self.pairs.update(lessons_of(queries, targets, queries.session_B), self._items.status.data, seed)


def lessons_of(queries: Queries, targets: Targets, session_B: npt.NDArray[np.uint64]) -> Lessons:
    """Return the batch's positive events as lessons."""
    return Lessons(
        targets.counted_B, targets.weight_B, targets.type_B, queries.now_ms_B, session_B,
        queries.position_B, queries.items_BL, queries.length_B, targets.seq,
    )  # fmt: skip


def pair_entries(
    queries: Queries,
    partner_MS: IntArray,
    weights: tuple[FloatArray, FloatArray],
    both: bool,
    scale: float,
    reach: int,
) -> Entries:
    """Return KNN_FADE^k * scale * weight for each partner of the `reach` newest items h_k.

    `weights` [M, S] are of partners that came after an item, and with `both` of those before it, added to
    them.
    """
    most = int(np.minimum(queries.length_B, reach).sum()) * partner_MS.shape[1]
    entries = Entries(
        np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.float32),
        np.zeros(queries.items_BL.shape[0] + 1, np.int64),
    )  # fmt: skip
    _pair_entries(
        queries.items_BL, queries.length_B, partner_MS, (*weights, both), np.float32(scale), reach,
        np.float32(KNN_FADE), entries,
    )  # fmt: skip
    return entries


@kernel()
def _pair_entries(items_BL, length_B, partner, weights, scale, reach, fade, entries):  # type: ignore[no-untyped-def]
    after, before, both = weights
    n = 0
    for b in range(items_BL.shape[0]):
        w = scale
        for k in range(min(length_B[b], reach)):
            h = items_BL[b, k]
            for s in range(partner.shape[1]):
                m = partner[h, s]
                if m >= 0:
                    entries.row_E[n], entries.place_E[n], entries.value_E[n] = m, k, w * after[h, s]
                    if both:
                        entries.value_E[n] += w * before[h, s]
                    n += 1
            w *= fade
        entries.indptr[b + 1] = n


@kernel()
def _fill(b, entries, base, scratch, mark):  # type: ignore[no-untyped-def]
    """Write the scores of the items that query b's entries name, and mark them."""
    for e in range(entries.indptr[b], entries.indptr[b + 1]):
        m = entries.row_E[e]
        if scratch.stamp_M[m] != mark:
            scratch.stamp_M[m], scratch.sum_M[m] = mark, base.stored_M[m] * base.scale
        scratch.sum_M[m] += entries.value_E[e]


@inlined
def _score(m, base, scratch, mark):  # type: ignore[no-untyped-def]
    return scratch.sum_M[m] if scratch.stamp_M[m] == mark else base.stored_M[m] * base.scale


@kernel()
def _ranks(entries, base, status, target_B, excluded, negatives, scratch, tag, out):  # type: ignore[no-untyped-def]
    greater_B, equal_B, below_B = out
    rows_X, indptr = excluded
    negatives_S, used_BS = negatives
    n = base.ordered.shape[0]
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        mark = tag + b
        _fill(b, entries, base, scratch, mark)
        own = _score(t, base, scratch, mark)
        drawn, below = 0, np.float32(0)
        for s in range(negatives_S.shape[0]):
            if used_BS[b, s]:
                drawn += 1
                other = _score(negatives_S[s], base, scratch, mark)
                below += np.float32(other < own) + np.float32(0.5) * np.float32(other == own)
        if drawn > 0:
            below_B[b] = below / np.float32(drawn)
        upto = np.searchsorted(base.ordered, own, side="right")
        greater, equal = n - upto, upto - np.searchsorted(base.ordered, own, side="left")
        seen = base.live
        for e in range(indptr[b], indptr[b + 1]):
            m = rows_X[e]
            if m >= 0 and status[m] == LIVE:
                value = base.stored_M[m] * base.scale
                seen -= 1
                if value > 0 and value >= base.floor:
                    greater -= value > own
                    equal -= value == own
                scratch.stamp_M[m] = 0  # whatever the entries say of it
        at_target = False  # whether the target is counted among the equals
        value = base.stored_M[t] * base.scale
        if value > 0 and value >= base.floor and value == own:
            at_target = True
        for e in range(entries.indptr[b], entries.indptr[b + 1]):
            m = entries.row_E[e]
            if scratch.stamp_M[m] != mark or status[m] != LIVE:
                continue
            scratch.stamp_M[m] = 0  # each item once
            value = base.stored_M[m] * base.scale
            listed = value > 0 and value >= base.floor
            greater += np.int64(scratch.sum_M[m] > own) - np.int64(listed and value > own)
            equal += np.int64(scratch.sum_M[m] == own) - np.int64(listed and value == own)
            if m == t:
                at_target = True
        if own < base.floor:  # behind the list: only the estimate tells
            continue
        if own <= 0:  # level with all items that nothing is known of
            equal, at_target = seen - greater, True
        greater_B[b], equal_B[b] = greater, max(equal - np.int64(at_target), 0)


@kernel()
def _scores(entries, base, rows_N, indptr, scratch, tag, out_N):  # type: ignore[no-untyped-def]
    for b in range(indptr.shape[0] - 1):
        mark = tag + b
        _fill(b, entries, base, scratch, mark)
        for n in range(indptr[b], indptr[b + 1]):
            out_N[n] = _score(rows_N[n], base, scratch, mark)


@kernel()
def _parts(entries, rows_BK, out):  # type: ignore[no-untyped-def]
    for b in range(rows_BK.shape[0]):
        for e in range(entries.indptr[b], entries.indptr[b + 1]):
            for k in range(rows_BK.shape[1]):
                if rows_BK[b, k] == entries.row_E[e]:
                    out[b, k, entries.place_E[e]] += entries.value_E[e]

"""Baselines that rank by counts: what the items of the history add to a score that every item has.

    score_b(m) = sum over b's entries of m + stored_M[m] * scale

Axes as in pipeline/models/model.py; E = entries, M = item rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.kernels import inlined, kernel
from pipeline.models.baselines.baseline import Baseline, exact_ranks
from pipeline.models.model import (
    MISS,
    FloatArray,
    IntArray,
    ModelContext,
    Scores,
    Targets,
    TrainingCandidates,
    TrainResult,
)
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE


class Entries(NamedTuple):
    """Values added to the scores of items, named once or more: query b's are `indptr[b]` to `indptr[b + 1]`.

    `place_E` is the place in the window of the item that the value comes from.
    """

    row_E: IntArray
    place_E: IntArray
    value_E: FloatArray
    indptr: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, queries: Queries, room: int = 0) -> "Entries":
        """Return no entries, and room for so many."""
        return cls(
            np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32),
            np.zeros(queries.items_BL.shape[0] + 1, np.int64),
        )  # fmt: skip


class Base(NamedTuple):
    """Every item's base score: `stored_M[m] * scale`. `ordered` are the largest: all from `floor` on."""

    stored_M: FloatArray
    scale: np.float32
    ordered: FloatArray
    floor: np.float32


def base_of(stored_M: FloatArray, scale: float, listed: IntArray, complete: bool) -> Base:
    """Return base scores; `listed` are the most popular items, all with a count if `complete`."""
    factor = np.float32(scale)
    ordered = np.ascontiguousarray(stored_M[listed][::-1]) * factor
    return Base(stored_M, factor, ordered, np.float32(0) if complete else ordered[0])


class Scratch(NamedTuple):
    """Sums of the query at hand: `sum_M[m]` is valid where `stamp_M[m]` is its tag."""

    sum_M: FloatArray
    stamp_M: npt.NDArray[np.int64]


class CountModel(Baseline):
    """Scores and exact ranks by a base and entries; a subclass says what they are."""

    def __init__(self, context: ModelContext, name: str) -> None:
        self.name, self._items, self._popularity = name, context.items, context.bank.popularity
        self._scratch = Scratch(np.zeros(0, np.float32), np.zeros(0, np.int64))
        self._tag = 1

    def base(self) -> Base:
        """Return every item's base score."""
        raise NotImplementedError

    def entries(self, queries: Queries) -> Entries:
        """Return what the history's items add; pure."""
        return Entries.empty(queries)

    def count(self, queries: Queries, targets: Targets) -> None:
        """Count the batch's positive events. Nothing to do where the count features count them."""

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        out, entries = np.zeros(candidates.rows.shape[0], np.float32), self.entries(queries)
        tag = self._tags(queries)
        _scores(entries, self.base(), candidates.rows, candidates.indptr, self._scratch, tag, out)
        return Scores(out, entries)

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        batch = targets.item_B.shape[0]
        greater_B, equal_B = np.full(batch, MISS, np.int64), np.zeros(batch, np.int64)
        below_B = np.full(batch, np.nan, np.float32)
        tag = self._tags(queries)
        _ranks(
            self.entries(queries), self.base(), (self._items.status.data, self._items.live), targets.item_B,
            (queries.excluded, queries.excluded_indptr), (training.negatives_S, training.other_BS),
            self._scratch, tag, (greater_B, equal_B, below_B),
        )  # fmt: skip
        self.count(queries, targets)
        ranks = exact_ranks(greater_B, equal_B, below_B, training, targets)
        return TrainResult(ranks, float("nan"), 0.0, "no_parameters")

    def _tags(self, queries: Queries) -> int:
        """Return the first of as many unused tags as there are queries."""
        rows = self._items.capacity
        if self._scratch.sum_M.shape[0] < rows:
            self._scratch, self._tag = Scratch(np.zeros(rows, np.float32), np.zeros(rows, np.int64)), 1
        tag, self._tag = self._tag, self._tag + queries.user_B.shape[0]
        return tag


@inlined
def _base_score(m, base):  # type: ignore[no-untyped-def]
    return base.stored_M[m] * base.scale


@inlined
def _is_listed(value, base):  # type: ignore[no-untyped-def]
    return value > 0 and value >= base.floor


@inlined
def _score(m, base, scratch, mark):  # type: ignore[no-untyped-def]
    return scratch.sum_M[m] if scratch.stamp_M[m] == mark else _base_score(m, base)


@kernel()
def _fill(b, entries, base, scratch, mark):  # type: ignore[no-untyped-def]
    """Write the scores of the items that query b's entries name, and mark them."""
    for e in range(entries.indptr[b], entries.indptr[b + 1]):
        m = entries.row_E[e]
        if scratch.stamp_M[m] != mark:
            scratch.stamp_M[m], scratch.sum_M[m] = mark, _base_score(m, base)
        scratch.sum_M[m] += entries.value_E[e]


@kernel()
def _scores(entries, base, rows_N, indptr, scratch, tag, out_N):  # type: ignore[no-untyped-def]
    for b in range(indptr.shape[0] - 1):
        mark = tag + b
        _fill(b, entries, base, scratch, mark)
        for n in range(indptr[b], indptr[b + 1]):
            out_N[n] = _score(rows_N[n], base, scratch, mark)


@inlined
def _share_below(own, negatives_S, used_S, base, scratch, mark):  # type: ignore[no-untyped-def]
    """Return the share of the used negatives that score below the target, ties counted half; NaN: none."""
    drawn, below = 0, np.float32(0)
    for s in range(negatives_S.shape[0]):
        if used_S[s]:
            drawn += 1
            other = _score(negatives_S[s], base, scratch, mark)
            below += np.float32(other < own) + np.float32(0.5) * np.float32(other == own)
    return below / np.float32(drawn) if drawn > 0 else np.float32(np.nan)


@kernel()
def _ranks(entries, base, items, target_B, excluded, negatives, scratch, tag, out):  # type: ignore[no-untyped-def]
    """Rank each target: by its place among the base scores, corrected for excluded items and entries."""
    status_M, live = items
    greater_B, equal_B, below_B = out
    excluded_X, indptr = excluded
    negatives_S, used_BS = negatives
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        mark = tag + b
        _fill(b, entries, base, scratch, mark)
        own = _score(t, base, scratch, mark)
        below_B[b] = _share_below(own, negatives_S, used_BS[b], base, scratch, mark)
        upto = np.searchsorted(base.ordered, own, side="right")
        greater = base.ordered.shape[0] - upto
        equal = upto - np.searchsorted(base.ordered, own, side="left")
        shown = live
        for e in range(indptr[b], indptr[b + 1]):
            m = excluded_X[e]
            if m >= 0 and status_M[m] == LIVE:
                value = _base_score(m, base)
                shown -= 1
                if _is_listed(value, base):
                    greater -= value > own
                    equal -= value == own
                scratch.stamp_M[m] = 0  # whatever the entries say of it
        value = _base_score(t, base)
        at_target = _is_listed(value, base) and value == own  # whether it is counted among the equals
        for e in range(entries.indptr[b], entries.indptr[b + 1]):
            m = entries.row_E[e]
            if scratch.stamp_M[m] != mark or status_M[m] != LIVE:
                continue
            scratch.stamp_M[m] = 0  # each item once
            value = _base_score(m, base)
            listed = _is_listed(value, base)
            greater += np.int64(scratch.sum_M[m] > own) - np.int64(listed and value > own)
            equal += np.int64(scratch.sum_M[m] == own) - np.int64(listed and value == own)
            at_target = at_target or m == t
        if own < base.floor:  # behind the list: only the estimate tells
            continue
        if own <= 0:  # level with all items that nothing is known of
            equal, at_target = shown - greater, True
        greater_B[b], equal_B[b] = greater, max(equal - np.int64(at_target), 0)

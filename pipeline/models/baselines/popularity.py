"""Popularity as a model: of all time, or recent.

What ranks by the history's items is in neighbours.py and session_knn.py, factors in isgd.py and biased_mf.py.
Axes as in pipeline/models/model.py; M = item rows, E = listed items.
"""

from typing import NamedTuple

import numpy as np

from pipeline.features.block import Candidates
from pipeline.features.popularity import ALL, DAY, LISTED, P300, P1000, Popularity, most_popular
from pipeline.kernels import kernel
from pipeline.models.baselines.baseline import Baseline, counted, share_below
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
from pipeline.state.store import Column
from pipeline.state.tables import LIVE, IdTable

HALF_LIFE_COLUMNS = {"all": ALL, "300": P300, "1000": P1000, "24h": DAY}


class PopularItems(NamedTuple):
    """One order of all items: `stored` [M] are their counts up to a factor, `listed` [E] the first of them.

    Of a list that is not `complete` the items behind it are not known: what scores below its last item ranks
    behind all of it.
    """

    stored_M: FloatArray
    listed_E: IntArray
    complete: bool

    @property
    def ordered_E(self) -> FloatArray:
        """Return the counts of the listed items, ascending."""
        return np.ascontiguousarray(self.stored_M[self.listed_E][::-1])

    @property
    def floor(self) -> np.float32:
        """Return the count from which the list is complete."""
        return np.float32(0) if self.complete else self.stored_M[self.listed_E[-1]]


def popular_items(popularity: Popularity, column: int) -> PopularItems:
    """Return the order by one column of counts."""
    listed = popularity.listed.data[column]
    return PopularItems(
        popularity.stored.data[:, column], listed[listed >= 0], bool(popularity.complete.data[column])
    )


class PopularityModel(Baseline):
    """Ranks by decayed popularity: the same list for everybody, less what each has consumed.

    `half_life`: "all" (none), "300" or "1000" learned events, or "24h" of event time: what the count features
    keep, so that it costs next to nothing beside the served model.
    """

    def __init__(self, popularity: Popularity, items: IdTable, half_life: str, name: str) -> None:
        self._popularity, self._items, self.name = popularity, items, name
        self._column = HALF_LIFE_COLUMNS[half_life]
        self.lists = (self._column,)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        """Return the decayed counts [N]."""
        order = self.order()
        return Scores(np.asarray(order.stored_M[candidates.rows] / self.gain_of(), np.float32))

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets; see `Model`."""
        order = self.order()
        greater_B = np.full(targets.item_B.shape[0], MISS, np.int64)
        equal_B = np.zeros_like(greater_B)
        _ranks(
            order.stored_M, order.ordered_E, order.floor, self._items.live, self._items.status.data,
            targets.item_B, queries.excluded, queries.excluded_indptr, greater_B, equal_B,
        )  # fmt: skip
        own_B = order.stored_M[np.maximum(targets.item_B, 0)]
        below_B = share_below(own_B, order.stored_M[training.negatives_S][None, :], training.other_BS)
        return counted(
            RankResult(greater_B, equal_B, training.shown_B, targets.tested_B, targets.known_B, below_B)
        )

    def order(self) -> PopularItems:
        """Return the order that it ranks by."""
        return popular_items(self._popularity, self._column)

    def gain_of(self) -> np.float32:
        """Return what stored counts are divided by."""
        return np.float32(self._popularity.gain.data[self._column])


class FadingModel(PopularityModel):
    """Recent popularity with a half-life of its own. Columns: `counts` float32 [M], `gain` float64 [1].

    Its list is made from all items in every batch: for evaluations.
    """

    def __init__(self, popularity: Popularity, items: IdTable, half_life: float, name: str) -> None:
        super().__init__(popularity, items, "1000", name)  # its lists come from the nearest that is kept
        self.half_life = half_life
        self.counts = Column(np.zeros(items.capacity, np.float32), "item")
        self.gain = Column(np.ones(1), "none")

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets, then count the batch; see `Model`."""
        result = super().learn(queries, training, targets)
        growth = 2.0 ** (1 / self.half_life)
        _fade(targets.counted_B, targets.weight_B, growth, self.counts.data, self.gain.data)
        return result

    def order(self) -> PopularItems:
        """Return the order that it ranks by."""
        rows = np.flatnonzero((self._items.status.data == LIVE) & (self.counts.data > 0)).astype(np.int32)
        listed = most_popular(rows, self.counts.data[rows], LISTED)
        return PopularItems(self.counts.data, listed, rows.size <= LISTED)

    def gain_of(self) -> np.float32:
        """Return what stored counts are divided by."""
        return np.float32(self.gain.data[0])


@kernel()
def _ranks(stored, ordered, floor, live, status, target_B, excluded, indptr, greater_B, equal_B):  # type: ignore[no-untyped-def]
    n = ordered.shape[0]
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0 or stored[t] < floor:
            continue
        own = stored[t]
        greater = n - np.searchsorted(ordered, own, side="right")
        if own > 0:
            equal = n - greater - np.searchsorted(ordered, own, side="left") - 1
        else:  # an item without a count is level with all others without one, which are not listed
            equal = live - n - 1
        for e in range(indptr[b], indptr[b + 1]):
            m = excluded[e]
            if m >= 0 and status[m] == LIVE and stored[m] >= floor:
                greater -= stored[m] > own
                equal -= stored[m] == own
        greater_B[b], equal_B[b] = greater, max(equal, 0)


@kernel()
def _fade(item_B, weight_B, growth, counts, gain):  # type: ignore[no-untyped-def]
    """Count events in order, each weighing more than the one before, so that nothing has to be shrunk."""
    for b in range(item_B.shape[0]):
        if item_B[b] < 0 or weight_B[b] <= 0:
            continue
        counts[item_B[b]] += weight_B[b] * gain[0]
        gain[0] *= growth
        if gain[0] > 1e20:
            for m in range(counts.shape[0]):
                counts[m] /= np.float32(gain[0])
            gain[0] = 1.0

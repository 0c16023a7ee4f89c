"""The simplest baselines behind the protocol `Model`: popularity of all time, recent popularity.

What ranks by the history's items is in neighbours.py and session_knn.py, factors in isgd.py and biased_mf.py.
Axes: B = queries, C = candidate slots, M = item rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.kernels import kernel
from pipeline.models.model import FloatArray, IntArray, Pool, Targets, TrainResult
from pipeline.models.tested import RankResult
from pipeline.state.popularity import ALL, DAY, P300, P1000, Popularity
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import LIVE, IdTable

HALF_LIFE_COLUMNS = {"all": ALL, "300": P300, "1000": P1000, "24h": DAY}


class Counter:
    """What all baselines share: no parameters, no loss, no update."""

    name: str
    lists: tuple[int, ...] = (P1000,)

    def columns(self) -> Mapping[str, Column]:
        return {}

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Nothing to prepare for new items."""

    def learned(self, tested: RankResult) -> TrainResult:
        """Return a lesson without a step."""
        return TrainResult(tested, float("nan"), 0.0, "no_parameters")


class PopularityModel(Counter):
    """Ranks by decayed popularity: the same list for everybody, less what each has consumed.

    `half_life`: "all" (none), "300" or "1000" learned events, or "24h" of event time: what the memories keep,
    so that a live line costs next to nothing.
    """

    def __init__(self, popularity: Popularity, items: IdTable, half_life: str, name: str) -> None:
        self.popularity, self.items, self.name = popularity, items, name
        self.column = HALF_LIFE_COLUMNS[half_life]
        self.lists = (self.column,)

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the decayed counts [B, C]."""
        return self.values()[np.maximum(pool.candidates.rows, 0)]

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Rank the targets; see `Model`."""
        return self.learned(popularity_ranks(self.stored(), self.items, queries, targets))

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Popularity is no history item's doing: all of it lies in the last place."""
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, -1] = self.values()[np.maximum(rows_BK, 0)]
        return out

    def values(self) -> FloatArray:
        """Return every item's decayed count [M]."""
        return self.popularity.values(self.column)

    def stored(self) -> FloatArray:
        """Return what the values are up to a factor [M]: enough for an order."""
        return self.popularity.stored.data[:, self.column]


class FadingModel(PopularityModel):
    """Recent popularity with a half-life of its own. Columns: `counts` float32 [M], `gain` float64 [1]."""

    def __init__(self, popularity: Popularity, items: IdTable, half_life: float, name: str) -> None:
        super().__init__(popularity, items, "1000", name)  # its lists come from the nearest that is kept
        self.half_life = half_life
        self.counts = Column(np.zeros(items.capacity, np.float32), "item")
        self.gain = Column(np.ones(1), "none")

    def columns(self) -> Mapping[str, Column]:
        """Return the columns by name."""
        return {"counts": self.counts, "gain": self.gain}

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Rank the targets, then count the batch; see `Model`."""
        learned = super().learn(queries, pool, targets)
        growth = 2.0 ** (1 / self.half_life)
        _fade(targets.counted_B, targets.weight_B, growth, self.counts.data, self.gain.data)
        return learned

    def values(self) -> FloatArray:
        """Return every item's decayed count [M]."""
        return np.asarray(self.counts.data / np.float32(self.gain.data[0]), np.float32)

    def stored(self) -> FloatArray:
        """Return what the values are up to a factor [M]."""
        return self.counts.data


def popularity_ranks(stored_M: FloatArray, items: IdTable, queries: Queries, targets: Targets) -> RankResult:
    """Return where each target stands among all rows that may be shown, by one order for everybody."""
    live = items.status.data == LIVE
    ranks = np.zeros((3, targets.row_B.shape[0]), np.int64)
    _popularity_ranks(
        stored_M, np.sort(stored_M[live]), live, targets.row_B, queries.barred, queries.border_B, *ranks
    )
    return RankResult(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B)


@kernel()
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


@kernel()
def _fade(item_B, weight_B, growth, counts, gain):  # type: ignore[no-untyped-def]
    """Count events in order, each weighing more than the one before, so that nothing has to be shrunk."""
    for b in range(item_B.shape[0]):
        if item_B[b] < 0 or weight_B[b] <= 0:
            continue
        counts[item_B[b]] += weight_B[b] * gain[0]
        gain[0] *= growth
        if gain[0] > 1e20:
            counts /= np.float32(gain[0])
            gain[0] = 1.0

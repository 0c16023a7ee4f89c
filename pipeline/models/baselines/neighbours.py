"""Baselines that rank by what came after the user's last items, over popularity: Markov and item-kNN.

    score_b(m) = sum over the newest items h_k of fade^k n(h_k, m) + weight * share(m)

n are the counts of a table of pairs, share is popularity's: what every item is worth of which the neighbours
say nothing. Axes: B = queries, E = entries, L = places of a window, M = item rows, S = slots of a row.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.models.baselines.counts import HALF_LIFE_COLUMNS, Counter
from pipeline.models.model import FloatArray, IntArray, Pool, Targets, TrainResult
from pipeline.models.spoken import Ranker, Spoken, parts
from pipeline.state.pairs import Pairs
from pipeline.state.popularity import Popularity
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.successors import REACH, Successors
from pipeline.state.tables import IdTable

KNN_FADE = 0.4  # measured on recorded streams from .2 to .8: none is better on all, .8 is worst on playlists


class BackOff(NamedTuple):
    """How much popularity is worth beside the counts: `weight` times its share, at a half-life that the
    memories keep.
    """

    half_life: str = "1000"
    weight: float = 1.0

    @property
    def column(self) -> int:
        """The popularity column of that half-life."""
        return HALF_LIFE_COLUMNS[self.half_life]

    def base(self, popularity: Popularity) -> FloatArray:
        """Return every item's base score [M]."""
        total = float(popularity.total.data[self.column])
        scale = np.float32(self.weight / total if total > 0 else 0.0)
        return np.asarray(popularity.stored.data[:, self.column] * scale, np.float32)


FILL = BackOff()  # popularity decides where neighbours are silent, and hardly elsewhere


class Neighbours(Counter):
    """What these baselines share: entries that the history's items speak, over popularity."""

    def __init__(self, popularity: Popularity, items: IdTable, back_off: BackOff, name: str) -> None:
        self.popularity, self.items, self.back_off, self.name = popularity, items, back_off, name
        self.lists = (back_off.column,)
        self._ranker = Ranker()

    def spoken(self, queries: Queries) -> Spoken:
        """Return what the history's items say; pure."""
        raise NotImplementedError

    def count(self, queries: Queries, targets: Targets) -> None:
        """Count the batch's positive events. Nothing to do where the memories count them."""

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the scores [B, C]; pure."""
        found = pool.candidates
        base_M = self.back_off.base(self.popularity)
        return self._ranker.scores(self.spoken(queries), base_M, found.rows, found.count)

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Rank the targets, then count the batch; see `Model`."""
        base_M = self.back_off.base(self.popularity)
        tested = self._ranker.ranks(self.spoken(queries), base_M, self.items.status.data, queries, targets)
        self.count(queries, targets)
        return self.learned(tested)

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Return each history item's summand, popularity's in the last place: [B, K, L + 1]."""
        base_M = self.back_off.base(self.popularity)
        return parts(self.spoken(queries), base_M, rows_BK, queries.items_BL.shape[1])


class ItemKnnModel(Neighbours):
    """Item-kNN on the memories' own successor tables, which a live line of it costs nothing to keep: how
    often m came after h_k (directed), or after or before it (undirected).
    """

    def __init__(
        self,
        successors: Successors,
        popularity: Popularity,
        items: IdTable,
        directed: bool = True,
        back_off: BackOff = FILL,
        name: str = "item_knn",
    ) -> None:
        super().__init__(popularity, items, back_off, name)
        self.successors, self.directed = successors, directed

    def spoken(self, queries: Queries) -> Spoken:
        """Return what the history's items say; pure."""
        s = self.successors
        return say_pairs(
            queries, s.partner.data, s.forward.data, s.backward.data, not self.directed, 1.0, REACH, KNN_FADE
        )


class PairsModel(Neighbours):
    """Markov (pairs of reach 1) and item-kNN (of more) on fading counts of their own."""

    def __init__(
        self, pairs: Pairs, popularity: Popularity, items: IdTable, back_off: BackOff, name: str, seed: int
    ) -> None:
        super().__init__(popularity, items, back_off, name)
        self.pairs, self.seed = pairs, seed

    def columns(self) -> dict[str, Column]:
        """Return the columns of the table of pairs."""
        return self.pairs.columns()

    def spoken(self, queries: Queries) -> Spoken:
        """Return what the history's items say; pure."""
        p = self.pairs
        return say_pairs(
            queries, p.partner.data, p.stored.data, p.stored.data, False, p.scale, p.reach, KNN_FADE
        )

    def count(self, queries: Queries, targets: Targets) -> None:
        """Count the batch's positive events after the items before them."""
        seed = int(np.random.default_rng((self.seed, targets.seq, 2)).integers(2**63))
        self.pairs.add(
            targets.counted_B, targets.weight_B, queries.items_BL, queries.length_B, self.items.status.data,
            seed,
        )  # fmt: skip


def say_pairs(
    queries: Queries,
    partner_MS: IntArray,
    after_MS: FloatArray,
    before_MS: FloatArray,
    both: bool,
    scale: float,
    reach: int,
    fade: float,
) -> Spoken:
    """Return fade^k * scale * weight for each partner of the `reach` newest items h_k: `after`, or with
    `both` the sum of `after` and `before`.
    """
    batch = queries.items_BL.shape[0]
    most = int(np.minimum(queries.length_B, reach).sum()) * partner_MS.shape[1]
    entries = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.float32)
    border_B: npt.NDArray[np.int64] = np.zeros(batch + 1, np.int64)
    _say(
        queries.items_BL, queries.length_B, partner_MS, after_MS, before_MS, both, np.float32(scale), reach,
        np.float32(fade), *entries, border_B,
    )  # fmt: skip
    return Spoken(*entries, border_B)


@kernel()
def _say(  # type: ignore[no-untyped-def]
    items_BL, length_B, partner, after, before, both, scale, reach, fade, rows, places, values, border_B
):
    n = 0
    for b in range(items_BL.shape[0]):
        w = scale
        for k in range(min(length_B[b], reach)):
            h = items_BL[b, k]
            for s in range(partner.shape[1]):
                m = partner[h, s]
                if m >= 0:
                    rows[n], places[n] = m, k
                    values[n] = w * (after[h, s] + before[h, s] if both else after[h, s])
                    n += 1
            w *= fade
        border_B[b + 1] = n

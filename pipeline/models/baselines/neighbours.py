"""Baselines that rank by what came after the user's last items, over popularity: Markov and item-kNN.

    score_b(m) = sum over the newest items h_k of KNN_FADE^k n(h_k, m) + weight * share(m)

n are the counts of a table of pairs, share is popularity's. Axes as in counts.py.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.features.lessons import Lessons
from pipeline.features.pair_table import PairTable
from pipeline.features.transitions import REACH
from pipeline.kernels import kernel
from pipeline.models.baselines.counts import Base, CountModel, Entries
from pipeline.models.baselines.popularity import HALF_LIFE_COLUMNS, HalfLife, popularity_base
from pipeline.models.model import Config, FloatArray, IntArray, ModelContext, Scores, Targets
from pipeline.state.queries import Queries
from pipeline.state.splitmix import seed_of

KNN_FADE = 0.4  # measured on recorded streams from .2 to .8: none is better on all, .8 is worst on playlists
OWN_REACH, OWN_FADE = 10, 0.5  # of pairs that item-kNN counts on its own


class NeighboursConfig(Config, frozen=True):
    """`popularity`: the half-life of what the counts are backed off to, with `weight` times its share.

    A weight of 1 decides where neighbours know nothing, and hardly elsewhere.
    """

    popularity: Literal["all", "300", "1000", "24h"] = "1000"
    weight: float = 1.0


class MarkovConfig(NeighboursConfig, frozen=True):
    """Settings of `markov`."""

    half_life: HalfLife = "10000"


class ItemKnnConfig(NeighboursConfig, frozen=True):
    """Settings of `item_knn`. Without a half-life it ranks by the transitions of the count features."""

    directed: bool = True
    half_life: HalfLife = ""


class Neighbours(CountModel):
    """What these baselines share: entries of the history's items over popularity."""

    def __init__(self, context: ModelContext, name: str, config: NeighboursConfig) -> None:
        super().__init__(context, name)
        self._column, self._weight = HALF_LIFE_COLUMNS[config.popularity], config.weight

    def base(self) -> Base:
        """Return `weight` times each item's share of popularity."""
        total = float(self._popularity.total.data[self._column])
        return popularity_base(self._popularity, self._column, self._weight / total if total > 0 else 0.0)

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray:
        rows_BK = candidates.at(places_BK)
        base = self.base()
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, -1] = np.where(rows_BK >= 0, base.stored_M[np.maximum(rows_BK, 0)] * base.scale, 0)
        _parts(scores.detail, rows_BK, out)
        return out


class ItemKnnModel(Neighbours):
    """Item-kNN on the transitions of the count features: how often m came after h_k, or near it."""

    def __init__(self, context: ModelContext, name: str, config: ItemKnnConfig) -> None:
        super().__init__(context, name, config)
        self._transitions, self._directed = context.bank.transitions, config.directed

    def entries(self, queries: Queries) -> Entries:
        t = self._transitions
        pairs = Pairs(t.partner.data, t.forward.data, t.backward.data, not self._directed)
        return pair_entries(queries, pairs, 1.0, REACH)


class PairsModel(Neighbours):
    """Markov (pairs of reach 1) and item-kNN (of more) on decaying counts of their own."""

    def __init__(self, context: ModelContext, name: str, config: NeighboursConfig, pairs: PairTable) -> None:
        super().__init__(context, name, config)
        self.pairs, self._seed = pairs, context.seed

    def entries(self, queries: Queries) -> Entries:
        table = self.pairs
        pairs = Pairs(table.partner.data, table.stored.data, table.stored.data, False)
        return pair_entries(queries, pairs, table.scale, table.reach)

    def count(self, queries: Queries, targets: Targets) -> None:
        seed = seed_of(self._seed, targets.seq, 2)
        lessons = Lessons.of(
            queries, targets.counted_B, targets.weight_B, targets.type_B, queries.session_B, targets.seq
        )
        self.pairs.update(lessons, self._items.status.data, seed)


def markov(context: ModelContext, name: str, config: MarkovConfig) -> Neighbours:
    """Return a model of what came right after the newest item."""
    pairs = PairTable(context.items.capacity, 1, 1.0, _events(config.half_life), both=False)
    return PairsModel(context, name, config, pairs)


def item_knn(context: ModelContext, name: str, config: ItemKnnConfig) -> Neighbours:
    """Return a model of what came near the newest items."""
    if not config.half_life:
        return ItemKnnModel(context, name, config)
    half_life, both = _events(config.half_life), not config.directed
    pairs = PairTable(context.items.capacity, OWN_REACH, OWN_FADE, half_life, both)
    return PairsModel(context, name, config, pairs)


def _events(half_life: HalfLife) -> float:
    return math.inf if half_life == "all" else float(half_life)


class Pairs(NamedTuple):
    """Partners [M, S] of items: weights of those that came after, and with `both` of those before, added."""

    partner: IntArray
    after: FloatArray
    before: FloatArray
    both: bool


def pair_entries(queries: Queries, pairs: Pairs, scale: float, reach: int) -> Entries:
    """Return KNN_FADE^k * scale * weight for each partner of the `reach` newest items h_k."""
    room = int(np.minimum(queries.length_B, reach).sum()) * pairs.partner.shape[1]
    entries = Entries.empty(queries, room)
    _pair_entries(
        queries.items_BL, queries.length_B, pairs, np.float32(scale), reach, np.float32(KNN_FADE), entries
    )
    return entries


@kernel()
def _pair_entries(items_BL, length_B, pairs, scale, reach, fade, entries):  # type: ignore[no-untyped-def]
    n = 0
    for b in range(items_BL.shape[0]):
        w = scale
        for k in range(min(length_B[b], reach)):
            h = items_BL[b, k]
            for s in range(pairs.partner.shape[1]):
                m = pairs.partner[h, s]
                if m >= 0:
                    entries.row_E[n], entries.place_E[n], entries.value_E[n] = m, k, w * pairs.after[h, s]
                    if pairs.both:
                        entries.value_E[n] += w * pairs.before[h, s]
                    n += 1
            w *= fade
        entries.indptr[b + 1] = n


@kernel()
def _parts(entries, rows_BK, out):  # type: ignore[no-untyped-def]
    for b in range(rows_BK.shape[0]):
        for e in range(entries.indptr[b], entries.indptr[b + 1]):
            for k in range(rows_BK.shape[1]):
                if rows_BK[b, k] == entries.row_E[e]:
                    out[b, k, entries.place_E[e]] += entries.value_E[e]

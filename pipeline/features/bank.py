"""The bank of count features: one pass over the families returns a query's candidates with all features."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.features.block import (
    MAX_QUERIES,
    RETRIEVED,
    Block,
    Candidates,
    Workspace,
    copy_out,
    mark_excluded,
    top_up,
)
from pipeline.features.context_matches import ContextMatches
from pipeline.features.family import Family, FloatArray, Shown
from pipeline.features.gate_inputs import KINDS, Success, gate_inputs
from pipeline.features.lessons import Lessons
from pipeline.features.newest import Newest
from pipeline.features.popularity import LISTS_SHOWN, P1000, POPULAR, Popularity
from pipeline.features.recent_transitions import RecentTransitions
from pipeline.features.repeats import Repeats
from pipeline.features.sessions import Sessions
from pipeline.features.transitions import Transitions
from pipeline.state.queries import Queries
from pipeline.state.splitmix import seed_of
from pipeline.state.store import Store
from pipeline.state.tables import IdTable

IntArray = npt.NDArray[np.int32]


def families_of(items: IdTable, repeats: bool, lists: tuple[int, ...]) -> dict[str, Family]:
    """Return the families by name, in the order in which they retrieve candidates."""
    popularity = Popularity(items.capacity, lists)
    return {
        "transitions": Transitions(items, popularity),
        "recent_transitions": RecentTransitions(items, popularity),
        "context_matches": ContextMatches(items.capacity),
        "repeats": Repeats(repeats),
        "sessions": Sessions(items.capacity),
        "newest": Newest(items.capacity),
        "popularity": popularity,  # last: its room is what the history leaves
    }


class FeatureBank:
    """All families, the stores of `stores`; everything else is scratch space or derived.

    `k`: candidates a query, at least, where so many may be shown. `lists`: the popularity lists that
    candidates are drawn from. `history`: newest places of a window that are read (0: all), so that a shadow
    with longer windows changes nothing.
    """

    def __init__(
        self,
        items: IdTable,
        users: int,
        k: int,
        repeats: bool,
        seed: int,
        lists: tuple[int, ...] = LISTS_SHOWN,
        history: int = 0,
    ) -> None:
        self.items, self.seed, self.history = items, seed, history
        self.families = families_of(items, repeats, lists)
        self.popularity: Popularity = cast(Popularity, self.families["popularity"])
        self.transitions: Transitions = cast(Transitions, self.families["transitions"])
        self.at: dict[str, int] = {}  # the place of each family's first feature
        names: list[str] = []
        for name, family in self.families.items():
            self.at[name] = len(names)
            names += family.features
        self.names: tuple[str, ...] = tuple(names)
        self.least = max(k, POPULAR)
        self._workspace = Workspace(RETRIEVED + len(lists) * POPULAR + self.least, len(names))
        places = tuple(names.index(kind) for kind in KINDS)
        always = tuple(kind in self.popularity.features for kind in KINDS)
        self.success = Success(users, places, always)

    @property
    def stores(self) -> Mapping[str, Store]:
        """Return what is to be saved, grown and cleared, by name."""
        return {**self.families, "success": self.success}

    def candidates(self, queries: Queries) -> Candidates:
        """Return each query's candidates with their features: `least` at least, filled up by popularity."""
        queries, batch = self._within(queries), queries.user_B.shape[0]
        most = batch * self._workspace.slots  # pages that nothing is written to take no memory
        rows, features = np.empty(most, np.int32), np.empty((most, len(self.names)), np.float32)
        indptr = np.zeros(batch + 1, np.int64)
        for a in range(0, batch, MAX_QUERIES):
            b = min(a + MAX_QUERIES, batch)
            block = self._workspace.begin(
                queries.items_BL[a:b], queries.length_B[a:b], queries.position_B[a:b],
                queries.session_B[a:b], self.items.status.data,
            )  # fmt: skip
            self._collect(block, queries.excluded, queries.excluded_indptr[a : b + 1])
            copy_out(block, indptr[a], rows, features, indptr[a + 1 : b + 1])
        inputs = gate_inputs(queries, self.transitions, self.success.of(queries.user_B))
        return Candidates(rows[: indptr[-1]], indptr, features[: indptr[-1]], inputs)

    def _collect(self, block: Block, excluded: IntArray, indptr_B: npt.NDArray[np.int64]) -> None:
        """Retrieve the candidates of a block's queries, and compute all their features."""
        mark_excluded(block, excluded, indptr_B, True)
        for name, family in self.families.items():
            family.retrieve(block, self.at[name])
        short_B = block.count_B < self.least
        if short_B.any():
            most = int(np.diff(indptr_B)[short_B].max())
            column = int(self.popularity.lists[0]) if self.popularity.lists.size else P1000
            top_up(block, self.popularity.longer(column, self.least + most, self.items), self.least)
        for name, family in self.families.items():
            family.finish(block, self.at[name])
        mark_excluded(block, excluded, indptr_B, False)

    def bare_features(self, rows_N: IntArray, position_N: npt.NDArray[np.integer]) -> FloatArray:
        """Return the features [N, F] of items that are no candidates: 0 but where defined for every item."""
        out = np.zeros((rows_N.shape[0], len(self.names)), np.float32)
        self.popularity.bare(rows_N, position_N, out, self.at["popularity"])
        return out

    def attribute(
        self,
        queries: Queries,
        candidates: Candidates,
        places_BK: npt.NDArray[np.int64],
        value_BKF: FloatArray,
    ) -> FloatArray:
        """Return what each place of the window adds to the features' part of each score [B, K, L + 1].

        `places` are candidates (-1: none), `value` is what each feature adds to their scores. A sum over
        history items is shared as it was summed; the last place gets what rests on no history item.
        """
        rows_BK = candidates.at(places_BK)
        value_BKF = np.where((rows_BK >= 0)[:, :, None], value_BKF, np.float32(0))
        queries = self._within(queries)
        shown = Shown(queries.items_BL, queries.length_B, queries.session_B, rows_BK, value_BKF)
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        for name, family in self.families.items():
            family.attribute(shown, self.at[name], out)
        return out

    def _within(self, queries: Queries) -> Queries:
        """Return the queries with windows of `history` places at most."""
        if not self.history:
            return queries
        return queries._replace(length_B=np.minimum(queries.length_B, np.int32(self.history)))

    def update(self, lessons: Lessons) -> None:
        """Count a batch. Nothing but the lessons and the status of item rows decides what is counted."""
        seed = seed_of(self.seed, lessons.seq)
        for family in self.families.values():
            family.update(lessons, self.items.status.data, seed)

    def forget(self, rows: IntArray) -> None:
        """Remove item rows from totals, before their columns are cleared."""
        for family in self.families.values():
            family.forget(rows)

    def fade(self, weakening: float, share: float) -> None:
        """Let the past count less after a drift; ValueError where an argument is out of range.

        `weakening` (0: nothing) bounds the weight that is left in a row of transitions, `share` [0..1] is
        kept of the context matches of each item.
        """
        if weakening < 0 or not 0 <= share <= 1:
            raise ValueError(f"fade({weakening}, {share}): expected 0 or more, and a share from 0 to 1")
        for family in self.families.values():
            family.fade(weakening, share)

"""Ranks over all items, for evaluations alone: no model scores the whole catalogue in the service.

Axes as in model.py.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.bank import FeatureBank
from pipeline.features.block import Candidates
from pipeline.models.model import MISS, IntArray, Model, Targets, TrainingCandidates, count_ranks
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE

QUERIES = 16  # ranked at a time: bounds the memory of their features


class Ranks(NamedTuple):
    """Items above each target, and others level with it: as in `RankResult`."""

    greater_B: npt.NDArray[np.int64]
    equal_B: npt.NDArray[np.int64]


def full_ranks(
    model: Model, bank: FeatureBank, queries: Queries, training: TrainingCandidates, targets: Targets
) -> Ranks:
    """Return where each target stands among all items that may be shown, by the model's scores."""
    candidates, batch = training.candidates, targets.item_B.shape[0]
    greater_B = np.full(batch, MISS, np.int64)
    equal_B = np.zeros(batch, np.int64)
    live = np.flatnonzero(bank.items.status.data == LIVE).astype(np.int32)
    wanted = np.flatnonzero(targets.tested_B & (targets.item_B >= 0))
    for some in np.array_split(wanted, -(-wanted.size // QUERIES)) if wanted.size else []:
        part = queries.pick(some)
        everything = _all_items(bank, part, candidates.pick(some), live)
        target_N = np.repeat(targets.item_B[some], np.diff(everything.indptr))
        place_b = np.flatnonzero(everything.rows == target_N)  # each item once a query
        scores = model.score(part, everything).values
        greater_b, equal_b = greater_B[some], equal_B[some]
        count_ranks(scores, everything.indptr, place_b, greater_b, equal_b)
        greater_B[some], equal_B[some] = greater_b, equal_b
    return Ranks(greater_B, equal_B)


def _all_items(bank: FeatureBank, queries: Queries, candidates: Candidates, live: IntArray) -> Candidates:
    """Return all items that may be shown as candidates, with the features that they have as candidates."""
    rows, features = [], []
    for b in range(queries.user_B.shape[0]):
        own = slice(candidates.indptr[b], candidates.indptr[b + 1])
        excluded = queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]]
        others = np.setdiff1d(live, np.concatenate((candidates.rows[own], excluded)))
        positions = np.full(others.size, queries.position_B[b])
        rows.append(np.concatenate((candidates.rows[own], others)).astype(np.int32))
        features.append(
            np.concatenate((candidates.features[own], bank.bare_features(others.astype(np.int32), positions)))
        )
    indptr = np.concatenate(([0], np.cumsum([part.size for part in rows]))).astype(np.int64)
    return Candidates(np.concatenate(rows), indptr, np.concatenate(features), candidates.gate_inputs)

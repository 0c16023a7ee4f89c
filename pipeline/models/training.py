"""What a batch is trained on: its targets, candidates, a uniform draw of negatives, and what both stand for.

Axes as in model.py; M = item rows.
"""

import logging
from collections.abc import Sequence

import numpy as np

from pipeline.events.batch import Batch
from pipeline.features.bank import FeatureBank
from pipeline.features.block import Candidates
from pipeline.kernels import kernel
from pipeline.models.full_ranks import full_ranks
from pipeline.models.model import IntArray, Model, Targets, TrainingCandidates, TrainResult
from pipeline.settings import POSITIVE
from pipeline.state.positions import POSITIONS
from pipeline.state.queries import Queries, excluded_targets
from pipeline.state.splitmix import next_uniform, seed_of
from pipeline.state.state import State
from pipeline.state.tables import HIDDEN, LIVE, IdTable

logger = logging.getLogger(__name__)

NEGATIVES = 128  # measured: from 64 to 1,024 no difference in quality, since the candidates carry the mass
DENSE_DRAW = 4096  # rows up to which all are looked at


def targets_of(state: State, batch: Batch, queries: Queries, step_scale: float) -> Targets:
    """Return what is learned and what is tested: positive events with items that may be shown."""
    hidden_B = (state.items.status.data[batch.item_B] == HIDDEN) & (batch.item_B >= 0)
    positive_B = batch.role_B == POSITIVE
    tested_B = positive_B & ~excluded_targets(queries, batch.item_B) & ~hidden_B
    return Targets(
        item_B=np.where(tested_B & batch.known_B, batch.item_B, -1).astype(np.int32),
        weight_B=batch.weight_B,
        type_B=batch.type_B,
        role_B=batch.role_B,
        value_B=batch.value_B,
        tested_B=tested_B,
        known_B=batch.known_B,
        counted_B=np.where(positive_B, batch.item_B, -1).astype(np.int32),
        seq=batch.seq,
        step_scale=step_scale,
    )


def draw_negatives(items: IdTable, seed: int, seq: int) -> IntArray:
    """Return a uniform draw of NEGATIVES live item rows, or all if fewer, from (seed, seq) alone.

    Of a large table rows are drawn until enough of them are live, so that no batch looks at all rows.
    """
    drawn, state = np.empty(NEGATIVES, np.int32), np.uint64(seed_of(seed, seq))
    if items.used <= DENSE_DRAW or items.live < 4 * NEGATIVES:
        count = _draw_of_all(items.status.data, items.live, state, drawn)
        return drawn[:count]
    _draw(items.status.data, items.used, state, drawn)
    return np.sort(drawn)


@kernel()
def _draw_of_all(status_M, live, state, out):  # type: ignore[no-untyped-def]
    """Write a draw of live rows in one pass, and return how many (Knuth's algorithm S)."""
    n = 0
    for m in range(status_M.shape[0]):
        if n < out.shape[0] and status_M[m] == LIVE:
            state, u = next_uniform(state)
            if u * live < out.shape[0] - n:
                out[n] = m
                n += 1
            live -= 1
    return n


@kernel()
def _draw(status_M, used, state, out):  # type: ignore[no-untyped-def]
    """Write different live rows."""
    n = 0
    while n < out.shape[0]:
        state, u = next_uniform(state)
        m = np.int32(u * used)
        new = status_M[m] == LIVE
        for i in range(n):
            new = new and out[i] != m
        if new:
            out[n] = m
            n += 1


class Trainer:
    """Makes training candidates, and lets models learn. `rank_all`: targets are ranked over all items."""

    def __init__(self, bank: FeatureBank, seed: int, rank_all: bool = False) -> None:
        self.bank, self.seed, self.rank_all = bank, seed, rank_all
        self.disabled: set[str] = set()  # models that have failed
        self._stamp = np.zeros(0, np.int64)
        self._tag = 1

    def candidates(
        self, queries: Queries, candidates: Candidates, item_B: IntArray, seq: int
    ) -> TrainingCandidates:
        """Return what a batch with these targets (-1: none) is trained on."""
        items = self.bank.items
        negatives = draw_negatives(items, self.seed, seq)
        by_position = np.repeat(np.arange(POSITIONS), negatives.size)
        negative_features = self.bank.bare_features(np.tile(negatives, POSITIONS), by_position)
        batch = item_B.shape[0]
        place_B = np.full(batch, -2, np.int64)
        used_BS = np.zeros((batch, negatives.size), np.bool_)
        other_BS = np.zeros_like(used_BS)
        stands_for_B = np.zeros(batch, np.float32)
        shown_B = np.zeros(batch, np.int64)
        if self._stamp.size < items.capacity:
            self._stamp, self._tag = np.zeros(items.capacity, np.int64), 1
        _count(
            item_B, candidates.rows, candidates.indptr, queries.excluded, queries.excluded_indptr,
            negatives, items.live, items.status.data, self._tag, self._stamp,
            (place_B, used_BS, other_BS, stands_for_B, shown_B),
        )  # fmt: skip
        self._tag += batch
        outside = np.flatnonzero(place_B == -1)
        target_features = np.zeros((batch, len(self.bank.names)), np.float32)
        target_features[outside] = self.bank.bare_features(item_B[outside], queries.position_B[outside])
        shape = (POSITIONS, negatives.size, len(self.bank.names))
        return TrainingCandidates(
            candidates, place_B, target_features, negatives, negative_features.reshape(shape), used_BS,
            other_BS, stands_for_B, shown_B,
        )  # fmt: skip

    def learn(
        self, models: Sequence[Model], queries: Queries, training: TrainingCandidates, targets: Targets
    ) -> dict[str, TrainResult]:
        """Let every model rank and learn a batch. One that fails is disabled, unless it is the served one."""
        results: dict[str, TrainResult] = {}
        for model in models:
            if model.name in self.disabled:
                continue
            try:
                full = full_ranks(model, self.bank, queries, training, targets) if self.rank_all else None
                result = model.learn(queries, training, targets)
            except Exception:
                if model is models[0]:
                    raise
                self.disabled.add(model.name)
                logger.warning("model %s failed: disabled until the next start", model.name, exc_info=True)
                continue
            if full is not None:
                result = result._replace(ranks=result.ranks._replace(**full._asdict()))
            results[model.name] = result
        return results


@kernel()
def _count(target_B, rows, indptr, excluded, excluded_indptr, negatives, live, status_M, tag, stamp, out):  # type: ignore[no-untyped-def]
    place_B, used_BS, other_BS, stands_for_B, shown_B = out
    for b in range(target_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        mark = tag + b
        rest = live
        for e in range(excluded_indptr[b], excluded_indptr[b + 1]):
            # only what `live` counts is taken off it: an excluded item may be new, or no longer held
            m = excluded[e]
            if m >= 0 and status_M[m] == LIVE and stamp[m] != mark:
                stamp[m] = mark
                rest -= 1
        place_B[b], shown_B[b] = -1, rest
        for s in range(negatives.shape[0]):
            other_BS[b, s] = stamp[negatives[s]] != mark and negatives[s] != t
        for n in range(indptr[b], indptr[b + 1]):
            stamp[rows[n]] = mark
            rest -= 1
            if rows[n] == t:
                place_B[b] = n
        if place_B[b] < 0:
            stamp[t] = mark
            rest -= 1
        drawn = 0
        for s in range(negatives.shape[0]):
            used_BS[b, s] = stamp[negatives[s]] != mark
            drawn += used_BS[b, s]
        if drawn > 0:
            stands_for_B[b] = np.float32(max(rest, 1) / drawn)

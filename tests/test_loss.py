"""Negatives, loss and ranks, against torch's autograd over all items."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.block import Candidates
from pipeline.models import training
from pipeline.models.loss import BACKGROUND, FLOOR, Logits, Loss, softmax_loss
from pipeline.models.model import MISS, TrainingCandidates, ranks_within
from pipeline.models.training import DENSE_DRAW, NEGATIVES, Trainer, draw_negatives
from pipeline.state.tables import FREE, HIDDEN, LIVE, NEW, RETIRED, IdTable

Array = np.ndarray[Any, Any]
ITEMS, QUERIES = 40, 8


class Case(NamedTuple):
    """Random logits of all items for some queries, of which a few are candidates and a few excluded."""

    logits_BM: Array
    hidden_BM: Array  # may not be shown
    target_B: Array  # of query 2: none
    weight_B: Array
    training: TrainingCandidates

    @property
    def logits(self) -> Logits:
        c, t = self.training.candidates, self.target_B
        own_B = self.logits_BM[np.arange(QUERIES), np.maximum(t, 0)]
        negatives_BS = np.ascontiguousarray(self.logits_BM[:, self.training.negatives_S])
        return Logits(self.logits_BM[c.query_N, c.rows].copy(), own_B.copy(), negatives_BS)


def case(seed: int, seq: int = 0, values: int = 0) -> Case:
    """Make a case; `values`: the number of distinct logits, for ties."""
    rng, items = np.random.default_rng(seed), IdTable("item", ITEMS)
    items.settle(items.admit([f"i{m}" for m in range(ITEMS)]))
    status = items.status.data
    status[[3, 17, 29, 30]] = RETIRED, NEW, FREE, HIDDEN
    items.recount()
    live, rows, excluded = np.flatnonzero(status == LIVE), [], []
    target_B, hidden_BM = np.full(QUERIES, -1, np.int32), np.tile(status != LIVE, (QUERIES, 1))
    for b in range(QUERIES):  # the retired and the new are among the excluded too
        mine = rng.choice(ITEMS, int(rng.integers(0, 9)), replace=False)
        excluded.append([*mine.tolist(), -1, 3])
        hidden_BM[b, mine] = True
        free = np.setdiff1d(live, mine)
        rows.append(rng.permutation(free)[: int(rng.integers(0, 15)) if b else 0])
        if b != 2:
            inside = b % 2 and rows[b].size
            target_B[b] = rows[b][0] if inside else rng.choice(np.setdiff1d(free, rows[b]))
    indptr, excluded_indptr = (np.cumsum([0, *map(len, each)]) for each in (rows, excluded))
    nothing = np.zeros((indptr[-1], 1), np.float32)
    candidates = Candidates(np.concatenate(rows).astype(np.int32), indptr, nothing, nothing)
    queries: Any = SimpleNamespace(
        excluded=np.concatenate(excluded).astype(np.int32), excluded_indptr=excluded_indptr,
        position_B=np.zeros(QUERIES, np.int8),
    )  # fmt: skip
    bank: Any = SimpleNamespace(
        items=items, names=("one",), bare_features=lambda rows, _: np.zeros((rows.size, 1), np.float32)
    )
    logits_BM = rng.normal(size=(QUERIES, ITEMS)).astype(np.float32) * 2
    if values:
        logits_BM = rng.integers(0, values, (QUERIES, ITEMS)).astype(np.float32)
    weight_B = rng.choice([0.5, 1.0, 3.0], QUERIES).astype(np.float32)
    weight_B[3] = 0
    made = Trainer(bank, 0).candidates(queries, candidates, target_B, seq)
    return Case(logits_BM, hidden_BM, target_B, weight_B, made)


def full_loss(c: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [B, M] as a leaf, and torch's own cross entropy over all that may be shown."""
    leaf = torch.from_numpy(c.logits_BM).double().requires_grad_()
    logits = leaf.masked_fill(torch.from_numpy(c.hidden_BM), -torch.inf)
    taught = np.flatnonzero(c.target_B >= 0)
    targets = torch.from_numpy(c.target_B[taught]).long()
    return leaf, torch.nn.functional.cross_entropy(logits[taught], targets, reduction="none")


def objective(losses: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and that of a mixture with a uniform background."""
    return FLOOR * losses - (1 - FLOOR) * torch.log(torch.exp(-losses) + BACKGROUND)


def spread(c: Case, found: Loss) -> Array:
    """Return the slopes by item row [B, M]."""
    out, candidates = np.zeros((QUERIES, ITEMS)), c.training.candidates
    np.add.at(out, (candidates.query_N, candidates.rows), found.slopes.candidates_N)
    np.add.at(out, (np.arange(QUERIES), np.maximum(c.target_B, 0)), found.slopes.target_B)
    np.add.at(out.T, c.training.negatives_S, found.slopes.negatives_BS.T)
    return out


@pytest.mark.parametrize("seed", range(12))
def test_with_all_others_drawn_loss_and_slopes_are_those_of_the_full_softmax(seed: int) -> None:
    c = case(seed)
    taught = np.flatnonzero(c.target_B >= 0)
    leaf, losses = full_loss(c)
    (objective(losses) * torch.from_numpy(c.weight_B[taught]).double()).sum().backward()
    found = softmax_loss(c.logits, c.training, c.weight_B)
    np.testing.assert_allclose(found.loss_B[taught], losses.detach(), rtol=1e-4, atol=1e-5)
    slopes = spread(c, found)
    np.testing.assert_allclose(slopes, leaf.grad, rtol=1e-3, atol=1e-6)
    assert (slopes[(c.target_B < 0) | (c.weight_B == 0)] == 0).all()
    assert c.training.shown_B[taught].tolist() == (~c.hidden_BM).sum(1)[taught].tolist()
    assert c.training.shown_B[2] == found.loss_B[2] == 0
    for b in range(QUERIES):
        used = c.training.negatives_S[c.training.used_BS[b]]
        span = slice(c.training.candidates.indptr[b], c.training.candidates.indptr[b + 1])
        others = set(np.flatnonzero(~c.hidden_BM[b])) - {*c.training.candidates.rows[span], c.target_B[b]}
        assert set(used.tolist()) == (others if c.target_B[b] >= 0 else set())
        if c.target_B[b] >= 0:
            own, other = c.logits_BM[b, c.target_B[b]], c.logits_BM[b, ~c.hidden_BM[b]]
            below = ((other < own).sum() + 0.5 * ((other == own).sum() - 1)) / (other.size - 1)
            assert found.below_B[b] == pytest.approx(below, abs=1e-6)
        else:
            assert np.isnan(found.below_B[b])


def test_a_sample_is_unbiased_for_the_sum_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NEGATIVES", 16)
    draws, c = 3000, case(7)
    cases = (case(7, seq) for seq in range(draws))
    losses = np.array([softmax_loss(each.logits, each.training, c.weight_B).loss_B for each in cases])
    exact = np.exp(np.where(c.hidden_BM, -np.inf, c.logits_BM.astype(np.float64))).sum(1)
    for b in np.flatnonzero(c.target_B >= 0):
        totals = np.exp(losses[:, b] + c.logits_BM[b, c.target_B[b]])
        # a draw may hold none of the others: the odds are below 1e-5 here
        assert abs(totals.mean() - exact[b]) < 4.5 * totals.std() / np.sqrt(draws) + 1e-4 * exact[b]
        assert totals.std() > 0


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_ranks_are_those_of_a_sort_of_the_candidates(seed: int) -> None:
    c = case(seed, values=5)
    tested_B = np.arange(QUERIES) != 4
    targets: Any = SimpleNamespace(tested_B=tested_B, known_B=np.ones(QUERIES, np.bool_))
    scores_N = c.logits.candidates_N
    bad = c.training.place_B[5]
    if bad >= 0:
        scores_N[bad] = np.nan
    ranks = ranks_within(scores_N, c.training, targets, np.zeros(QUERIES, np.float32))
    indptr = c.training.candidates.indptr
    assert ranks.tested_B.tolist() == tested_B.tolist()
    for b, place in enumerate(c.training.place_B.tolist()):
        mine = (ranks.greater_B[b], ranks.equal_B[b])
        if place < 0 or place == bad:  # no candidate, or no number: a miss
            assert mine == (MISS, 0)
            continue
        order = sorted(scores_N[indptr[b] : indptr[b + 1]].tolist(), reverse=True)
        first = order.index(scores_N[place])
        assert mine == (first, order.count(scores_N[place]) - 1)


def table_of(size: int, live: float) -> IdTable:
    items = IdTable("item", 8192)
    items.settle(items.admit([f"i{n}" for n in range(size)]))
    hidden = np.random.default_rng(size).random(size) >= live
    items.show(np.flatnonzero(hidden).astype(np.int32), False)
    return items


@pytest.mark.parametrize(
    ("size", "live"), [(0, 1.0), (NEGATIVES - 1, 1.0), (500, 0.7), (DENSE_DRAW + 900, 0.6), (6000, 0.05)]
)
def test_negatives_are_a_uniform_draw_of_known_items_by_seed_and_batch_alone(size: int, live: float) -> None:
    items = table_of(size, live)
    known = np.flatnonzero(items.status.data == LIVE)
    draws = [draw_negatives(items, 3, seq) for seq in range(600)]
    for drawn in draws:
        assert drawn.size == min(NEGATIVES, known.size)
        assert (np.diff(drawn) > 0).all()  # distinct
        assert np.isin(drawn, known).all()
    if known.size <= NEGATIVES:
        return
    assert draws[4].tolist() == draw_negatives(items, 3, 4).tolist() != draws[5].tolist()
    assert draws[4].tolist() != draw_negatives(items, 4, 4).tolist()
    counts, chance = np.bincount(np.concatenate(draws), minlength=8192)[known], NEGATIVES / known.size
    error = np.sqrt(len(draws) * chance * (1 - chance))
    assert np.abs(counts - len(draws) * chance).max() < 5 * error
    assert counts.std() == pytest.approx(error, rel=0.15)

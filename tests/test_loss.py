"""Negatives, loss, ranks and a whole step of the default model, against torch's autograd over all items."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from harness.streams import Batches, copied, same, shoppers, small_settings, spied
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.block import Candidates
from pipeline.features.gate_inputs import KEPT, KINDS, TYPICAL_KEPT
from pipeline.models import gate as gates
from pipeline.models import gradient_model, training
from pipeline.models.attention import AttentionModel
from pipeline.models.embeddings import FAINT, RATE
from pipeline.models.full_ranks import full_ranks
from pipeline.models.loss import BACKGROUND, FLOOR, Logits, Loss, softmax_loss
from pipeline.models.model import MISS, Targets, TrainingCandidates, TrainResult, ranks_within
from pipeline.models.optimizer import AGREE, EPSILON
from pipeline.models.training import DENSE_DRAW, NEGATIVES, Trainer, draw_negatives
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.queries import Queries
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
        """What a model would compute."""
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
    losses = np.array(
        [
            softmax_loss(each.logits, each.training, c.weight_B).loss_B
            for each in (case(7, seq) for seq in range(draws))
        ]
    )
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


class Lesson(NamedTuple):
    """A model in mid-stream and the batch that it is to learn next."""

    recommender: Recommender
    model: AttentionModel
    queries: Queries
    training: TrainingCandidates
    targets: Targets

    def learn(self) -> TrainResult:
        """Let the model learn it."""
        return self.model.learn(self.queries, self.training, self.targets)


def shake(model: AttentionModel) -> None:
    """Make every parameter random, and every accumulator 1, so that a step is more than its sign."""
    rng = np.random.default_rng(5)
    for name, column in model.columns().items():
        scale = 0.5 if column.axis == "item" else 0.2
        if "squares" in name:
            column.data[...] = 1
        else:
            column.data[...] += (rng.normal(size=column.data.shape) * scale).astype(np.float32)


def with_lesson(
    check: Callable[[Lesson], Any], exclude: list[str] | None, size: int = 40, items: int = 60
) -> Recommender:
    """Call `check` at the moment in which the model is to learn the last batch of a stream."""
    checked = []

    def hook(model: Any, queries: Queries, made: TrainingCandidates, targets: Targets) -> TrainResult:
        if targets.seq == 8:
            shake(model)
            weight_B = np.random.default_rng(1).choice([0.5, 1, 2], targets.item_B.size).astype(np.float32)
            targets = targets._replace(weight_B=weight_B, step_scale=1.5)
            checked.append(check(Lesson(recommender, model, queries, made, targets)))
        return model.learn(queries, made, targets)  # type: ignore[no-any-return]

    limits = LimitsConfig(items=items)
    recommender = spied(small_settings(exclude=exclude, limits=limits, history=7), "attention", hook)
    types = ("click", "click", "buy", "view", "dislike")
    rng = np.random.default_rng(3)
    for raw in shoppers(rng, Batches(), 9, size=size, users=9, window=80, pace=3, types=types):
        recommender.step(raw)
    assert len(checked) == 1
    return recommender


class Expected(NamedTuple):
    """The model after one obvious step, in float64, and what the step rests on."""

    logits_BM: Array  # -inf where an item may not be shown
    loss_B: Array
    items: Array
    items_squares: Array
    weights: dict[str, Array]
    gate: tuple[Array, Array]
    norm: float


def plain_users(at: Lesson) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Return user vectors and the window's items that they come from, in float64."""
    model, queries = at.model, at.queries
    items, module = torch.from_numpy(model.items.values.data).double(), copy.deepcopy(model.net).double()
    items_BL = queries.items_BL[:, :7]
    window = torch.from_numpy(np.maximum(items_BL, 0)).long()
    empty = torch.from_numpy(items_BL < 0)
    inputs = items[window].masked_fill(empty[:, :, None], 0).requires_grad_()
    seconds = np.maximum(queries.now_ms_B[:, None] - queries.times_BL[:, :7], 0) / 1000
    gaps = torch.from_numpy(np.minimum(np.log2(1 + seconds) * 0.6, 15).astype(np.int64))
    kinds = torch.from_numpy(queries.types_BL[:, :7].astype(np.int64) % 16)
    return module(inputs, empty, gaps, kinds), inputs, module


def catalogue(at: Lesson) -> tuple[Array, Array, Array]:
    """Return every item's features [B, M, F], which are candidates, and which may not be shown [B, M]."""
    bank, queries, candidates = at.recommender.bank, at.queries, at.training.candidates
    status = at.recommender.state.items.status.data
    batch, size = queries.user_B.size, status.size
    rows = np.tile(np.arange(size, dtype=np.int32), batch)
    features = bank.bare_features(rows, np.repeat(queries.position_B, size)).reshape(batch, size, -1)
    features[candidates.query_N, candidates.rows] = candidates.features
    chosen, hidden = np.zeros((batch, size), np.bool_), np.tile(status != LIVE, (batch, 1))
    chosen[candidates.query_N, candidates.rows] = True
    for b in range(batch):
        out = queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]]
        hidden[b, out[out >= 0]] = True
    return features.astype(np.float64), chosen, hidden


def obvious_step(at: Lesson) -> Expected:
    """One step by autograd over the full catalogue; every use of an item row is a gradient of its own."""
    model, targets, scale = at.model, at.targets, at.targets.step_scale
    inputs_BG = at.training.candidates.gate_inputs.astype(np.float64)
    users, inputs, module = plain_users(at)
    x, chosen, hidden = catalogue(at)
    values = model.items.values.data.astype(np.float64)
    gate = [column.data.astype(np.float64) for column in (model.gate.weight, model.gate.slope)]  # type: ignore[union-attr]
    coef = gate[0] + inputs_BG @ gate[1].T
    user_BD = users.detach().numpy()
    logits = torch.from_numpy(user_BD @ values.T + np.einsum("bmf,bf->bm", x, coef)).requires_grad_()
    taught = np.flatnonzero(targets.item_B >= 0)
    shown = logits.masked_fill(torch.from_numpy(hidden), -torch.inf)
    rows = torch.from_numpy(targets.item_B[taught]).long()
    losses = torch.nn.functional.cross_entropy(shown[taught], rows, reduction="none")
    (objective(losses) * torch.from_numpy(targets.weight_B[taught]).double()).sum().backward()
    slope_BM = logits.grad.numpy()  # type: ignore[union-attr]
    # embeddings leave out what hardly moves them, of candidates and targets
    chosen[taught, targets.item_B[taught]] = True
    moving_BM = np.where(chosen & (np.abs(slope_BM) < FAINT), 0, slope_BM)
    users.backward(torch.from_numpy(moving_BM @ values))  # type: ignore[no-untyped-call]
    window, held = at.queries.items_BL[:, :7], at.queries.items_BL[:, :7] >= 0
    single = inputs.grad.numpy()[held]  # type: ignore[union-attr]
    total, squares = moving_BM.T @ user_BD, (moving_BM**2).T @ (user_BD**2).mean(1)
    np.add.at(total, window[held], single)
    np.add.at(squares, window[held], (single**2).mean(1))
    moved = values - scale * RATE * total / np.sqrt(1 + squares + EPSILON)[:, None]
    each = np.einsum("bm,bmf->bf", slope_BM, x)
    norms, weights = [np.linalg.norm(total), np.linalg.norm(each.sum(0))], {}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad.numpy()
        norms.append(np.linalg.norm(gradient))
        step = scale * gradient_model.RATE * gradient / np.sqrt(1 + gradient**2)
        most = gradient_model.MAX_STEP
        weights[name] = parameter.detach().numpy() - np.clip(step, -most, most)
    after = []
    for start, g, s in (
        (gate[0], each.sum(0), (each**2).sum(0)),
        (gate[1], each.T @ inputs_BG, (each**2).T @ inputs_BG**2),
    ):
        step = scale * gates.RATE * g / np.sqrt(1 + np.maximum(s, g**2 / AGREE))
        after.append(
            np.clip(start - np.clip(step, -gates.MAX_STEP, gates.MAX_STEP), -gates.BOUND, gates.BOUND)
        )
    loss_B = np.full(targets.item_B.size, np.nan)
    loss_B[taught] = losses.detach().numpy()
    norm = float(np.linalg.norm(norms))
    return Expected(shown.detach().numpy(), loss_B, moved, 1 + squares, weights, (after[0], after[1]), norm)


@pytest.mark.parametrize(
    ("exclude", "size"), [(None, 40), ([], 40), (["buy"], 40), ([], 190)],
    ids=["all excluded", "repeats", "buys excluded", "several blocks"],
)  # fmt: skip
def test_a_whole_step_of_the_model_is_that_of_autograd(exclude: list[str] | None, size: int) -> None:
    def check(at: Lesson) -> None:
        model, status = at.model, at.recommender.state.items.status.data
        live = np.flatnonzero(status == LIVE)
        assert at.training.negatives_S.tolist() == live.tolist()  # all others are drawn: no estimate
        expected, before = obvious_step(at), model.items.values.data.copy()
        learned = at.learn()
        assert (at.targets.item_B >= 0).sum() > size / 8
        assert learned.skipped == ""
        np.testing.assert_allclose(learned.ranks.loss_B, expected.loss_B, rtol=1e-3, atol=1e-4)
        assert learned.loss == pytest.approx(np.nanmean(expected.loss_B), rel=1e-4)
        assert learned.gradient_norm == pytest.approx(expected.norm, rel=2e-3)
        found = [model.items.values, model.items.squares, model.gate.weight, model.gate.slope]  # type: ignore[union-attr]
        wanted = [expected.items, expected.items_squares, *expected.gate]
        for column, value in zip(found, wanted, strict=True):
            rows = live if column.axis == "item" else slice(None)
            np.testing.assert_allclose(column.data[rows], value[rows], rtol=1e-3, atol=1e-4)
        for name, value in expected.weights.items():
            column = model.parameters.values[name]
            np.testing.assert_allclose(column.data, value, rtol=1e-3, atol=3e-5, err_msg=name)
        moved = np.flatnonzero((model.items.values.data != before).any(1))
        assert np.isin(status[moved], (LIVE, NEW)).all()
        assert set(moved[status[moved] == NEW]) <= set(at.queries.items_BL.reshape(-1).tolist())
        check_ranks(at, learned, expected.logits_BM)

    with_lesson(check, exclude, size)


def check_ranks(at: Lesson, learned: TrainResult, logits_BM: Array) -> None:
    ranks, candidates = learned.ranks, at.training.candidates
    assert ranks.tested_B.tolist() == at.targets.tested_B.tolist()
    assert ranks.known_B.tolist() == at.targets.known_B.tolist()
    for b, target in enumerate(at.targets.item_B.tolist()):
        rows = candidates.rows[candidates.indptr[b] : candidates.indptr[b + 1]]
        if target not in rows:
            assert (ranks.greater_B[b], ranks.equal_B[b]) == (MISS, 0)
            continue
        above = (logits_BM[b, rows] > logits_BM[b, target] + 1e-5).sum()
        assert (ranks.greater_B[b], ranks.equal_B[b]) == (above, 0)
        assert ranks.candidates_B[b] == np.isfinite(logits_BM[b]).sum()


def test_ranks_over_all_items_count_every_item_that_may_be_shown() -> None:
    def check(at: Lesson) -> None:
        logits_BM = obvious_step(at).logits_BM
        found = full_ranks(at.model, at.recommender.bank, at.queries, at.training, at.targets)
        for b, target in enumerate(at.targets.item_B.tolist()):
            if target < 0:
                assert (found.greater_B[b], found.equal_B[b]) == (MISS, 0)
                continue
            above = (logits_BM[b] > logits_BM[b, target] + 1e-5).sum()
            assert (found.greater_B[b], found.equal_B[b]) == (above, 0)
        assert (at.targets.item_B >= 0).sum() > 8

    with_lesson(check, ["buy"], items=100)


def test_a_batch_without_a_target_teaches_nothing() -> None:
    def check(at: Lesson) -> None:
        nothing = at.targets._replace(item_B=np.full_like(at.targets.item_B, -1))
        found = at.recommender.trainer.candidates(at.queries, at.training.candidates, nothing.item_B, 8)
        before = copied(at.model.columns())
        learned = at.model.learn(at.queries, found, nothing)
        assert (learned.skipped, learned.gradient_norm) == ("no_target", 0.0)
        assert np.isnan(learned.loss)
        same(at.model.columns(), before)

    with_lesson(check, [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_skipped_and_ranks_nothing_first(value: float) -> None:
    def check(at: Lesson) -> None:
        beta = at.model.parameters.values["beta"].data
        beta[1] = value
        before = copied(at.model.columns())
        learned = at.learn()
        assert learned.skipped == "non_finite"
        same(at.model.columns(), before)
        ranks, targets = learned.ranks, at.targets.item_B >= 0
        assert (ranks.greater_B[targets] >= np.diff(at.training.candidates.indptr)[targets] - 1).all()
        # the next step, with sound parameters, is not affected by this one
        beta[1] = 0
        assert at.learn().skipped == ""

    with_lesson(check, [])


def test_success_is_a_running_reciprocal_rank_of_each_kind_of_feature() -> None:
    kept, typical_kept = float(KEPT), float(TYPICAL_KEPT)
    expected: list[Array] = []

    def check(at: Lesson) -> None:
        success, candidates = at.recommender.bank.success, at.training.candidates
        own, typical = (column.data.astype(np.float64) for column in (success.of_user, success.typical))
        names, hits = at.recommender.bank.names, 0
        for b, target in enumerate(at.targets.item_B.tolist()):
            if target < 0:
                continue
            span = slice(candidates.indptr[b], candidates.indptr[b + 1])
            rows, value = candidates.rows[span].tolist(), np.zeros(len(KINDS) + 1)
            value[-1] = 1
            for kind, name in enumerate(KINDS) if target in rows else ():
                feature = candidates.features[span, names.index(name)]
                mine = feature[rows.index(target)]
                if name in ("position", "day") or mine > 0:
                    value[kind] = 1 / (1 + (feature > mine).sum())
            hits += target in rows
            user = at.queries.user_B[b]
            own[user] = kept * own[user] + (1 - kept) * value
            typical[:] = typical_kept * typical + (1 - typical_kept) * value[:-1]
        assert hits > 3
        expected.extend((own, typical))

    success = with_lesson(check, ["buy"]).bank.success
    for column, value in zip((success.of_user, success.typical), expected, strict=True):
        np.testing.assert_allclose(column.data, value, rtol=1e-4, atol=1e-5)

"""A whole step of the default model, against torch's autograd over all items."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from harness.streams import Batches, copied, same, shoppers, small_settings, spied
from harness.torch_attention import TorchAttention
from test_loss import Array, objective

from pipeline.features.gate_inputs import KEPT, KINDS, TYPICAL_KEPT
from pipeline.models import gate as gates
from pipeline.models import parameters
from pipeline.models.attention import AttentionModel
from pipeline.models.embeddings import FAINT, RATE
from pipeline.models.full_ranks import full_ranks
from pipeline.models.model import MISS, Targets, TrainingCandidates, TrainResult
from pipeline.models.optimizer import AGREE, EPSILON
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE, NEW


class Lesson(NamedTuple):
    """A model in mid-stream and the batch that it is to learn next."""

    recommender: Recommender
    model: AttentionModel
    queries: Queries
    training: TrainingCandidates
    targets: Targets

    def learn(self) -> TrainResult:
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
    items, module = torch.from_numpy(model.items.values.data).double(), TorchAttention.of(model.net)
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
        step = scale * parameters.RATE * gradient / np.sqrt(1 + gradient**2)
        most = parameters.MAX_STEP
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

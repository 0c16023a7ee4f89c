"""What every model of the registry promises, and one that a newcomer adds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness.streams import Batches, Event, copied, names_of, same, shoppers, small_settings
from toy_model import TOY

from pipeline.events.batch import RawBatch
from pipeline.events.records import DEFAULT_USER
from pipeline.features import bank
from pipeline.features.block import Candidates
from pipeline.models.model import MISS, Model, Targets, TrainingCandidates
from pipeline.models.registry import MODELS
from pipeline.models.training import targets_of
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig, Settings
from pipeline.state.queries import Queries, list_queries, training_queries
from pipeline.state.tables import LIVE

WITHOUT = "attention without count features"
ALL_POSITIONS = "sasrec at all positions"
COUNTING = (
    "popularity",
    "recent_popularity",
    "item_knn",
)  # by the counts of the bank: no columns of their own
TYPES = ("click", "click", "buy", "view", "dislike", "impression")


@pytest.fixture(params=[*MODELS, WITHOUT, ALL_POSITIONS, "toy"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(MODELS, "toy", TOY)
    monkeypatch.setattr(bank, "POPULAR", 40)  # every item that may be shown is a candidate
    return str(request.param)


def settings_of(name: str) -> Settings:
    """Return settings that serve a model; buys exclude."""
    model: dict[str, Any] = {"features": "none"} if name == WITHOUT else {}
    if name == ALL_POSITIONS:
        model = {"tables": {"sasrec": {"dim": 8, "history": 8, "all_positions": True}}}
    return small_settings(name=name.split()[0], exclude=["buy"], limits=LimitsConfig(items=36), **model)


def stream(count: int = 8) -> list[RawBatch]:
    return shoppers(np.random.default_rng(2), Batches(), count, size=30, window=20, pace=3, types=TYPES)


def learned(name: str, prepare: Callable[[Recommender], object] = lambda _: None) -> Recommender:
    recommender = Recommender(settings_of(name))
    prepare(recommender)
    for raw in stream():
        recommender.step(raw)
    return recommender


class Ready(NamedTuple):
    """A model and a batch that it is to score and learn."""

    recommender: Recommender
    model: Model
    queries: Queries
    training: TrainingCandidates
    targets: Targets

    @property
    def candidates(self) -> Candidates:
        return self.training.candidates


def ready_with(recommender: Recommender, raw: RawBatch | None = None) -> Ready:
    state, rng = recommender.state, np.random.default_rng(4)
    raw = raw or shoppers(rng, Batches(seq=8), 1, size=30, window=30, types=("click", "buy"))[0]
    batch = state.admit(raw)
    recommender._init_rows(batch.new_users, batch.new_items)
    queries = training_queries(state, batch)
    targets = targets_of(state, batch, queries, 1.0)
    found = recommender.bank.candidates(queries)
    training = recommender.trainer.candidates(queries, found, targets.item_B, raw.seq)
    return Ready(recommender, recommender.models[0], queries, training, targets)


@pytest.fixture
def ready(name: str) -> Ready:
    return ready_with(learned(name))


def all_places(candidates: Candidates) -> np.ndarray:  # type: ignore[type-arg]
    """Return every query's candidates [B, K], -1 past the end."""
    counts = np.diff(candidates.indptr)
    places = candidates.indptr[:-1, None] + np.arange(max(int(counts.max(initial=0)), 1))
    return np.where(places < candidates.indptr[1:, None], places, -1)


def test_scores_are_finite_and_pure(ready: Ready) -> None:
    first = ready.model.score(ready.queries, ready.candidates)
    before = copied(ready.model.columns())
    second = ready.model.score(ready.queries, ready.candidates)
    ready.model.explain(ready.queries, ready.candidates, first, all_places(ready.candidates))
    assert first.values.shape == ready.candidates.rows.shape
    assert first.values.dtype == np.float32
    assert np.isfinite(first.values).all()
    np.testing.assert_array_equal(first.values, second.values)
    same(ready.model.columns(), before)


def test_scores_depend_on_no_other_query_of_the_batch(name: str) -> None:
    recommender = learned(name)
    state, model = recommender.state, recommender.models[0]
    users = np.sort(state.users.rows(list(state.users.row_of)))

    def score(rows: Any) -> tuple[Candidates, Any]:
        queries = list_queries(state, rows)
        candidates = recommender.bank.candidates(queries)
        return candidates, model.score(queries, candidates).values

    candidates, whole = score(users)
    for b in range(users.size):
        alone, scores = score(users[b : b + 1])
        span = slice(candidates.indptr[b], candidates.indptr[b + 1])
        np.testing.assert_array_equal(alone.rows, candidates.rows[span])
        np.testing.assert_allclose(scores, whole[span], rtol=1e-4, atol=1e-5)


def test_the_rows_that_users_lie_in_decide_nothing(name: str) -> None:
    def mix(recommender: Recommender) -> None:
        np.random.default_rng(0).shuffle(recommender.state.users.free)

    plain, mixed = learned(name), learned(name, mix)
    assert plain.state.users.row_of != mixed.state.users.row_of
    assert plain.digests() == mixed.digests()
    ids = sorted(plain.state.users.row_of)
    lists = [each.rank(each.state.users.rows(ids)) for each in (plain, mixed)]
    for one, two in zip(*lists, strict=True):
        np.testing.assert_array_equal(one, two)


def test_first_scores_come_from_ids_and_from_no_item_row(name: str) -> None:
    found = []
    for order in (range(12), reversed(range(12))):
        recommender = Recommender(settings_of(name))
        recommender.step(Batches()([Event("u", f"i{n}", "impression") for n in order]))
        queries = list_queries(recommender.state, recommender.state.users.rows(["u"]))
        candidates = recommender.bank.candidates(queries)
        scores = recommender.models[0].score(queries, candidates).values
        found.append(dict(zip(names_of(recommender.state, candidates.rows), scores, strict=True)))
    assert list(found[0]) != list(found[1])
    for text, score in found[0].items():
        np.testing.assert_allclose(score, found[1][text], rtol=1e-4, atol=1e-6)


def test_learning_ranks_with_the_scores_of_before_its_update(ready: Ready) -> None:
    scores, candidates = ready.model.score(ready.queries, ready.candidates).values, ready.candidates
    result = ready.model.learn(ready.queries, ready.training, ready.targets)
    ranks, judged = result.ranks, 0
    for b, place in enumerate(ready.training.place_B.tolist()):
        if place < 0:
            assert not ready.targets.tested_B[b] or not ready.targets.known_B[b]
            continue
        span = slice(candidates.indptr[b], candidates.indptr[b + 1])
        assert ranks.candidates_B[b] == np.diff(candidates.indptr)[b]  # all that may be shown
        near = np.isclose(scores[span], scores[place], rtol=1e-5, atol=1e-6)
        above = (scores[span][~near] > scores[place]).sum()
        assert above <= ranks.greater_B[b] != MISS
        assert ranks.greater_B[b] + ranks.equal_B[b] <= above + near.sum() - 1
        judged += 1
    assert judged > 5
    assert ranks.tested_B.tolist() == ready.targets.tested_B.tolist()
    assert ranks.known_B.tolist() == ready.targets.known_B.tolist()
    known = ranks.below_B[~np.isnan(ranks.below_B)]
    assert ((known >= 0) & (known <= 1)).all()
    assert (result.skipped == "") == np.isfinite(result.loss)
    assert result.skipped in ("", "no_parameters")
    assert np.isfinite(result.gradient_norm)
    moved = not np.array_equal(scores, ready.model.score(ready.queries, candidates).values)
    assert moved == (ready.model.name not in COUNTING)
    for key, column in ready.model.columns().items():
        assert np.isfinite(column.data).all(), key


def test_learning_a_batch_again_and_again_lowers_its_loss(ready: Ready) -> None:
    losses = [ready.model.learn(ready.queries, ready.training, ready.targets).loss for _ in range(8)]
    if np.isfinite(losses[0]):
        assert losses[-1] < losses[0]


def test_parts_of_an_explanation_sum_to_the_score(ready: Ready) -> None:
    scores, places_BK = ready.model.score(ready.queries, ready.candidates), all_places(ready.candidates)
    parts = ready.model.explain(ready.queries, ready.candidates, scores, places_BK)
    if parts is None:
        return
    assert parts.shape == (*places_BK.shape, ready.queries.items_BL.shape[1] + 1)
    for b, length in enumerate(ready.queries.length_B.tolist()):
        held = places_BK[b] >= 0
        total = parts[b, held].sum(1)
        np.testing.assert_allclose(total, scores.values[places_BK[b, held]], rtol=1e-3, atol=1e-4)
        assert (parts[b, :, length:-1] == 0).all()  # an empty place adds nothing
        assert (parts[b, ~held] == 0).all()


def test_nothing_to_score_or_to_learn_is_no_trouble(name: str) -> None:
    fresh = Recommender(settings_of(name))
    for events in ([], [Event("new", "thing"), Event("new", "other")]):  # no candidate, no history
        case = ready_with(fresh, Batches()(events))
        assert case.candidates.rows.size == 0
        scores = case.model.score(case.queries, case.candidates)
        assert scores.values.shape == (0,)
        parts = case.model.explain(case.queries, case.candidates, scores, all_places(case.candidates))
        assert parts is None or not parts.any()
        result = case.model.learn(case.queries, case.training, case.targets)
        size = case.queries.user_B.size
        assert all(column.shape == (size,) for column in result.ranks if column is not None)
        assert result.skipped in ("no_target", "no_parameters") or name in ("isgd", "biased_mf")
    recommender = learned(name)
    before = recommender.digests()
    outcome = recommender.step(Batches(seq=8, ends={0: 240})([]))
    assert (outcome.rankings, outcome.metrics.learned) == ([], 0)
    assert recommender.digests()["digest_users"] == before["digest_users"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(ready: Ready, value: float) -> None:
    columns = ready.model.columns()
    chosen = [key for key in columns if key.startswith("parameters_values")]
    if not chosen:
        return  # no dense parameters
    spoilt = columns[chosen[-1]].data
    right = spoilt.copy()
    spoilt[...] = value
    before = copied(columns)
    result = ready.model.learn(ready.queries, ready.training, ready.targets)
    assert result.skipped == "non_finite"
    same(ready.model.columns(), before)
    spoilt[...] = right
    assert ready.model.learn(ready.queries, ready.training, ready.targets).skipped == ""


def test_a_restored_model_scores_bit_for_bit_the_same(name: str) -> None:
    first, second = Recommender(settings_of(name)), Recommender(settings_of(name))
    for each in stream(5):
        first.step(each)
    second.restore(first.snapshot())
    assert second.digests() == first.digests()
    for each in stream(16)[5:]:
        outcomes = [recommender.step(each) for recommender in (first, second)]
        lists = [[each for each in o.rankings if each.user_id != DEFAULT_USER] for o in outcomes]
        assert lists[0] == lists[1]
        assert repr(outcomes[0].metrics) == repr(outcomes[1].metrics)
    assert second.digests() == first.digests()


def test_growth_changes_no_score_and_new_rows_get_scores(name: str) -> None:
    settings = small_settings(name=name.split()[0], exclude=[])
    recommender, batches = Recommender(settings), Batches()
    recommender.step(batches([Event(f"u{n % 5}", f"i{n % 30}") for n in range(60)]))
    state, model = recommender.state, recommender.models[0]
    queries = list_queries(state, state.users.rows(["u1", "u2"]))
    candidates = recommender.bank.candidates(queries)
    before = model.score(queries, candidates).values
    many = [Event(f"w{n}", f"z{n}", "impression") for n in range(1500)]
    recommender.step(batches(many))
    assert state.items.capacity == state.users.capacity == 2048
    np.testing.assert_array_equal(model.score(queries, candidates).values, before)
    assert all(c.data.shape[0] == 2048 for c in model.columns().values() if c.axis != "none")
    queries = list_queries(state, state.users.rows(["w7", "w1400"]))
    assert np.isfinite(model.score(queries, recommender.bank.candidates(queries)).values).all()


def test_rankings_are_the_best_scores_of_what_may_be_shown(name: str) -> None:
    recommender = learned(name)
    state, model = recommender.state, recommender.models[0]
    outcome = recommender.step(stream(9)[8])
    assert model.name == name.split()[0] == outcome.rankings[0].model
    for ranking in outcome.rankings:
        row = state.users.rows([ranking.user_id])
        queries = list_queries(state, row)
        candidates = recommender.bank.candidates(queries)
        scores, rows = model.score(queries, candidates).values, candidates.rows
        live = set(np.flatnonzero(state.items.status.data == LIVE).tolist())
        consumed = state.consumed.of(int(row[0]), state.items.status.data)
        assert set(rows.tolist()) == live - set(consumed.tolist())
        order = np.lexsort((rows, -scores))[:5]
        found = [item.item_id for item in ranking.items]
        shown = [item.score for item in ranking.items]
        np.testing.assert_allclose(shown, scores[order], rtol=1e-4, atol=1e-5)
        assert found == names_of(state, state.published.items.data[row[0]])
        if np.diff(np.sort(scores)).min(initial=1) > 1e-4:
            assert found == names_of(state, rows[order])

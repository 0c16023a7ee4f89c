"""What every store and every model promises."""

from typing import Any

import numpy as np
import pytest
from harness.streams import Batches, Event, names_of, shoppers, small_settings

from pipeline.events.batch import Batch
from pipeline.models.model import Model, Pool, Targets
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig, ModelConfig, Settings
from pipeline.state.packing import digests
from pipeline.state.queries import Queries, lesson_queries, serving_queries
from pipeline.state.store import Column, Store, clear, grow, nbytes, scrub
from pipeline.state.tables import LIVE

Array = np.ndarray[Any, Any]
STORES = (
    "histories",
    "consumed",
    "served",
    "refresh",
    "origin",
    "popularity",
    "successors",
    "latest",
    "sessions",
    "item_age",
    "model.attention",
    "model.markov",
    "model.session_knn",
    "model.isgd",
    "model.biased_mf",
    "users",
    "items",
)
MODELS = (
    "attention", "attention without memories", "popularity", "recent_popularity", "markov", "item_knn",
    "session_knn", "isgd", "biased_mf",
)  # fmt: skip
COUNTING = ("popularity", "recent_popularity", "item_knn")  # what the memories count: no columns of their own
PARAMETERS = ("attention", "isgd", "biased_mf")  # learned by steps
TYPES = ("click", "click", "buy", "view", "dislike", "impression")


def recommender_of(name: str = "attention", exclude: list[str] | None = None, items: int = 0) -> Recommender:
    settings = small_settings(name=name.split()[0], exclude=exclude, limits=LimitsConfig(items=items))
    if name.endswith("without memories"):
        settings = Settings(
            events=settings.events,
            limits=settings.limits,
            rank=settings.rank,
            model=ModelConfig(dim=8, history=8, memories="none"),
        )
    return Recommender(settings)


def lived(
    name: str = "attention", exclude: list[str] | None = None, items: int = 0, window: int = 60
) -> Recommender:
    """A recommender that has learned some batches."""
    recommender = recommender_of(name, exclude, items)
    for raw in shoppers(np.random.default_rng(2), Batches(), 8, size=30, window=window, pace=3, types=TYPES):
        recommender.step(raw)
    return recommender


@pytest.fixture
def recommender(request: pytest.FixtureRequest) -> Recommender:
    """One that serves the model whose store is asked for."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name", "")
    return lived(name.removeprefix("model.") if name and name.startswith("model.") else "attention", items=40)


def store_of(recommender: Recommender, name: str) -> Store:
    state = recommender.state
    return {**state.stores, "users": state.users, "items": state.items}[name]


def copied(store: Store) -> dict[str, Array]:
    return {name: column.data.copy() for name, column in store.columns().items()}


def test_every_store_is_under_contract() -> None:
    for model in set(MODELS) - {"attention without memories"}:
        recommender = recommender_of(model)
        held = {*recommender.state.stores, "users", "items"}
        without_columns = {f"model.{name}" for name in COUNTING}
        of_other_models = {name for name in STORES if name.startswith("model.") and name != f"model.{model}"}
        assert held - without_columns == set(STORES) - of_other_models
        for name in held & without_columns:
            assert store_of(recommender, name).columns() == {}


@pytest.mark.parametrize("name", STORES)
def test_columns_keep_their_names_and_places(recommender: Recommender, name: str) -> None:
    store = store_of(recommender, name)
    first = dict(store.columns())
    assert first
    recommender.step(Batches(seq=8, ends=dict.fromkeys([0], 240))([Event("u1", "i9"), Event("new", "new")]))
    second = store.columns()
    assert list(second) == list(first)
    assert all(second[key] is first[key] for key in first)
    assert len({id(column) for column in first.values()}) == len(first)


@pytest.mark.parametrize("name", STORES)
def test_columns_fit_the_tables_and_hold_only_numbers(recommender: Recommender, name: str) -> None:
    state = recommender.state
    rows = {"user": state.users.capacity, "item": state.items.capacity}
    for key, column in store_of(recommender, name).columns().items():
        if column.axis != "none":
            assert column.data.shape[0] == rows[column.axis], key
        assert np.isfinite(column.data).all(), key
        if column.of_items:
            assert column.data.dtype == np.int32
            assert column.fill == -1
            assert column.data.min() >= -1
            assert column.data.max() < state.items.capacity


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("axis", ["user", "item"])
def test_growing_keeps_what_is_there_and_adds_empty_rows(
    recommender: Recommender, name: str, axis: Any
) -> None:
    store = store_of(recommender, name)
    before, weight = copied(store), nbytes([store])
    grow([store], axis, 1500)
    for key, column in store.columns().items():
        rows = before[key].shape[0]
        np.testing.assert_array_equal(column.data[:rows], before[key], err_msg=key)
        assert column.data.dtype == before[key].dtype
        if column.axis == axis:
            assert column.data.shape[0] == 1500
            assert (column.data[rows:] == column.fill).all()
        else:
            assert column.data.shape == before[key].shape
    assert nbytes([store]) >= weight
    grow([store], axis, 10)
    assert all(c.data.shape[0] >= before[key].shape[0] for key, c in store.columns().items())


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("axis", ["user", "item"])
def test_clearing_resets_these_rows_and_no_others(recommender: Recommender, name: str, axis: Any) -> None:
    store, rows = store_of(recommender, name), np.array([2, 5, 6])
    before = copied(store)
    clear([store], axis, rows)
    for key, column in store.columns().items():
        if column.axis == axis:
            assert (column.data[rows] == column.fill).all(), key
            others = np.setdiff1d(np.arange(column.data.shape[0]), rows)
            np.testing.assert_array_equal(column.data[others], before[key][others], err_msg=key)
        else:
            np.testing.assert_array_equal(column.data, before[key], err_msg=key)


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("axis", ["user", "item"])
def test_scrubbing_takes_doomed_items_out_of_a_stretch_and_nothing_else(
    recommender: Recommender, name: str, axis: Any
) -> None:
    store = store_of(recommender, name)
    before, doomed = copied(store), np.zeros(recommender.state.items.capacity, np.bool_)
    doomed[::2] = True
    scrub([store], axis, 1, 7, doomed)
    for key, column in store.columns().items():
        expected = before[key].copy()
        if column.axis == axis and column.of_items:
            for row in range(1, 7):
                for place in np.ndindex(expected.shape[1:]):
                    if expected[row][place] >= 0 and expected[row][place] % 2 == 0:
                        expected[row][place] = -1
        np.testing.assert_array_equal(column.data, expected, err_msg=key)


def test_a_fresh_row_is_an_empty_row() -> None:
    for name in STORES:
        model = name.removeprefix("model.")
        fresh = recommender_of(model if name.startswith("model.") else "attention")
        for key, column in store_of(fresh, name).columns().items():
            if column.axis != "none" and not (name == "users" or key in ("table",)):
                assert (column.data[3:] == column.fill).all(), f"{name}.{key}"


def test_a_column_is_shared_by_all_who_read_it() -> None:
    column = Column(np.zeros(2), "item")

    class One:
        def columns(self) -> dict[str, Column]:
            return {"one": column}

    grow([One()], "item", 4)
    assert column.data.shape == (4,)


class Ready:
    """A model and a batch that it is to score and learn; every item that may be shown is a candidate."""

    def __init__(self, recommender: Recommender) -> None:
        state = recommender.state
        raw = shoppers(
            np.random.default_rng(4), Batches(seq=8), 1, size=30, window=30, types=("click", "buy")
        )[0]
        self.batch: Batch = state.admit(raw)
        self.queries: Queries = lesson_queries(state, self.batch)
        self.model: Model = recommender.models[0]
        self.targets: Targets = recommender._targets(self.batch, self.queries)
        self.pool: Pool = recommender.pools.lesson(self.queries, self.model.lists, 8)


@pytest.fixture(params=MODELS)
def ready(request: pytest.FixtureRequest) -> Ready:
    return Ready(lived(request.param, exclude=["buy"], items=36, window=20))


def columns_of(ready: Ready) -> dict[str, Array]:
    return {name: column.data.copy() for name, column in ready.model.columns().items()}


def test_scoring_changes_nothing_and_gives_the_same_again(ready: Ready) -> None:
    first = ready.model.score(ready.queries, ready.pool)
    before = columns_of(ready)
    second = ready.model.score(ready.queries, ready.pool)
    ready.model.contributions(ready.queries, ready.pool.candidates.rows, ready.pool)
    np.testing.assert_array_equal(first, second)
    for name, array in columns_of(ready).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_learning_tests_with_the_scores_of_before_its_update(ready: Ready) -> None:
    scores, found = ready.model.score(ready.queries, ready.pool).copy(), ready.pool.candidates
    learned = ready.model.learn(ready.queries, ready.pool, ready.targets)
    tested, judged = learned.tested, 0
    for b, target in enumerate(ready.targets.row_B.tolist()):
        if target < 0:
            continue
        rows = found.rows[b, : found.count[b]].tolist()
        assert tested.candidates_B[b] == len(rows)  # all that may be shown is a candidate here
        mine, own = scores[b, : len(rows)], scores[b, rows.index(target)]
        near = np.isclose(mine, own, rtol=1e-5, atol=1e-6)  # one product of matrices, or one row at a time
        near[rows.index(target)] = False
        above = (mine[~near] > own).sum()
        assert above <= tested.greater_B[b]
        assert tested.greater_B[b] + tested.equal_B[b] <= above + near.sum()
        judged += 1
    assert judged > 5
    name = ready.model.name
    assert learned.skipped == ("" if name in PARAMETERS else "no_parameters")
    moved = not np.array_equal(scores, ready.model.score(ready.queries, ready.pool))
    assert moved == (name not in COUNTING)


def test_contributions_sum_to_the_score(ready: Ready) -> None:
    scores, found = ready.model.score(ready.queries, ready.pool), ready.pool.candidates
    parts = ready.model.contributions(ready.queries, found.rows, ready.pool)
    assert parts.shape == (*found.rows.shape, ready.queries.items_BL.shape[1] + 1)
    for b in range(found.rows.shape[0]):
        n, length = found.count[b], ready.queries.length_B[b]
        np.testing.assert_allclose(parts[b, :n].sum(1), scores[b, :n], rtol=1e-3, atol=1e-4)
        assert (parts[b, :n, length:-1] == 0).all()  # an empty place adds nothing


def test_figures_are_finite_and_fit_the_batch(ready: Ready) -> None:
    learned = ready.model.learn(ready.queries, ready.pool, ready.targets)
    size = ready.batch.user_B.size
    assert all(column.shape == (size,) for column in learned.tested if column is not None)
    assert (learned.skipped == "") == np.isfinite(learned.loss)
    assert np.isfinite(learned.gradient_norm)
    for name, array in columns_of(ready).items():
        assert np.isfinite(array).all(), name


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_is_no_trouble(name: str) -> None:
    recommender = lived(name)
    before = digests(recommender.state)
    outcome = recommender.step(Batches(seq=8, ends={0: 240})([]))
    assert (outcome.rankings, outcome.metrics.learned, outcome.metrics.skipped) == (
        [], 0, "no_target" if name.startswith(PARAMETERS) else "no_parameters",
    )  # fmt: skip
    assert digests(recommender.state)["digest_users"] == before["digest_users"]


@pytest.mark.parametrize("name", MODELS)
def test_rankings_are_the_best_scores_of_what_may_be_shown(name: str) -> None:
    recommender = lived(name, exclude=["buy"], items=36, window=20)
    state = recommender.state
    outcome = recommender.step(
        shoppers(np.random.default_rng(4), Batches(seq=8), 1, size=30, window=20, types=TYPES)[0]
    )
    model = recommender.models[0]
    assert model.name == name.split()[0] == outcome.rankings[0].model
    for ranking in outcome.rankings:
        row = np.array([state.users.row_of[ranking.user_id]], np.int32)
        queries = serving_queries(state, row)
        pool = recommender.pools.candidates(queries, model.lists)
        found, scores = pool.candidates, model.score(queries, pool)[0]
        n = int(found.count[0])
        live = set(np.flatnonzero(state.items.status.data == LIVE).tolist())
        assert set(found.rows[0, :n].tolist()) == live - set(
            state.consumed.of(int(row[0]), state.items.status.data).tolist()
        )
        order = np.lexsort((found.rows[0, :n], -scores[:n]))[:5]
        values = [item.score for item in ranking.items]
        np.testing.assert_allclose(values, scores[order], rtol=1e-4, atol=1e-5)
        assert [item.item_id for item in ranking.items] == names_of(state, state.served.items.data[row[0]])
        if np.diff(np.sort(scores[:n])).min(initial=1) > 1e-4:
            assert [item.item_id for item in ranking.items] == names_of(state, found.rows[0, order])


def test_a_first_embedding_comes_from_the_id_and_from_no_row() -> None:
    one, two = recommender_of(), recommender_of()
    batches = Batches(), Batches()
    one.step(batches[0]([Event("u", f"i{n}", "impression") for n in range(6)]))
    two.step(batches[1]([Event("u", f"i{n}", "impression") for n in reversed(range(6))]))
    tables = [r.state.stores["model.attention"].columns()["table"].data[:, :8] for r in (one, two)]
    rows = [[r.state.items.row_of[f"i{n}"] for n in range(6)] for r in (one, two)]
    assert rows[0] != rows[1]
    np.testing.assert_array_equal(tables[0][rows[0]], tables[1][rows[1]])
    held = tables[0][rows[0]]
    assert len(np.unique(held)) == held.size
    assert 0.05 < held.std() < 0.2


def test_batches_are_learned_in_order() -> None:
    recommender, batches = recommender_of(), Batches()
    raw = batches([Event("u", "a")])
    recommender.step(raw)
    with pytest.raises(ValueError, match=r"batch 0: expected 1; batches are learned in order, each once"):
        recommender.step(raw)

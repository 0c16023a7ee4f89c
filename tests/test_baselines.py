"""Baselines' ranks, against brute force over all items."""

from collections.abc import Callable

import numpy as np
import pytest
from harness.streams import Batches, move_on, new_state, shoppers, small_settings
from pipeline.models.baselines.counts import HALF_LIFE_COLUMNS, PopularityModel
from pipeline.ranking.pools import Pools
from pipeline.state.popularity import P1000
from pipeline.state.successors import REACH

from pipeline.events.batch import Batch
from pipeline.models.baselines.neighbours import KNN_FADE, ItemKnnModel, Neighbours
from pipeline.models.model import Model, Targets
from pipeline.models.registry import Value, build_model
from pipeline.settings import POSITIVE, LimitsConfig
from pipeline.state import reclaiming as sweep
from pipeline.state.queries import Queries, barred_targets
from pipeline.state.state import State
from pipeline.state.tables import LIVE

Scores = np.ndarray  # type: ignore[type-arg]  # [M], float32
SETTINGS = small_settings()


def popularity_scores(model: PopularityModel, queries: Queries, b: int) -> Scores:
    return model.stored().copy()


def spoken_scores(model: Neighbours, queries: Queries, b: int) -> Scores:
    """Base and entries added up, in the same order: equal sums must be equal here too."""
    out = model.back_off.base(model.popularity)
    spoken = model.spoken(queries)
    for e in range(spoken.border_B[b], spoken.border_B[b + 1]):
        out[spoken.row_E[e]] += spoken.value_E[e]
    return out


def _model(name: str, **setting: Value) -> Callable[[State], Model]:
    return lambda state: build_model(name, state, SETTINGS, setting)


MODELS = {
    f"popularity {name}": (_model("recent_popularity", half_life=name), popularity_scores)
    for name in (*HALF_LIFE_COLUMNS, "50")
} | {
    "markov": (_model("markov", half_life="50"), spoken_scores),
    "item-knn directed": (_model("item_knn"), spoken_scores),
    "item-knn undirected": (_model("item_knn", directed=False), spoken_scores),
    "item-knn fading": (_model("item_knn", directed=False, half_life="80", popularity="24h"), spoken_scores),
    "session-knn": (_model("session_knn"), spoken_scores),
    "session-knn after": (_model("session_knn", after=True, gap_minutes=0), spoken_scores),
}


def targets_of(queries: Queries, batch: Batch) -> Targets:
    """What the recommender makes of a batch: positive events, unbarred, of known items."""
    tested = (batch.role_B == POSITIVE) & ~barred_targets(queries, batch.item_B)
    rows = np.where(tested & batch.known_B, batch.item_B, -1).astype(np.int32)
    counted = np.where(batch.role_B == POSITIVE, batch.item_B, -1).astype(np.int32)
    return Targets(rows, batch.weight_B, tested, batch.known_B, batch.seq, counted)


def copied(state: State) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Every column of the state."""
    return {
        f"{name}.{key}": column.data.copy()
        for name, store in state.stores.items()
        for key, column in store.columns().items()
    }


def pools_of(state: State, repeats: bool) -> Pools:
    return Pools(state.counts, state.items, 5, repeats, 0)


@pytest.mark.parametrize("exclude", [None, [], ["buy"]], ids=["all bar", "repeats", "buys bar"])
@pytest.mark.parametrize(("make", "score_all"), MODELS.values(), ids=MODELS.keys())
def test_ranks_are_those_of_brute_force(make, score_all, exclude, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sweep, "BATCH_OF_GONE", 5)
    state = new_state(small_settings(exclude=exclude, limits=LimitsConfig(items=35)))
    model: Model = make(state)
    state.register("model", model)
    rng, seen = np.random.default_rng(6), {"tests": 0, "ties": 0, "barred": 0, "dead": 0}

    def check(batch: Batch, queries: Queries) -> None:
        targets = targets_of(queries, batch)
        pool = pools_of(state, exclude is not None).lesson(queries, model.lists, batch.seq)
        before = copied(state)
        scored = [score_all(model, queries, b) for b in range(len(batch.user_B))]
        tested = model.learn(queries, pool, targets).tested
        for name, array in copied(state).items():
            if name.startswith("model."):
                continue  # its own counts go on
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        live = state.items.status.data == LIVE
        for b, row in enumerate(targets.row_B.tolist()):
            mine = (tested.greater_B[b], tested.equal_B[b], tested.candidates_B[b])
            if row < 0:
                assert mine == (0, 0, 0)
                continue
            scores = scored[b]
            barred = queries.barred[queries.border_B[b] : queries.border_B[b + 1]]
            shown = [m for m in np.flatnonzero(live).tolist() if m not in barred]
            greater = sum(scores[m] > scores[row] for m in shown)
            equal = sum(scores[m] == scores[row] for m in shown if m != row)
            assert mine == (greater, equal, len(shown))
            seen["tests"] += 1
            seen["ties"] += int(equal > 0)
            seen["barred"] += len(barred)
            seen["dead"] += int((~live[barred[barred >= 0]]).sum())

    for raw in shoppers(
        rng, Batches(), 20, size=20, users=8, window=30, pace=4, types=("click", "buy", "dislike")
    ):
        move_on(state, raw, check)
    assert seen["tests"] > 60
    assert seen["ties"] > 5
    if exclude != []:
        assert seen["barred"] > 50
        assert seen["dead"] > 5


@pytest.mark.parametrize(("make", "score_all"), MODELS.values(), ids=MODELS.keys())
def test_candidates_are_scored_as_by_brute_force_and_contributions_sum_to_it(make, score_all) -> None:  # type: ignore[no-untyped-def]
    state = new_state(small_settings(exclude=[]))
    model: Model = make(state)
    state.register("model", model)
    raws = shoppers(np.random.default_rng(8), Batches(), 10, users=6, window=30)

    def learn(batch: Batch, queries: Queries) -> None:
        pool = pools_of(state, True).lesson(queries, model.lists, batch.seq)
        model.learn(queries, pool, targets_of(queries, batch))

    for raw in raws[:-1]:
        move_on(state, raw, learn)

    def check(batch: Batch, queries: Queries) -> None:
        pools = pools_of(state, True)
        pools.popular.update(np.empty(0, np.int32))
        pool = pools.candidates(queries, model.lists)
        found = model.score(queries, pool)
        rows = pool.candidates.rows
        shown = np.where(np.arange(rows.shape[1]) < pool.candidates.count[:, None], rows, -1)
        parts = model.contributions(queries, shown, pool)
        for b in range(len(batch.user_B)):
            scores = score_all(model, queries, b)
            if isinstance(model, PopularityModel):
                scores = model.values()
            for c in range(pool.candidates.count[b]):
                np.testing.assert_allclose(found[b, c], scores[rows[b, c]], rtol=1e-5)
                np.testing.assert_allclose(parts[b, c].sum(), scores[rows[b, c]], rtol=1e-5)

    move_on(state, raws[-1], check)


def test_item_knn_explains_a_score_by_the_item_that_led_to_it() -> None:
    state = new_state(small_settings(exclude=[]))
    model = ItemKnnModel(state.successors, state.popularity, state.items)
    for raw in shoppers(np.random.default_rng(9), Batches(), 12, users=5, window=20):
        moved = move_on(state, raw)
    queries = moved.queries
    pool = pools_of(state, True).candidates(queries, model.lists)
    parts = model.contributions(queries, pool.candidates.rows, pool)
    s = state.successors
    share = state.popularity.stored.data[:, P1000] / state.popularity.total.data[P1000]
    for b in range(queries.user_B.size):
        for c in range(min(6, int(pool.candidates.count[b]))):
            m = pool.candidates.rows[b, c]
            np.testing.assert_allclose(parts[b, c, -1], share[m], rtol=1e-4)
            for k in range(min(int(queries.length_B[b]), REACH)):
                h = queries.items_BL[b, k]
                slots = np.flatnonzero(s.partner.data[h] == m)
                weight = s.forward.data[h, slots[0]] if slots.size else 0.0
                np.testing.assert_allclose(parts[b, c, k], KNN_FADE**k * weight, rtol=1e-5)

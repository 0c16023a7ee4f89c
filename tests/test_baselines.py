"""Baselines' ranks, against brute force over all items."""

from collections.abc import Callable

import numpy as np
import pytest
from streams import Batches, move_on, new_state, shoppers, small_settings

from pipeline.event.batch import Batch
from pipeline.rank.pools import Pools
from pipeline.settings import POSITIVE, LimitsConfig
from pipeline.state import sweep
from pipeline.state.queries import Queries, barred_targets
from pipeline.state.state import State
from pipeline.state.successors import REACH
from pipeline.state.tables import LIVE
from pipeline.train.baselines import HALF_LIFE_COLUMNS, KNN_FADE, ItemKnnModel, PopularityModel
from pipeline.train.model import Model, Targets

Scores = np.ndarray  # type: ignore[type-arg]  # [M], float32


def popularity_scores(model: PopularityModel, queries: Queries, b: int) -> Scores:
    return model.popularity.stored.data[:, model.column].copy()


def knn_scores(model: ItemKnnModel, queries: Queries, b: int) -> Scores:
    """The summed weights of every item, in the same order of additions: equal sums must be equal here too."""
    s = model.successors
    out = np.zeros(model.items.capacity, np.float32)
    fade = np.float32(1)
    for k in range(min(int(queries.length_B[b]), REACH)):
        h = queries.items_BL[b, k]
        for slot, m in enumerate(s.partner.data[h].tolist()):
            if m >= 0:
                weight = s.forward.data[h, slot]
                out[m] += fade * (weight if model.directed else weight + s.backward.data[h, slot])
        fade = np.float32(fade * np.float32(KNN_FADE))
    return out


def _popularity(half_life: str) -> Callable[[State], Model]:
    return lambda state: PopularityModel(state.popularity, state.items, half_life, "popularity")


MODELS = {f"popularity {name}": (_popularity(name), popularity_scores) for name in HALF_LIFE_COLUMNS} | {
    "item-knn directed": (lambda s: ItemKnnModel(s.successors, s.items), knn_scores),
    "item-knn undirected": (lambda s: ItemKnnModel(s.successors, s.items, directed=False), knn_scores),
}


def targets_of(queries: Queries, batch: Batch) -> Targets:
    """What the recommender makes of a batch: positive events, unbarred, of known items."""
    tested = (batch.role_B == POSITIVE) & ~barred_targets(queries, batch.item_B)
    rows = np.where(tested & batch.known_B, batch.item_B, -1).astype(np.int32)
    return Targets(rows, batch.weight_B, tested, batch.known_B, batch.seq)


def copied(state: State) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Every column of the state."""
    return {
        f"{name}.{key}": column.data.copy()
        for name, store in state.stores.items()
        for key, column in store.columns().items()
    }


def pools_of(state: State, repeats: bool) -> Pools:
    return Pools(state.popularity, state.successors, state.items, 5, repeats, 0)


@pytest.mark.parametrize("exclude", [None, [], ["buy"]], ids=["all bar", "repeats", "buys bar"])
@pytest.mark.parametrize(("make", "score_all"), MODELS.values(), ids=MODELS.keys())
def test_ranks_are_those_of_brute_force(make, score_all, exclude, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sweep, "BATCH_OF_GONE", 5)
    state = new_state(small_settings(exclude=exclude, limits=LimitsConfig(items=35)))
    model: Model = make(state)
    rng, seen = np.random.default_rng(6), {"tests": 0, "ties": 0, "barred": 0, "dead": 0}

    def check(batch: Batch, queries: Queries) -> None:
        targets = targets_of(queries, batch)
        pool = pools_of(state, exclude is not None).lesson(queries, model.lists, batch.seq)
        before = copied(state)
        tested = model.learn(queries, pool, targets).tested
        for name, array in copied(state).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        live = state.items.status.data == LIVE
        for b, row in enumerate(targets.row_B.tolist()):
            mine = (tested.greater_B[b], tested.equal_B[b], tested.candidates_B[b])
            if row < 0:
                assert mine == (0, 0, 0)
                continue
            scores = score_all(model, queries, b)
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
    raws = shoppers(np.random.default_rng(8), Batches(), 10, users=6, window=30)
    for raw in raws[:-1]:
        move_on(state, raw)

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
                scores = scores / np.float32(model.popularity.gain.data[model.column])
            for c in range(pool.candidates.count[b]):
                np.testing.assert_allclose(found[b, c], scores[rows[b, c]], rtol=1e-5)
                np.testing.assert_allclose(parts[b, c].sum(), scores[rows[b, c]], rtol=1e-5)

    move_on(state, raws[-1], check)


def test_item_knn_explains_a_score_by_the_item_that_led_to_it() -> None:
    state = new_state(small_settings(exclude=[]))
    model = ItemKnnModel(state.successors, state.items)
    for raw in shoppers(np.random.default_rng(9), Batches(), 12, users=5, window=20):
        moved = move_on(state, raw)
    queries = moved.queries
    pool = pools_of(state, True).candidates(queries, model.lists)
    parts = model.contributions(queries, pool.candidates.rows, pool)
    s = state.successors
    for b in range(queries.user_B.size):
        for c in range(min(6, int(pool.candidates.count[b]))):
            m = pool.candidates.rows[b, c]
            for k in range(min(int(queries.length_B[b]), REACH)):
                h = queries.items_BL[b, k]
                slots = np.flatnonzero(s.partner.data[h] == m)
                weight = s.forward.data[h, slots[0]] if slots.size else 0.0
                np.testing.assert_allclose(parts[b, c, k], KNN_FADE**k * weight, rtol=1e-5)

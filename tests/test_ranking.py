"""The K best of each query's candidates and their reasons, against a sort and a plain sum by item."""

import math

import numpy as np
from harness.streams import Batches, Event, small_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.block import Candidates
from pipeline.ranking.lists import LEAST_SHARE, REASONS, reasons
from pipeline.ranking.top_k import top_k
from pipeline.recommender import Recommender
from pipeline.settings import RankConfig

score = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, math.inf, -math.inf, math.nan])


query = st.lists(score, max_size=12) | st.lists(score, min_size=150, max_size=200)


@given(st.lists(query, max_size=4), st.integers(1, 10), st.integers(0, 99))
@settings(max_examples=150)
def test_the_best_come_first_and_equal_scores_by_row(queries: list[list[float]], k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indptr = np.cumsum([0, *map(len, queries)])
    rows = np.concatenate([np.empty(0, int), *(rng.permutation(300)[: len(each)] for each in queries)])
    scores = np.array([value for each in queries for value in each], np.float32)
    nothing = np.zeros((rows.size, 0), np.float32)
    places, values = top_k(scores, Candidates(rows.astype(np.int32), indptr, nothing, nothing), k)
    assert places.shape == values.shape == (len(queries), k)
    for b, query in enumerate(queries):
        eligible = [n for n in range(indptr[b], indptr[b + 1]) if scores[n] > -math.inf]  # NaN is not
        best = sorted(eligible, key=lambda n: (-scores[n], rows[n]))[:k]
        assert places[b].tolist() == best + [-1] * (k - len(best)), query
        assert values[b].tolist() == [*scores[best].tolist(), *[0.0] * (k - len(best))]


def plain_reasons(parts: list[float], items: list[int], row: int) -> list[int]:
    if row < 0:
        return []
    sums: dict[int, float] = {}
    for part, item in zip(parts, items, strict=False):
        if item < 0:
            break
        sums[item] = sums.get(item, 0.0) + part
    sums.pop(row, None)
    good = {item: part for item, part in sums.items() if part > 0}
    least = LEAST_SHARE * sum(good.values())
    best = sorted(good, key=lambda item: -good[item])  # stable: the newer of two equal ones first
    return [item for item in best if good[item] > least][:REASONS]


part = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])
window = st.lists(st.tuples(st.integers(0, 6), part), max_size=8)


@given(st.lists(st.tuples(window, st.integers(-1, 6)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_the_strongest_items_are_the_reasons(queries: list[tuple[list[tuple[int, float]], int]]) -> None:
    length = 8
    items = np.full((len(queries), length), -1, np.int32)
    parts = np.full((len(queries), 1, length + 1), 50, np.float32)  # the rest and empty places: no reason
    for b, (window, _) in enumerate(queries):
        for place, (item, part) in enumerate(window):
            items[b, place], parts[b, 0, place] = item, part
    rows = np.array([[row] for _, row in queries], np.int32)
    found = reasons(parts, items, rows)
    for b, (_, row) in enumerate(queries):
        expected = plain_reasons(parts[b, 0].tolist(), items[b].tolist(), row)
        assert found[b, 0].tolist() == expected + [-1] * (REASONS - len(expected))


def test_a_planted_pair_is_the_reason() -> None:
    recommender, batches = Recommender(small_settings()), Batches()
    for n in range(12):
        recommender.step(
            batches([Event(f"u{n}", "cause"), Event(f"u{n}", "effect"), Event(f"v{n}", f"other{n}")])
        )
    outcome = recommender.step(batches([Event("new", "cause")]))
    (ranking,) = [ranking for ranking in outcome.rankings if ranking.user_id == "new"]
    assert ranking.items[0].item_id == "effect"
    assert ranking.items[0].because == ["cause"]


def test_reasons_can_be_switched_off() -> None:
    settings_ = small_settings()
    rank = RankConfig(k=5, explain=False)
    recommender = Recommender(type(settings_)(model=settings_.model, rank=rank))
    outcome = recommender.step(Batches()([Event("u", "a"), Event("v", "b"), Event("u", "c")]))
    assert {tuple(item.because) for ranking in outcome.rankings for item in ranking.items} == {()}

"""The best of each query's candidates, against a sort."""

import math

import numpy as np
import pytest
from harness.streams import Batches, Event, move_on, new_state, small_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline.features.memories import Candidates
from pipeline.ranking.rules import RULES, apply_rules

from pipeline.ranking.top_k import top_k
from pipeline.state.queries import serving_queries
from pipeline.state.tables import RETIRED

score = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, math.inf, -math.inf, math.nan])


@given(
    st.lists(st.lists(st.tuples(score, st.booleans()), max_size=12), min_size=1, max_size=4),
    st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_the_best_come_first_and_equal_scores_by_row(queries: list[list[tuple[float, bool]]], k: int) -> None:
    width = 14
    rng = np.random.default_rng(len(queries) * 7 + k)
    scores = np.full((len(queries), width), 99, np.float32)  # slots past the count mean nothing
    rows = np.full((len(queries), width), -1, np.int32)
    for b, query in enumerate(queries):
        numbers = rng.permutation(40)[: len(query)]
        for c, (value, empty) in enumerate(query):
            scores[b, c], rows[b, c] = value, -1 if empty else numbers[c]
    count = np.array([len(query) for query in queries], np.int32)
    found, values = top_k(scores, rows, count, k)
    for b, query in enumerate(queries):
        pairs = [
            (-float(scores[b, c]), int(rows[b, c]))
            for c in range(len(query))
            if rows[b, c] >= 0 and not math.isnan(scores[b, c]) and scores[b, c] != -math.inf
        ]
        expected = sorted(pairs)[:k]
        assert found[b].tolist() == [row for _, row in expected] + [-1] * (k - len(expected))
        assert values[b, : len(expected)].tolist() == [-value for value, _ in expected]


@pytest.mark.parametrize("size", [0, 1, 200])
def test_candidates_of_any_number_are_sorted(size: int) -> None:
    rng = np.random.default_rng(size)
    scores = rng.integers(0, 20, (3, 200)).astype(np.float32)
    rows = np.stack([rng.permutation(500)[:200] for _ in range(3)]).astype(np.int32)
    found, _ = top_k(scores, rows, np.full(3, size, np.int32), 10)
    for b in range(3):
        order = np.lexsort((rows[b, :size], -scores[b, :size]))[:10]
        assert found[b, : len(order)].tolist() == rows[b, order].tolist()


def test_rules_let_only_live_items_through() -> None:
    state, batches = new_state(small_settings()), Batches()
    move_on(state, batches([Event("u", name) for name in "abc"]))
    state.items.status.data[1] = RETIRED
    candidates = Candidates(
        np.array([[0, 1, 2, -1]], np.int32), np.array([3], np.int32), np.zeros((1, 4, 6), np.float32)
    )
    scores = np.array([[1, 2, 3, 4]], np.float32)
    queries = serving_queries(state, np.array([1], np.int32))
    found = apply_rules(RULES, state, queries, candidates, scores)
    assert found.tolist() == [[1, -math.inf, 3, -math.inf]]
    assert scores.tolist() == [[1, 2, 3, 4]]

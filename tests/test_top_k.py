"""The K best of each query's candidates, against a sort."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.block import Candidates
from pipeline.ranking.top_k import top_k

score = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, math.inf, -math.inf, math.nan])


@given(
    st.lists(
        st.one_of(st.lists(score, max_size=12), st.lists(score, min_size=150, max_size=200)), max_size=4
    ),
    st.integers(1, 10),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
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

"""Rank metrics against slow oracles: every order of the equal scores, plain lists, every cutoff, segment."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.rank_metrics import CUTOFFS, MEASURES, RankMetrics, expected_gains, gains_of
from pipeline.models.model import RankResult

Array = np.ndarray


def batch_of(greater, equal=None, tests=None, known=None):
    n = len(greater)
    return RankResult(
        greater_B=np.array(greater, np.int64),
        equal_B=np.array([0] * n if equal is None else equal, np.int64),
        candidates_B=np.full(n, 100, np.int64),
        tested_B=np.array([True] * n if tests is None else tests, bool),
        known_B=np.array([True] * n if known is None else known, bool),
        below_B=np.full(n, 0.5, np.float32),
    )


def random_batch(seed: int = 0, size: int = 400) -> tuple[RankResult, Array, Array]:
    """Return tests with ties, unknown items and events that are none; which users are cold, items new."""
    rng = np.random.default_rng(seed)
    greater, equal = rng.geometric(0.06, size) - 1, rng.integers(0, 4, size) * rng.integers(0, 2, size)
    tested, known = rng.random(size) < 0.8, rng.random(size) < 0.7
    below = rng.random(size).astype(np.float32)
    result = RankResult(greater, equal, greater + equal + 30, tested, known, below)
    return result, rng.random(size) < 0.4, rng.integers(0, 2, size).astype(np.float64)


def gains_by_places(greater, equal, k):
    """Take the mean over the places that the target can have."""
    places = range(greater + 1, greater + equal + 2)
    inside = [place for place in places if place <= k]
    return (
        len(inside) / len(places),
        sum(1 / math.log2(place + 1) for place in inside) / len(places),
        sum(1 / place for place in inside) / len(places),
    )


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=8), st.integers(1, 25)
)
def test_gains_are_the_mean_over_all_places_among_equal_scores(counts, k):
    greater, equal = zip(*counts, strict=True)
    gains = expected_gains(greater, equal, k)
    expected = [gains_by_places(g, e, k) for g, e in counts]
    assert np.stack(gains, axis=1) == pytest.approx(np.array(expected), abs=1e-12)


steps = st.lists(
    st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.booleans(), st.booleans()), max_size=7),
    max_size=9,
)


def run_steps(metrics, batches):
    for batch in batches:
        greater, tests, known, cold = zip(*batch, strict=True) if batch else ((), (), (), ())
        result = batch_of(greater, tests=tests, known=known)
        metrics.update("a", result, np.array(cold, bool), np.zeros(len(batch)))
    return metrics


@given(steps, st.integers(1, 12))
def test_metrics_equal_those_of_plain_lists(batches, window):
    metrics = run_steps(RankMetrics(["a"], window), batches)
    rows = [
        (float(known and greater < 10), cold) for b in batches for greater, test, known, cold in b if test
    ]
    segments = {"all": [True, False], "cold": [True], "warm": [False]}
    ratios, cumulative = metrics.ratios(), metrics.cumulative()["a"]
    for segment, wanted in segments.items():
        recent = [hit for hit, cold in rows[-window:] if cold in wanted]
        ever = [hit for hit, cold in rows if cold in wanted]
        if recent:
            assert ratios["a", "hr", segment] == pytest.approx(np.mean(recent))
        else:
            assert ("a", "hr", segment) not in ratios
        found = cumulative if segment == "all" else cumulative[segment]
        assert found["tests"] == len(ever)
        assert found["hr@10"] == pytest.approx(np.mean(ever) if ever else 0.0)


def test_every_cutoff_segment_and_measure_is_the_mean_of_the_gains():
    metrics, batches = RankMetrics(["a", "b"]), [random_batch(seed) for seed in range(3)]
    for batch in batches:
        metrics.update("a", *batch)
    tested, cold, new = (
        np.concatenate(column)
        for column in zip(*((result.tested_B, *flags) for result, *flags in batches), strict=True)
    )
    masks = {"all": tested, "cold": cold, "warm": ~cold, "new": new > 0, "old": new == 0}
    for k in CUTOFFS:
        gains = np.concatenate([np.stack(gains_of(result, k), axis=1) for result, *_ in batches])
        for place, measure in enumerate(("hr", "ndcg")):
            assert metrics.at_cutoffs("a")[f"{measure}@{k}"] == pytest.approx(np.mean(gains[tested, place]))
        for segment, mask in masks.items() if k == 10 else ():
            found, expected = metrics.of_segment("a", segment), gains[mask & tested]
            assert found["tests"] == len(expected) > 50
            assert [found[f"{each}@10"] for each in MEASURES] == pytest.approx(expected.mean(axis=0).tolist())
    whole = metrics.cumulative()["a"]
    assert (whole["cold"], whole["warm"]) == tuple(metrics.of_segment("a", each) for each in ("cold", "warm"))
    assert set(metrics.at_cutoffs("b").values()) == {0.0}
    totals = metrics.totals()
    assert totals.tests_MS[0, 0] == tested.sum()
    assert totals.sums_MSF[0, 0] / tested.sum() == pytest.approx([whole[f"{each}@10"] for each in MEASURES])


@given(st.lists(st.integers(0, 99), max_size=4), st.lists(st.integers(0, 99), max_size=4), st.integers(1, 60))
def test_a_checkpoint_in_between_changes_no_bit(before, after, window):
    whole = RankMetrics(["a", "b"], window)
    for seed in before:
        whole.update("a", *random_batch(seed, 30))
    whole.update_list_hits(np.array([True, False, False]))
    restored = RankMetrics(["new", "b", "a"], window)
    restored.load(whole.arrays())
    for metrics in (whole, restored):
        for seed in after:
            metrics.update("a", *random_batch(seed, 30))
        metrics.update_list_hits(np.array([True]))
    arrays = restored.arrays()
    assert all(array.tobytes() == arrays[name].tobytes() for name, array in whole.arrays().items())
    assert restored.cumulative()["a"] == whole.cumulative()["a"]
    assert restored.curve("a").auc == pytest.approx(whole.curve("a").auc, rel=0, abs=0, nan_ok=True)
    assert restored.cumulative()["new"]["tests"] == restored.curve("new").tests == 0


def test_the_hit_rate_of_published_lists_counts_the_events_of_users_with_a_list():
    metrics = RankMetrics(["a", "b"], window=2)
    assert ("a", "served_hr", "all") not in metrics.ratios()
    metrics.update_list_hits(np.array([True, True, False, True]))
    assert metrics.list_hits() == (4, 0.75)
    assert metrics.ratios()["a", "served_hr", "all"] == 0.5
    assert ("b", "served_hr", "all") not in metrics.ratios()

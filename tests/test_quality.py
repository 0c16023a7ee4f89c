"""The judge against slow oracles: every order of the equal scores, plain lists, plain sets."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.quality import Coverage, Quality, between, expected_gains, gains_of
from pipeline.models.tested import RankResult


def batch_of(greater, equal=None, tests=None, known=None):
    n = len(greater)
    return RankResult(
        greater_B=np.array(greater, np.int64),
        equal_B=np.array([0] * n if equal is None else equal, np.int64),
        candidates_B=np.full(n, 100, np.int64),
        tested_B=np.array([True] * n if tests is None else tests, bool),
        known_B=np.array([True] * n if known is None else known, bool),
    )


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
    gains = expected_gains(np.array(greater), np.array(equal), k)
    expected = [gains_by_places(g, e, k) for g, e in counts]
    assert np.stack(gains, axis=1) == pytest.approx(np.array(expected), abs=1e-12)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_gains_are_the_mean_over_every_shuffle_of_a_scored_list(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    hits, ndcgs = [], []
    for order in itertools.permutations(
        range(len(scores))
    ):  # a stable sort of a shuffle: equal scores in that order
        place = sorted(order, key=lambda item: -scores[item]).index(target) + 1
        hits.append(place <= 2)
        ndcgs.append(1 / math.log2(place + 1) if place <= 2 else 0.0)
    greater = sum(score > scores[target] for score in scores)
    equal = sum(score == scores[target] for score in scores) - 1
    gains = expected_gains(np.array([greater]), np.array([equal]), k=2)
    assert gains.hit_B[0] == pytest.approx(np.mean(hits))
    assert gains.ndcg_B[0] == pytest.approx(np.mean(ndcgs))


def test_random_scores_hit_ten_times_in_as_many_candidates():
    assert expected_gains(np.array([0]), np.array([399])).hit_B[0] == pytest.approx(10 / 400)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"-1 \(equal\).*expected 0 or more"):
        expected_gains(np.array([0]), np.array([-1]))


def test_an_unknown_item_is_a_miss_and_an_untested_event_is_nothing():
    batch = batch_of([0, 0, -7], [0, 0, -7], tests=[True, True, False], known=[True, False, True])
    gains = gains_of(batch)
    assert gains.hit_B[:2].tolist() == [1.0, 0.0]
    assert np.isnan(gains.hit_B[2])
    quality = Quality(["a"])
    quality.update("a", batch, np.zeros(3, bool))
    assert quality.cumulative()["a"]["tests"] == 2
    assert quality.cumulative()["a"]["hr@10"] == 0.5


steps = st.lists(
    st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.booleans(), st.booleans()), max_size=7),
    max_size=9,
)


def run_steps(quality, batches):
    for batch in batches:
        greater, tests, known, cold = zip(*batch, strict=True) if batch else ((), (), (), ())
        quality.update("a", batch_of(greater, tests=tests, known=known), np.array(cold, bool))
    return quality


@given(steps, st.integers(1, 12))
def test_figures_equal_those_of_plain_lists(batches, window):
    quality = run_steps(Quality(["a"], window), batches)
    rows = [
        (float(known and greater < 10), cold) for b in batches for greater, test, known, cold in b if test
    ]
    segments = {"all": [True, False], "cold": [True], "warm": [False]}
    ratios, cumulative = quality.ratios(), quality.cumulative()["a"]
    for segment, wanted in segments.items():
        recent = [hit for hit, cold in rows[-window:] if cold in wanted]
        ever = [hit for hit, cold in rows if cold in wanted]
        if recent:
            assert ratios["a", "hr", segment] == pytest.approx(np.mean(recent))
        else:
            assert ("a", "hr", segment) not in ratios
        figures = cumulative if segment == "all" else cumulative[segment]
        assert figures["tests"] == len(ever)
        assert figures["hr@10"] == pytest.approx(np.mean(ever) if ever else 0.0)


@given(steps, steps, st.integers(1, 12))
def test_a_checkpoint_in_between_changes_no_figure(before, after, window):
    whole = run_steps(Quality(["a"], window), before)
    whole.update_served(np.array([True, False, False]))
    restored = Quality(["a"], window)
    restored.load(whole.arrays())
    for quality in (whole, restored):
        run_steps(quality, after)
        quality.update_served(np.array([True]))
    assert restored.cumulative() == whole.cumulative()
    assert restored.ratios() == whole.ratios()
    assert restored.served() == whole.served()


@given(steps, steps)
def test_a_quarter_holds_the_tests_between_its_borders(before, after):
    quality = run_steps(Quality(["a"]), before)
    border = quality.cumulative()["a"]
    quarter = between(border, run_steps(quality, after).cumulative()["a"])
    alone = run_steps(Quality(["a"]), after).cumulative()["a"]
    for part, expected in (
        (quarter, alone),
        (quarter["cold"], alone["cold"]),
        (quarter["warm"], alone["warm"]),
    ):
        assert part["tests"] == expected["tests"]
        assert part["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=1e-12)


def test_served_hit_rate_counts_the_events_of_users_with_a_list():
    quality = Quality(["a", "b"], window=2)
    assert ("a", "served_hr", "all") not in quality.ratios()
    quality.update_served(np.array([True, True, False, True]))
    assert quality.served() == (4, 0.75)
    assert quality.ratios()["a", "served_hr", "all"] == 0.5
    assert ("b", "served_hr", "all") not in quality.ratios()


def test_models_are_kept_apart_and_a_new_one_starts_from_zero():
    old = Quality(["a"])
    old.update("a", batch_of([0]), np.zeros(1, bool))
    new = Quality(["b", "a"])
    new.load(old.arrays())
    assert new.cumulative()["a"]["hr@10"] == 1.0
    assert new.cumulative()["b"]["tests"] == 0


def test_cumulative_figures_are_json():
    quality = Quality(["a"])
    quality.update("a", batch_of([0, 3]), np.array([True, False]))
    assert json.loads(json.dumps(quality.cumulative()))["a"]["cold"] == {
        "tests": 1, "hr@10": 1.0, "ndcg@10": 1.0, "mrr@10": 1.0
    }  # fmt: skip


@pytest.mark.parametrize("models", [[], ["a", "a"]])
def test_models_must_be_named_once_each(models):
    with pytest.raises(ValueError, match="one or more names, each once"):
        Quality(models)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="window 0: expected 1"):
        Quality(["a"], window=0)


lists = st.lists(st.lists(st.lists(st.integers(-1, 9), min_size=3, max_size=3), max_size=4), max_size=8)


@given(lists, st.sets(st.integers(0, 9)), lists, st.integers(1, 10))
def test_coverage_equals_that_of_the_lists_written_out(before, freed, after, size):
    coverage = Coverage(lists=size)
    for update in before:
        coverage.update(np.array(update, np.int64).reshape(-1, 3))
    coverage.clear(np.array(sorted(freed), np.int64))
    restored = Coverage(lists=size)
    restored.load(coverage.arrays())
    for update in after:
        restored.update(np.array(update, np.int64).reshape(-1, 3))
    kept = [[row for row in rows if row not in freed] for update in before for rows in update]
    shown = {
        row for rows in (kept + [rows for update in after for rows in update])[-size:] for row in rows
    } - {-1}
    live = np.array([0, 1, 2, 5, 9, 3_000])
    assert restored.ratio(live) == pytest.approx(len(shown & set(live.tolist())) / len(live))


def test_coverage_of_no_items_is_zero():
    assert Coverage().ratio(np.array([], np.int64)) == 0.0


def test_coverage_over_no_list_is_refused():
    with pytest.raises(ValueError, match="lists 0: expected 1"):
        Coverage(lists=0)

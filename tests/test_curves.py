"""ROC and precision-recall curves against plain counting, and against samples of non-clicks one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.curves import EDGES_E, NEGATIVES, CurveHistogram


@st.composite
def ranks(draw):
    others = draw(st.integers(0, 40))
    greater = draw(st.integers(0, others))
    equal = draw(st.integers(0, others - greater))
    return greater, equal, others, draw(st.booleans()), draw(st.booleans())


def curve_of(rows):
    """Return the curve of rows of (greater, equal, others, is a test, is known)."""
    histogram = CurveHistogram()
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    histogram.update(*(column[columns[3]] for column in (*columns[:3], columns[4])))
    return histogram.curve()


@given(st.lists(ranks(), min_size=1, max_size=12))
def test_every_edge_counts_the_places_at_its_depth_or_above(rows):
    counted = [(g, e, n) for g, e, n, test, known in rows if test and known and n]
    curve = curve_of(rows)
    assert curve.tests == len(counted)
    assert curve.unknown == sum(test and not known for *_, test, known in rows)
    if not counted:
        assert np.isnan(curve.auc)
        assert np.isnan(curve.tpr_E).all()
        return
    for edge, found in zip(EDGES_E.tolist(), curve.tpr_E.tolist(), strict=True):
        shares = [np.mean([place <= edge * n for place in range(g, g + e + 1)]) for g, e, n in counted]
        assert found == pytest.approx(np.mean(shares), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=9), min_size=1, max_size=6))
def test_the_area_is_the_chance_that_the_target_beats_a_random_other(scores):
    wins, rows = [], []
    for target, *others in scores:
        wins.append(np.mean([(target > other) + (target == other) / 2 for other in others]))
        greater, equal = sum(other > target for other in others), others.count(target)
        rows.append((greater, equal, len(others), True, True))
    assert curve_of(rows).auc == pytest.approx(np.mean(wins))


def test_precision_is_that_of_sampled_non_clicks():
    """Draw 100 of each test's other items, and count what stands above a depth."""
    rng = np.random.default_rng(0)
    others = 400
    greater = np.minimum((others * rng.random(2_000) ** 3).astype(int), others)
    curve = curve_of([(g, 0, others, True, True) for g in greater.tolist()])
    # an item's place, and a random point within it: the depth at which it comes to be shown
    sampled = (rng.integers(0, others, (2_000, NEGATIVES)) + rng.random((2_000, NEGATIVES))) / others
    for edge in range(100, len(EDGES_E), 7):
        depth = EDGES_E[edge]
        clicks, others_shown = np.sum(greater <= depth * others), np.sum(sampled <= depth)
        assert curve.tpr_E[edge] == pytest.approx(clicks / 2_000)
        assert curve.precision_E[edge] == pytest.approx(clicks / (clicks + others_shown), abs=0.015)


def test_average_precision_is_one_for_a_perfect_order_and_the_base_rate_for_a_random_one():
    perfect = curve_of([(0, 0, 50, True, True)] * 20)
    assert (perfect.auc, perfect.average_precision) == (1.0, 1.0)
    random = curve_of([(place, 0, 5_000, True, True) for place in range(5_001)])
    assert random.auc == pytest.approx(0.5)
    assert random.average_precision == pytest.approx(1 / (1 + NEGATIVES), rel=0.1)


def test_average_precision_is_that_of_the_curve_in_fine_steps():
    rng = np.random.default_rng(1)
    greater = np.sort((10_000 * rng.random(3_000) ** 4).astype(int))
    curve = curve_of([(g, 0, 10_000, True, True) for g in greater.tolist()])
    hits = np.arange(1, 3_001) / 3_000
    assert curve.average_precision == pytest.approx(
        np.mean(hits / (hits + NEGATIVES * greater / 10_000)), rel=0.01
    )


def test_scores_that_are_no_numbers_stand_below_all():
    curve = curve_of([(8, 0, 7, True, True)])
    assert curve.auc == 0.0
    assert curve.tpr_E[-2:].tolist() == [0.0, 1.0]

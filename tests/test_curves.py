"""ROC and precision-recall curves against plain counting, and against samples of non-clicks one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.curves import EDGES_E, NEGATIVES, CurveHistogram


def curve_of(below, known=None):
    """Return the curve of tests with these shares of items below the target."""
    histogram = CurveHistogram()
    below = np.asarray(below, np.float64)
    every = np.ones(len(below), bool)
    histogram.update(below, every, every if known is None else np.asarray(known, bool))
    return histogram.curve()


shares = st.fractions(0, 1, max_denominator=40).map(float)


@given(st.lists(st.tuples(shares | st.just(np.nan), st.booleans()), min_size=1, max_size=12))
def test_every_edge_counts_the_targets_at_its_depth_or_above(rows):
    depths = [1 - below for below, known in rows if known and np.isfinite(below)]
    curve = curve_of(*zip(*rows, strict=True))
    assert (curve.tests, curve.unknown) == (len(depths), sum(not known for _, known in rows))
    if not depths:
        assert np.isnan(curve.auc)
        assert np.isnan(curve.tpr_E).all()
        return
    assert curve.auc == pytest.approx(1 - np.mean(depths))
    for edge, found in zip(EDGES_E.tolist(), curve.tpr_E.tolist(), strict=True):
        assert found == pytest.approx(np.mean([depth <= edge for depth in depths]), abs=1e-12)


def test_precision_is_that_of_sampled_non_clicks():
    """Draw 100 of each test's other items, and count what stands above a depth."""
    rng = np.random.default_rng(0)
    depth = rng.random(2_000) ** 3
    curve, sampled = curve_of(1 - depth), rng.random((2_000, NEGATIVES))
    for edge in range(100, len(EDGES_E), 7):
        clicks, others = np.sum(depth <= EDGES_E[edge]), np.sum(sampled <= EDGES_E[edge])
        assert curve.tpr_E[edge] == pytest.approx(clicks / 2_000)
        assert curve.precision_E[edge] == pytest.approx(clicks / (clicks + others), abs=0.015)


def test_average_precision_is_one_for_a_perfect_order_and_the_base_rate_for_a_random_one():
    perfect = curve_of([1.0] * 20)
    assert (perfect.auc, perfect.average_precision) == (1.0, 1.0)
    random = curve_of(np.linspace(0, 1, 5_001))
    assert random.auc == pytest.approx(0.5)
    assert random.average_precision == pytest.approx(1 / (1 + NEGATIVES), rel=0.1)


def test_average_precision_is_that_of_the_curve_in_fine_steps():
    depth = np.sort(np.random.default_rng(1).random(3_000) ** 4)
    hits = np.arange(1, 3_001) / 3_000
    expected = np.mean(hits / (hits + NEGATIVES * depth))
    assert curve_of(1 - depth).average_precision == pytest.approx(expected, rel=0.01)

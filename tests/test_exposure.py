"""What lists show: counts against lists written out, the Gini coefficient against all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.exposure import Exposure, gini

lists = st.lists(st.lists(st.lists(st.integers(-1, 9), min_size=3, max_size=3), max_size=4), max_size=6)
counts = st.lists(st.integers(0, 20), min_size=1, max_size=30)


def updated(exposure, updates):
    for update in updates:
        exposure.update(np.array(update, np.int32).reshape(-1, 3))
    return exposure


@given(lists, st.sets(st.integers(0, 9)), lists, st.integers(1, 10))
def test_counts_and_coverage_equal_those_of_the_lists_written_out(before, freed, after, window):
    exposure = updated(Exposure(window), before)
    exposure.clear(np.array(sorted(freed), np.int64))
    restored = Exposure(window)
    restored.load(exposure.arrays())
    updated(restored, after)
    shown = [[row for row in rows if row not in freed] for update in before for rows in update]
    shown += [rows for update in after for rows in update]
    rows = np.array([0, 1, 2, 5, 9, 3_000])
    assert restored.of(rows).tolist() == [sum(each.count(row) for each in shown) for row in rows.tolist()]
    assert restored.lists == len(shown)
    covered = {row for each in shown[-window:] for row in each} & set(rows.tolist())
    assert restored.coverage(rows) == pytest.approx(len(covered) / len(rows))


def test_coverage_of_no_items_is_zero():
    assert Exposure().coverage(np.array([], np.int64)) == 0.0


@given(counts)
def test_gini_is_the_mean_difference_of_all_pairs_over_twice_the_mean(values):
    x = np.array(values, np.float64)
    expected = np.abs(x[:, None] - x).mean() / (2 * x.mean()) if x.sum() else 0.0
    assert gini(x) == pytest.approx(expected, abs=1e-12)

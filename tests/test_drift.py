"""Drift alarms: only a change for the worse counts, and neither batches nor restarts change any."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import drift
from pipeline.evaluation.drift import DriftWatch, likeliest_change, scaled_loss
from pipeline.models.model import RankResult

WARM_UP_TESTS = drift.TESTS_PER_VALUE * drift.WARM_UP_VALUES


def flips(rate, events, seed):
    """Return the hits of a model with this hit rate."""
    return (np.random.default_rng(seed).random(events) < rate).astype(np.float64)


def hit_alarms(hits, watch=None, at_event=0):
    nothing = np.full(len(hits), np.nan)
    return (watch or DriftWatch()).update(hits, nothing, nothing, at_event, now_ms=7)


def test_a_halved_hit_rate_raises_one_alarm_soon_with_both_means():
    (alarm,) = hit_alarms(np.concatenate((flips(0.3, 20_000, 1), flips(0.15, 5_000, 2))))
    assert 20_000 < alarm.at_event <= 21_600
    assert (alarm.detector, alarm.signal, alarm.detected_at_ms) == ("adwin", "hit_rate", 7)
    assert alarm.before == pytest.approx(0.3, abs=0.02)
    assert alarm.after == pytest.approx(0.15, abs=0.05)


def test_a_rising_loss_raises_an_alarm_and_a_falling_one_none():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0.2, 0.9, 20_000), rng.uniform(0.5, 1.0, 20_000)
    none = np.full(40_000, np.nan)
    (alarm,) = DriftWatch().update(none, np.concatenate((low, high)), none, 0, 0)
    assert alarm.signal == "loss"
    assert 20_000 < alarm.at_event < 21_000
    assert DriftWatch().update(none, np.concatenate((high, low)), none, 0, 0) == []


@pytest.mark.parametrize(
    "rates",
    [
        np.concatenate((np.linspace(0, 0.4, 10_000), np.full(20_000, 0.4))),  # learns from zero
        10 / (10 + np.arange(20_000) / 20),  # ever more items for ten places, and no preference at all
    ],
    ids=["learning from zero", "a catalogue that fills"],
)
def test_what_happens_at_the_very_start_raises_no_alarm(rates):
    assert hit_alarms((np.random.default_rng(3).random(len(rates)) < rates).astype(np.float64)) == []


def test_a_sudden_improvement_is_no_alarm_but_a_fall_from_it_is():
    rates = flips(0.1, 10_000, 4), flips(0.4, 10_000, 5), flips(0.1, 5_000, 6)
    (alarm,) = hit_alarms(np.concatenate(rates))
    assert alarm.at_event > 20_000
    assert alarm.before == pytest.approx(0.4, abs=0.03)


def test_events_that_are_no_test_count_as_events_but_not_as_misses():
    hits = np.full(60_000, np.nan)
    hits[::3] = np.concatenate((flips(0.3, 15_000, 1), flips(0.1, 5_000, 2)))
    (alarm,) = hit_alarms(hits, at_event=100)
    (dense,) = hit_alarms(hits[::3])
    assert alarm.at_event == 100 + 3 * (dense.at_event - 1) + 1


COURSE = ((0.4, WARM_UP_TESTS + 1_500), (0.02, 1_500), (0.5, 1_500), (0.02, 1_500))
FALLS = np.concatenate([flips(*part, seed) for seed, part in enumerate(COURSE, 11)])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, len(FALLS) - 1), max_size=12), st.integers(0, 12))
def test_batch_borders_and_a_restart_at_any_of_them_change_no_alarm(borders, restart):
    expected = hit_alarms(FALLS)
    assert len(expected) == 2
    watch, alarms = DriftWatch(), []
    edges = [0, *sorted(borders), len(FALLS)]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        if number == restart:
            restored = DriftWatch()
            restored.load(watch.arrays())
            watch = restored
        alarms += hit_alarms(FALLS[start:stop], watch, at_event=start)
    assert alarms == expected


def test_alarms_of_two_signals_come_in_order_of_events():
    hits = np.concatenate((flips(0.5, 8_000, 31), flips(0.02, 4_000, 32)))
    alarms = DriftWatch().update(hits, 1 - hits, np.full(12_000, np.nan), 0, 0)
    assert {alarm.signal for alarm in alarms} == {"hit_rate", "loss"}
    assert [alarm.at_event for alarm in alarms] == sorted(alarm.at_event for alarm in alarms)


def test_loss_is_a_share_of_that_of_chance_and_missing_where_there_is_no_test():
    zero_B, candidates_B, nan_B = np.zeros(5, np.int64), np.array([100, 100, 100, 100, 1]), np.full(5, np.nan)
    tested_B, known_B = np.array([1, 1, 0, 1, 1], bool), np.array([1, 1, 1, 0, 1], bool)
    loss_B = np.array([np.log(10), 50.0, 1.0, 1.0, 0.0], np.float32)
    result = RankResult(zero_B, zero_B, candidates_B, tested_B, known_B, nan_B, loss_B)
    assert scaled_loss(result) == pytest.approx([0.5, 1.0, np.nan, np.nan, 0.0], nan_ok=True)
    assert np.isnan(scaled_loss(result._replace(loss_B=None))).all()
    assert np.isnan(scaled_loss(result._replace(loss_B=np.full(5, np.inf, np.float32)))).all()


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=10, max_size=40))
def test_the_likeliest_change_parts_the_values_at_the_largest_difference(values):
    def contrast(border):
        head, tail = values[:border], values[border:]
        return abs(np.mean(head) - np.mean(tail)) / np.sqrt(1 / len(head) + 1 / len(tail))

    best = max(contrast(border) for border in range(5, len(values) - 4))
    assert contrast(likeliest_change(np.array(values))) == pytest.approx(best, abs=1e-9)

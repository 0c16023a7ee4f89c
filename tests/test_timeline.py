"""Metrics over time: few moments however long the stream, exact sums between, the same after a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.rank_metrics import MEASURES, USER_SEGMENTS, Totals
from pipeline.evaluation.timeline import MAX_ALARMS, Moment, Timeline
from pipeline.events.records import DriftAlarm


def moment_after(events: int, models: int = 1, time_ms: int = 0) -> Moment:
    """Return what has been counted when each event is a test that is worth its own number."""
    tests = np.full((models, len(USER_SEGMENTS)), events)
    sums = np.full((models, len(USER_SEGMENTS), len(MEASURES)), events * (events - 1) / 2)
    return Moment(events, time_ms, Totals(tests, sums, np.array([events, events // 2])), 0.25, 7)


def advance(timeline: Timeline, sizes: list[int], start: int = 0) -> int:
    """Add batches of these sizes; return the events so far."""
    at = start
    for size in sizes:
        at += size
        timeline.update(1_000 * at, [])
        if timeline.is_due(at):
            timeline.add(moment_after(at, time_ms=timeline.newest_ms))
    return at


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(4, 20))
def test_moments_stay_few_and_their_sums_exact(sizes: list[int], most: int) -> None:
    timeline = Timeline(["a"], most)
    at = advance(timeline, sizes)
    track = timeline.track(moment_after(at))
    assert len(track.events_N) <= most + 1
    assert (track.events_N[0], track.events_N[-1]) == (0, at)
    assert (np.diff(track.events_N) > 0).all()
    borders = track.borders(5)
    for start, stop, mean in zip(
        track.events_N[borders[:-1]], track.events_N[borders[1:]], track.means("a", 0, borders), strict=True
    ):
        assert mean == pytest.approx(np.arange(start, stop).mean())


@pytest.mark.parametrize("sizes", [[1] * 20_000, [512] * 4_000, [512] * 500 + [1] * 9_000, [1, 900] * 3_000])
def test_parts_are_of_about_equal_length_whatever_the_batches_were(sizes: list[int]) -> None:
    timeline = Timeline(["a"])
    at = advance(timeline, sizes)
    track = timeline.track(moment_after(at))
    lengths = np.diff(track.events_N[track.borders(60)])
    assert len(lengths) == 60
    assert lengths.max() <= 1.35 * at / 60
    assert lengths.min() >= 0.65 * at / 60


@given(st.lists(st.integers(0, 50), max_size=60), st.lists(st.integers(0, 50), max_size=60))
def test_a_checkpoint_in_between_changes_no_bit(before: list[int], after: list[int]) -> None:
    whole = Timeline(["a"], 8)
    at = advance(whole, before)
    whole.update(0, [DriftAlarm("adwin", "loss", at, 0.1, 1 / 3, 5, 0.25)])
    restored = Timeline(["a"], 8)
    restored.load(whole.arrays())
    for timeline in (whole, restored):
        advance(timeline, after, at)
    for name, array in whole.arrays().items():
        assert array.tobytes() == restored.arrays()[name].tobytes()
    assert restored.alarms == whole.alarms
    assert (restored.alarms[0].after, restored.alarms[0].reaction) == (1 / 3, 0.25)


def test_a_model_that_the_checkpoint_does_not_know_has_no_tests_before() -> None:
    old = Timeline(["a"])
    advance(old, [10] * 5)
    new = Timeline(["b", "a"])
    new.load(old.arrays())
    new.add(moment_after(60, models=2))
    track = new.track(moment_after(60, models=2))
    means = track.means("b", 0, range(len(track.events_N)))
    assert np.isnan(means[:-1]).all()
    assert [track.metrics(model, 0, 5)["tests"] for model in ("a", "b")] == [50, 0]


def test_the_newest_alarms_are_kept() -> None:
    timeline = Timeline(["a"])
    for at in range(1, MAX_ALARMS + 11):
        timeline.update(0, [DriftAlarm("adwin", "hit_rate", at, 0.4, 0.1, 0)])
    assert len(timeline.alarms) == MAX_ALARMS
    assert timeline.alarms[-1].at_event == MAX_ALARMS + 10

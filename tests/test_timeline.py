"""Figures over time: few moments however long the stream, exact sums between, the same after a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import Batches, small_settings
from streams import shoppers as stream

from pipeline.evaluation.quality import MEASURES, SEGMENTS, Totals
from pipeline.evaluation.timeline import ALARMS, Seen, Timeline
from pipeline.events.records import DriftAlarm
from pipeline.recommender import Recommender
from pipeline.state.shards import Snapshot


def seen_after(events: int, models: int = 1) -> Seen:
    """Return what has been counted when each event is a test that is worth its own number."""
    tests = np.full((models, len(SEGMENTS)), events)
    sums = np.full((models, len(SEGMENTS), len(MEASURES)), events * (events - 1) / 2)
    return Seen(Totals(tests, sums, np.array([events, events // 2])), 0.25, 7)


def lived(timeline: Timeline, sizes: list[int], start: int = 0) -> int:
    """Let batches of these sizes pass; return the events so far."""
    at = start
    for size in sizes:
        at += size
        timeline.update(at, 1_000 * at, [], lambda: seen_after(at))  # noqa: B023  # called at once
    return at


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(4, 20))
def test_moments_stay_few_and_their_sums_exact(sizes: list[int], most: int) -> None:
    timeline = Timeline(["a"], most)
    at = lived(timeline, sizes)
    track = timeline.track(at, seen_after(at))
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
    at = lived(timeline, sizes)
    track = timeline.track(at, seen_after(at))
    borders = track.borders(60)
    lengths = np.diff(track.events_N[borders])
    assert len(lengths) == 60
    assert lengths.max() <= 1.35 * at / 60
    assert lengths.min() >= 0.65 * at / 60


def test_looking_takes_place_only_when_a_moment_is_due() -> None:
    timeline, looks = Timeline(["a"], most=8), []
    for batch in range(1, 2_001):
        timeline.update(10 * batch, 0, [], lambda: looks.append(1) or seen_after(10 * batch))  # noqa: B023
    assert len(looks) < 60


@given(st.lists(st.integers(0, 50), max_size=60), st.lists(st.integers(0, 50), max_size=60))
def test_a_checkpoint_in_between_changes_no_bit(before: list[int], after: list[int]) -> None:
    whole = Timeline(["a"], most=8)
    at = lived(whole, before)
    whole.update(at, 0, [DriftAlarm("adwin", "loss", at, 0.1, 1 / 3, 5)], lambda: seen_after(at))
    restored = Timeline(["a"], most=8)
    restored.load(whole.arrays())
    for timeline in (whole, restored):
        lived(timeline, after, at)
    for name, array in whole.arrays().items():
        assert array.tobytes() == restored.arrays()[name].tobytes()
    assert restored.alarms == whole.alarms
    assert restored.alarms[0].after == 1 / 3


def test_a_model_that_the_checkpoint_does_not_know_has_no_tests_before() -> None:
    old = Timeline(["a"])
    lived(old, [10] * 5)
    new = Timeline(["b", "a"])
    new.load(old.arrays())
    new.update(60, 0, [], lambda: seen_after(60, models=2))
    track = new.track(60, seen_after(60, models=2))
    means = track.means("b", 0, range(len(track.events_N)))
    assert np.isnan(means[:-1]).all()
    assert track.figures(5, "a")["tests"] == 50
    assert track.figures(5, "b")["tests"] == 0


def test_the_newest_alarms_are_kept() -> None:
    timeline = Timeline(["a"])
    for at in range(1, ALARMS + 11):
        timeline.update(at, 0, [DriftAlarm("adwin", "hit_rate", at, 0.4, 0.1, 0)], lambda: seen_after(at))  # noqa: B023
    assert len(timeline.alarms) == ALARMS
    assert timeline.alarms[-1].at_event == ALARMS + 10


def test_too_few_moments_are_refused() -> None:
    with pytest.raises(ValueError, match="most 3: expected 4"):
        Timeline(["a"], most=3)


KEPT = ("timeline/", "curves/", "exposure/")


def test_a_recommender_restored_half_way_keeps_the_same_figures_bit_for_bit() -> None:
    raws = stream(np.random.default_rng(0), Batches(), 40, pace=1)
    whole = Recommender(small_settings())
    for raw in raws[:20]:
        whole.step(raw)
    restored = Recommender(small_settings())
    restored.restore(whole.snapshot())
    for raw in raws[20:]:
        whole.step(raw)
        restored.step(raw)
    one, other = whole.snapshot().arrays, restored.snapshot().arrays
    kept = [name for name in one if name.startswith(KEPT)]
    assert len(kept) == 4 + 2 * 3 + 2 * 3 + 2
    assert all(one[name].tobytes() == other[name].tobytes() for name in kept)
    assert whole.track().tests_NMS[-1, 0, 0] == whole.quality.cumulative()["attention"]["tests"] > 300
    assert whole.exposure.lists > 0
    assert whole.curves.curve("attention").tests > 300


def test_a_checkpoint_without_figures_over_time_starts_them_afresh() -> None:
    raws = stream(np.random.default_rng(0), Batches(), 12)
    old = Recommender(small_settings())
    for raw in raws[:6]:
        old.step(raw)
    saved = old.snapshot()
    arrays = {name: array for name, array in saved.arrays.items() if not name.startswith(KEPT)}
    restored = Recommender(small_settings())
    restored.restore(Snapshot(arrays, saved.meta, saved.shard))
    assert len(restored.track().events_N) == 1
    tests = restored.quality.cumulative()["attention"]["tests"]
    for raw in raws[6:]:
        restored.step(raw)
    track = restored.track()
    assert track.events_N[0] == 7 * 24
    assert track.tests_NMS[0, 0, 0] >= tests
    assert restored.curves.curve("attention").tests < restored.quality.cumulative()["attention"]["tests"]

"""Decayed counts, against counting all events again with the weights that they have by now."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from harness.streams import START_MS, Batches, Event, lessons, small_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.popularity import (
    ALL,
    DAY,
    HALF_LIVES,
    LISTED,
    P300,
    P1000,
    POSITION,
    WIDTH,
    Popularity,
    most_popular,
)
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.positions import DAY_MS, GAP_MS, POSITIONS, session_positions
from pipeline.state.tables import LIVE, IdTable

ITEMS = 6


class Count(NamedTuple):
    """One counted event."""

    item: int
    weight: float
    position: int
    time_ms: int


def add(popularity: Popularity, counts: list[Count]) -> None:
    items, weights, positions, times = (list(column) for column in zip(*counts, strict=True))
    taught = lessons(items, (), weights, positions=positions, times_ms=times)
    popularity.update(taught, np.full(ITEMS, LIVE, np.uint8), 0)


def dense(counts: list[Count]) -> np.ndarray:  # type: ignore[type-arg]
    """Every column [ITEMS, WIDTH], from all events so far; a pause counts as 60 days at most."""
    counts = [count for count in counts if count.item >= 0 and count.weight > 0]
    out = np.zeros((ITEMS, WIDTH))
    days, clock, at = 0.0, None, []
    for count in counts:
        if clock is not None and count.time_ms > clock:
            days += min((count.time_ms - clock) / DAY_MS, 60.0)
        clock = count.time_ms if clock is None else max(clock, count.time_ms)
        at.append(days)
    for i, count in enumerate(counts):
        for column in (ALL, P1000, P300, DAY, POSITION + count.position):
            age = days - at[i] if column == DAY else (len(counts) - i) / HALF_LIVES[column]
            out[count.item, column] += count.weight * 0.5**age
    return out


def held(popularity: Popularity) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([popularity.values(column) for column in range(WIDTH)], axis=1)


def check(popularity: Popularity, counts: list[Count]) -> None:
    expected = dense(counts)
    np.testing.assert_allclose(held(popularity), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        popularity.total.data / popularity.gain.data, expected.sum(0), rtol=1e-4, atol=1e-6
    )


counted = st.builds(
    Count,
    item=st.integers(-1, ITEMS - 1),
    weight=st.sampled_from([0.0, 1.0, 1.0, 0.25, 3.0]),
    position=st.integers(0, POSITIONS - 1),
    time_ms=st.integers(START_MS, START_MS + 40 * DAY_MS),
)


@given(st.lists(st.lists(counted, min_size=1, max_size=8), max_size=8))
@settings(max_examples=60, deadline=None)
def test_every_column_is_a_dense_count_of_all_events(batches: list[list[Count]]) -> None:
    popularity, seen = Popularity(ITEMS), list[Count]()
    for batch in batches:
        add(popularity, batch)
        seen += batch
        check(popularity, seen)


def test_counts_are_right_over_many_half_lives_and_rescalings() -> None:
    rng = np.random.default_rng(3)
    counts = [
        Count(int(rng.integers(ITEMS)), 1.0, int(rng.integers(POSITIONS)), START_MS + 30_000_000 * n)
        for n in range(21_000)
    ]
    popularity = Popularity(ITEMS)
    for first in range(0, len(counts), 500):
        add(popularity, counts[first : first + 500])
    assert popularity._rescaled >= 8  # seven columns of half-life 300, and the one-day column
    assert np.isfinite(popularity.stored.data).all()
    check(popularity, counts)


@pytest.mark.parametrize("pause_days", [50, 59, 61, 400])
def test_long_pauses_within_one_batch_leave_finite_counts(pause_days: int) -> None:
    counts = [Count(n % ITEMS, 5.0, 1, START_MS + n * pause_days * DAY_MS) for n in range(20)]
    popularity = Popularity(ITEMS)
    add(popularity, counts)
    assert np.isfinite(popularity.stored.data).all()
    check(popularity, counts)


def test_one_huge_batch_leaves_finite_counts() -> None:
    counts = [Count(n % ITEMS, 2.0, n % POSITIONS, START_MS) for n in range(60_000)]
    popularity = Popularity(ITEMS)
    add(popularity, counts)
    assert np.isfinite(popularity.stored.data).all()
    np.testing.assert_allclose(popularity.values(P300).sum(), 2 / (2 ** (1 / 300) - 1), rtol=1e-3)


def test_event_time_that_goes_back_takes_nothing_away() -> None:
    popularity = Popularity(ITEMS)
    add(popularity, [Count(0, 1, 0, START_MS + DAY_MS), Count(1, 1, 0, START_MS)])
    assert popularity.values(DAY)[:2].tolist() == [1.0, 1.0]
    add(popularity, [Count(2, 1, 0, START_MS + 2 * DAY_MS)])
    assert popularity.values(DAY)[:3].tolist() == [0.5, 0.5, 1.0]


def test_forgotten_items_are_taken_out_of_the_totals() -> None:
    popularity = Popularity(ITEMS)
    counts = [Count(n % 3, 1.0, n % POSITIONS, START_MS) for n in range(30)]
    add(popularity, counts)
    popularity.forget(np.array([1]))
    popularity.stored.data[1] = 0
    np.testing.assert_allclose(popularity.total.data, popularity.stored.data.sum(0), rtol=1e-5, atol=1e-5)


def plain_position(times: list[int], now_ms: int) -> int:
    """The position in words: no history; a pause; else the steps of this session before the newest one."""
    if not times:
        return 0
    if now_ms - times[0] >= GAP_MS:
        return 1
    steps = 0
    for newer, older in itertools.pairwise(times):
        if newer - older >= GAP_MS:
            break
        steps += 1
    return 2 if steps == 0 else 3 if steps == 1 else 4 if steps <= 4 else 5


@given(st.lists(st.sampled_from([0, 1000, GAP_MS - 1, GAP_MS, 9 * GAP_MS]), max_size=9))
@settings(max_examples=80, deadline=None)
def test_a_moments_position_is_its_place_in_the_session(gaps: list[int]) -> None:
    now, times = START_MS, list[int]()
    for gap in gaps:
        times.append((times[-1] if times else now) - gap)
    padded = np.array([times + [0] * (10 - len(times))], np.int64)
    found = session_positions(padded, np.array([len(times)], np.int32), np.array([now], np.int64))
    assert found.tolist() == [plain_position(times, now)]


@pytest.mark.parametrize("limit", [0, 300])
def test_popular_lists_are_a_full_sort_after_every_batch(limit: int) -> None:
    """Under eviction, while items are hidden and shown again, and when weights are rescaled."""
    recommender, batches = (
        Recommender(small_settings(name="popularity", limits=LimitsConfig(items=limit))),
        Batches(),
    )
    state, popularity, rng = recommender.state, recommender.bank.popularity, np.random.default_rng(5)
    shown_again = rescaled = 0
    for number in range(25):
        picked = (rng.random(60) ** 2 * 340).astype(int) + 3 * number
        if number == 11:
            popularity.gain.data[P300] *= 1e19  # rescaled with this batch
            popularity.stored.data[:, P300] *= np.float32(1e19)
            popularity.total.data[P300] *= 1e19
        before = popularity.gain.data[P300]
        events = [Event(f"u{n % 9}", f"i{item}") for n, item in enumerate(picked.tolist())]
        recommender.step(batches(events))
        rescaled += popularity.gain.data[P300] < before
        rows = rng.permutation(state.items.rows(list(state.items.row_of)))[:40]
        if number % 4 == 1:
            state.items.show(rows, False)
        if number % 4 == 3:
            shown_again += state.items.show(rows, True).size
        popularity.update_lists(np.empty(0, np.int32), state.items)
        check_lists(popularity, state.items)
        if number == 18:  # a restart
            snapshot, recommender = recommender.snapshot(), Recommender(recommender.settings)
            recommender.restore(snapshot)
            state, popularity = recommender.state, recommender.bank.popularity
            check_lists(popularity, state.items)
    assert shown_again > 5
    assert rescaled == 1


def check_lists(popularity: Popularity, items: IdTable) -> None:
    live = np.flatnonzero(items.status.data == LIVE)
    for column in range(WIDTH):
        stored = popularity.stored.data[:, column]
        order = sorted((-float(stored[row]), row) for row in live.tolist() if stored[row] > 0)
        rows = popularity.listed.data[column]
        size = int((rows >= 0).sum())
        assert size >= min(len(order), LISTED // 2)
        assert rows.tolist() == [row for _, row in order[:size]] + [-1] * (LISTED - size), column
        assert not popularity.complete.data[column] or len(order) == size
        longer = popularity.longer(column, 400, items).tolist()
        assert longer == sorted(live.tolist(), key=lambda row: (-stored[row], row))[:400]


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 40))
def test_the_most_popular_are_those_of_a_sort(values: list[int], count: int) -> None:
    rows = np.arange(len(values), dtype=np.int32) * 2
    best = most_popular(rows, np.array(values, np.float32), count).tolist()
    assert best == sorted(rows.tolist(), key=lambda row: (-values[row // 2], row))[:count]

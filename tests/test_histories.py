"""Histories and windows, against lists of everything that every user ever did."""

from typing import NamedTuple

import numpy as np
from harness.streams import START_MS, Batches, Event, move_on, names_of, new_state, small_settings
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import LimitsConfig
from pipeline.state.histories import Histories
from pipeline.state.queries import excluded_targets, list_queries
from pipeline.state.state import previous_of
from pipeline.state.tables import LIVE, NEW, RETIRED

USERS, ITEMS, LENGTH = 3, 8, 4


class Did(NamedTuple):
    user: int
    item: int
    kind: int
    push: bool


did = st.builds(
    Did,
    user=st.integers(0, USERS - 1),
    item=st.integers(-1, ITEMS - 1),
    kind=st.integers(0, 65_535),
    push=st.booleans(),
)
Past = list[tuple[int, int, int]]  # item, kind, time, newest first


def plain_window(past: Past, status: np.ndarray) -> Past:  # type: ignore[type-arg]
    return [entry for entry in past[:LENGTH] if status[entry[0]] in (LIVE, NEW)]


dying = st.lists(st.integers(0, ITEMS - 1), max_size=2)


@given(st.lists(st.tuples(st.lists(did, max_size=12), dying), max_size=8))
def test_windows_are_the_newest_places_of_the_whole_past(batches: list[tuple[list[Did], list[int]]]) -> None:
    histories, status = Histories(USERS, LENGTH), np.full(ITEMS, LIVE, np.uint8)
    past: dict[int, Past] = {user: [] for user in range(USERS)}
    repeats, newest = dict.fromkeys(range(USERS), 0), dict.fromkeys(range(USERS), 0)
    time_ms = START_MS
    for events, dying in batches:
        events = [event for event in events if event.item < 0 or status[event.item] == LIVE]
        user, item, kind = (np.array([e[i] for e in events], np.int32) for i in range(3))
        push = np.array([e.push for e in events], np.bool_)
        times = time_ms + 1000 * np.arange(len(events))
        windows = histories.windows(
            user, previous_of(user), item, kind.astype(np.uint16), times, push, status
        )
        items, kinds, whens, length = windows
        for b, event in enumerate(events):
            expected = plain_window(past[event.user], status)
            n = length[b]
            assert list(zip(items[b, :n], kinds[b, :n], whens[b, :n], strict=True)) == expected
            assert (items[b, n:] == -1).all()
            assert (whens[b, n:] == 0).all()
            newest[event.user] = max(newest[event.user], int(times[b]))
            if event.push and event.item >= 0:
                ring = [entry[0] for entry in past[event.user][:LENGTH]]
                repeats[event.user] += event.item in ring
                past[event.user].insert(0, (event.item, event.kind, int(times[b])))
        histories.push(user, item, kind.astype(np.uint16), times, push, times)
        for u in range(USERS):
            held, _, when, size = histories.latest(np.array([u], np.int32), status)
            n, expected = size[0], plain_window(past[u], status)
            assert held[0, :n].tolist() == [entry[0] for entry in expected]
            assert when[0, :n].tolist() == [entry[2] for entry in expected]
            assert histories.pushed.data[u] == len(past[u])
            assert histories.repeats.data[u] == repeats[u]
            assert histories.newest_ms.data[u] == newest[u]
        status[dying] = RETIRED
        time_ms += 100_000


def test_an_event_sees_the_earlier_events_of_its_own_batch() -> None:
    state, batches = new_state(small_settings()), Batches()
    move_on(state, batches([Event("u", "a"), Event("v", "x")]))
    events = [Event("u", "b"), Event("v", "y"), Event("u", "c", "dislike"), Event("u", "d")]
    moved = move_on(state, batches(events))
    seen = [names_of(state, row) for row in moved.queries.items_BL]
    assert seen == [["a"], ["x"], ["b", "a"], ["b", "a"]]
    assert moved.queries.earlier_B.tolist() == [1, 1, 2, 2]


def test_items_are_excluded_by_earlier_events_of_the_same_batch() -> None:
    state, batches = new_state(small_settings(exclude=["buy"])), Batches()
    events = [Event("u", "a", "buy")] * 2 + [Event("u", "b")] * 2 + [Event("v", "a")]
    moved = move_on(state, batches(events))
    assert excluded_targets(moved.queries, moved.batch.item_B).tolist() == [False, True, False, False, False]
    border = moved.queries.excluded_indptr
    excluded = [names_of(state, moved.queries.excluded[border[b] : border[b + 1]]) for b in range(5)]
    assert excluded == [[], ["a"], ["a"], ["a"], []]


def test_a_list_query_is_right_after_the_newest_interaction() -> None:
    state, batches = new_state(small_settings()), Batches()
    later = START_MS + 5000
    events = [Event("u", "a"), Event("u", "b", time_ms=later), Event("u", "c", "impression", later + 1)]
    move_on(state, batches(events))
    row = np.array([state.users.row_of["u"]], np.int32)
    queries = list_queries(state, row)
    assert names_of(state, queries.items_BL[0]) == ["b", "a"]
    assert queries.now_ms_B.tolist() == [later]
    assert state.histories.newest_ms.data[row[0]] == later + 1


def test_event_time_counts_up_to_now_only() -> None:
    state, batches = new_state(small_settings(limits=LimitsConfig(user_ttl_days=1))), Batches()
    ahead = START_MS + 80_000_000
    moved = move_on(state, batches([Event("u", "a", time_ms=ahead)], now_ms=START_MS))
    assert moved.batch.moment_ms_B.tolist() == [START_MS]
    assert moved.batch.time_ms_B.tolist() == [ahead]
    row = state.users.row_of["u"]
    times_BL = state.histories.latest(np.array([row], np.int32), state.items.status.data)[2]
    assert times_BL[0, 0] == START_MS
    assert state.users.last_ms.data[row] == START_MS

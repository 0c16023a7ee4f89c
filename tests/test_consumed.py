"""Consumed items in packed blocks, against a list a user."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.state.consumed import LIMIT, SMALLEST, Consumed
from pipeline.state.tables import LIVE, NEW, RETIRED, SWEPT

USERS, ITEMS = 4, 30
Events = list[tuple[int, int, bool]]  # user, item, whether it is to be added


def columns(events: Events) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    users, items, wanted = zip(*events, strict=True) if events else ([], [], [])
    return np.array(users, np.int32), np.array(items, np.int32), np.array(wanted, np.bool_)


def add_plainly(held: dict[int, list[int]], events: Events) -> None:
    for user, item, wanted in events:
        if wanted and item >= 0:
            held[user] = [other for other in held.get(user, []) if other != item] + [item]


def check(consumed: Consumed, held: dict[int, list[int]], status: np.ndarray) -> None:  # type: ignore[type-arg]
    known = (LIVE, NEW)
    for user in range(USERS):
        expected = [item for item in held.get(user, []) if status[item] in known]
        assert consumed.of(user, status).tolist() == expected
    users = np.array([2, 0, 2, 3], np.int32)
    values, border = consumed.ragged(users)
    for place, user in enumerate(users.tolist()):
        block = values[border[place] : border[place + 1]]
        alive = [item for item in block.tolist() if item >= 0 and status[item] in known]
        assert alive == consumed.of(user, status).tolist()
    start, room = consumed.start.data, consumed.room.data
    taken = sorted(zip(start[room > 0].tolist(), (start + room)[room > 0].tolist(), strict=True))
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(taken))


event = st.tuples(st.integers(0, USERS - 1), st.integers(-1, ITEMS - 1), st.booleans())
step = st.one_of(
    st.lists(event, max_size=40).map(lambda events: ("add", events)),
    st.integers(0, USERS - 1).map(lambda user: ("release", user)),
    st.lists(st.integers(0, ITEMS - 1), max_size=5).map(lambda rows: ("die", rows)),
    st.just(("sweep", None)),
)


@given(st.lists(step, max_size=20))
@settings(max_examples=80, deadline=None)
def test_blocks_hold_what_lists_hold(steps: list[tuple[str, object]]) -> None:
    consumed, status = Consumed(USERS), np.full(ITEMS, LIVE, np.uint8)
    held: dict[int, list[int]] = {}
    for kind, given_ in steps:
        if kind == "add":
            events = [e for e in given_ if e[1] < 0 or status[e[1]] == LIVE]  # type: ignore[attr-defined]
            consumed.add(*columns(events), status)
            add_plainly(held, events)
        elif kind == "release":
            consumed.release(np.array([given_]))
            for name in ("start", "size", "room"):
                column = consumed.columns()[name]
                column.data[given_] = column.fill
            held.pop(given_, None)  # type: ignore[call-overload]
        elif kind == "die":
            status[given_] = RETIRED
        else:
            dead = status == RETIRED
            for user in range(USERS):
                consumed.remove_references(user, user + 1, dead)
            status[dead] = LIVE  # reused for other items: no user has consumed those
            for user, items in held.items():
                held[user] = [item for item in items if not dead[item]]
        check(consumed, held, status)


def test_the_oldest_of_a_heavy_users_items_is_given_up_first() -> None:
    consumed, status = Consumed(2), np.full(5000, LIVE, np.uint8)
    for first in range(0, 2600, 130):
        consumed.add(*columns([(0, item, True) for item in range(first, first + 130)]), status)
    assert consumed.of(0, status).tolist() == list(range(1600, 2600))
    consumed.add(*columns([(0, 1700, True)]), status)
    assert consumed.of(0, status)[[0, -1]].tolist() == [1600, 1700]


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 24, LIMIT + 25, 3000])
def test_one_batch_of_one_user_stays_within_the_users_own_block(size: int) -> None:
    consumed, status = Consumed(3), np.full(5000, LIVE, np.uint8)
    consumed.add(*columns([(1, 7, True), (2, 8, True)]), status)
    consumed.add(*columns([(0, item, True) for item in range(size)]), status)
    consumed.add(*columns([(1, 9, True), (2, 10, True)]), status)
    assert consumed.of(0, status).tolist() == list(range(max(0, size - LIMIT), size))
    assert (consumed.of(1, status).tolist(), consumed.of(2, status).tolist()) == ([7, 9], [8, 10])


def test_what_a_block_drops_is_independent_of_reclaiming() -> None:
    contents = []
    for swept in (False, True):
        consumed, status = Consumed(1), np.full(50, LIVE, np.uint8)
        consumed.add(*columns([(0, item, True) for item in range(SMALLEST)]), status)
        status[[0, 2]] = SWEPT
        if swept:
            consumed.remove_references(0, 1, status == SWEPT)
        consumed.add(*columns([(0, item, True) for item in range(10, 25)]), status)
        sizes = consumed.size.data.tolist(), consumed.room.data.tolist()
        contents.append((consumed.of(0, status).tolist(), *sizes))
    assert contents[0] == contents[1]
    assert contents[0][0] == [1, 3, *range(10, 25)]


def test_released_blocks_are_used_again() -> None:
    consumed, status = Consumed(1), np.full(200, LIVE, np.uint8)
    for _ in range(300):
        consumed.add(*columns([(0, item, True) for item in range(100)]), status)
        consumed.release(np.array([0]))
        for column in consumed.columns().values():
            column.data[0] = column.fill
    assert consumed.values.size == 4096


def test_blocks_put_elsewhere_grow_as_they_would_have_here() -> None:
    status = np.full(400, LIVE, np.uint8)
    here, there = Consumed(2), Consumed(2)
    here.add(*columns([(0, item, True) for item in range(21)] + [(1, 5, True)]), status)
    users = np.array([0, 1], np.int32)
    there.put(np.array([1, 0], np.int32), *here.ragged(users), here.room.data.copy())
    for item in range(21, 90):
        here.add(*columns([(0, item, True)]), status)
        there.add(*columns([(1, item, True)]), status)
        assert here.of(0, status).tolist() == there.of(1, status).tolist()
        assert here.room.data[0] == there.room.data[1]
    assert there.of(0, status).tolist() == [5]

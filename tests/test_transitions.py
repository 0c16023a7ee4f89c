"""Bounded tables of partners and of sessions: what a full row keeps, and what is replaced."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from harness.streams import lessons
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.pair_table import PairTable
from pipeline.features.popularity import Popularity
from pipeline.features.sessions import PLACES, SessionIndex
from pipeline.features.transitions import SLOTS, Transitions
from pipeline.state.splitmix import next_uniform
from pipeline.state.tables import HIDDEN, LIVE, NEW, RETIRED, IdTable

ROWS, NEWCOMER = 64, 60
TABLES = ("transitions", "pairs", "pairs of both directions")


class Full:
    """Row 0 is full: the first partner has this weight, the others have twice as much."""

    def __init__(self, kind: str, weight: float) -> None:
        self.status = np.full(ROWS, LIVE, np.uint8)
        self.table: Any = PairTable(ROWS, 1, 1.0, np.inf, both=kind.endswith("directions"))
        if kind == "transitions":
            self.table = Transitions(IdTable("item", ROWS), Popularity(ROWS))
        self.weights = self.table.forward if kind == "transitions" else self.table.stored
        self.table.partner.data[0] = np.arange(1, SLOTS + 1)
        self.weights.data[0] = [weight, *[2 * weight] * (SLOTS - 1)]

    def add(self, weight: float, item: int = NEWCOMER, window: tuple[int, ...] = (0,), seed: int = 1) -> None:
        self.table.update(lessons([item], [window], [weight]), self.status, seed)

    def row(self) -> dict[int, float]:
        return dict(zip(self.table.partner.data[0].tolist(), self.weights.data[0].tolist(), strict=True))


@pytest.fixture(params=TABLES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_newcomer_as_heavy_as_the_weakest_takes_its_slot(kind: str) -> None:
    full = Full(kind, 1.0)
    full.add(1.0)
    assert full.table.partner.data[0].tolist() == [NEWCOMER, *range(2, SLOTS + 1)]
    assert full.weights.data[0].tolist() == [1.0, *[2.0] * (SLOTS - 1)]


@pytest.mark.parametrize("weight", [0.25, 0.75])
def test_a_light_newcomers_expected_weight_is_its_own(kind: str, weight: float) -> None:
    held, draws = [], 3000
    for seed in range(draws):
        full = Full(kind, 1.0)
        full.add(weight, seed=seed * 7919)
        row = full.row()
        held.append(row.get(NEWCOMER, 0.0))
        assert sum(row.values()) == 2 * SLOTS - 1
        assert row.get(NEWCOMER, 1.0) == 1.0
        assert (NEWCOMER in row) != (1 in row)
    assert abs(np.mean(held) - weight) < 4 * np.sqrt(weight * (1 - weight) / draws)


@pytest.mark.parametrize("status", [RETIRED, NEW, HIDDEN])
def test_the_slot_of_an_evicted_partner_is_taken_first(kind: str, status: int) -> None:
    for reclaimed in (False, True):
        full = Full(kind, 5.0)
        full.status[3] = status
        if reclaimed and status == RETIRED:
            full.table.partner.data[0, 2] = -1
        full.add(1e-6)
        taken = full.table.partner.data[0, 2] == NEWCOMER
        assert taken == (status == RETIRED)  # others are held as ever
        assert full.weights.data[0, 2] == np.float32(1e-6 if taken else 10)


def test_the_weakest_transition_is_the_least_in_both_directions_together() -> None:
    full = Full("transitions", 1.0)
    full.table.backward.data[0] = [3, 0.5, 0, *[0.5] * (SLOTS - 3)]
    full.add(2.0)
    assert full.table.partner.data[0, 2] == NEWCOMER
    assert (full.table.forward.data[0, 2], full.table.backward.data[0, 2]) == (2, 0)


def test_a_light_newcomer_of_the_backward_side_enters_backward() -> None:
    entered = 0
    for seed in range(400):
        full = Full("transitions", 1.0)
        full.add(0.5, 0, (NEWCOMER,), seed * 31)
        slots = full.table.partner.data[0].tolist()
        if NEWCOMER in slots:
            entered += 1
            slot = slots.index(NEWCOMER)
            assert (full.table.forward.data[0, slot], full.table.backward.data[0, slot]) == (0, 1)
    assert 140 < entered < 260


visit = st.tuples(st.integers(0, 9), st.integers(-1, 5), st.sampled_from([0.0, 1.0, 1.0, 1.0]))


@given(st.lists(st.lists(visit, max_size=25), max_size=6))
def test_the_session_index_holds_the_newest_sessions(batches: list[list[tuple[int, int, float]]]) -> None:
    """Five slots for nine sessions, their keys alike in the low bits: the oldest session is replaced."""
    index = SessionIndex(6, visits=3, sessions=5)
    kept: dict[int, list[int]] = {}  # by key, in order of their beginning
    visits: dict[int, list[int]] = defaultdict(list)
    for batch in batches:
        keys, items, weights = (np.array([each[i] for each in batch]) for i in range(3))
        keys = keys * 1024 + keys % 3 * (keys > 0)
        index.update(keys.astype(np.uint64), items.astype(np.int32), weights.astype(np.float32))
        for key, item, weight in zip(keys.tolist(), items.tolist(), weights.tolist(), strict=True):
            if key == 0 or item < 0 or weight == 0:
                continue
            if key not in kept:
                if len(kept) == 5:
                    oldest = next(iter(kept))
                    del kept[oldest]
                    for numbers in visits.values():  # what names a replaced session names nothing
                        numbers[:] = [0 if number == oldest else number for number in numbers]
                kept[key] = []
            if item not in kept[key][-PLACES:] and key not in visits[item][-3:]:
                visits[item].append(key)
            kept[key].append(item)
    held = index.index
    slots = {int(key): s for s, key in enumerate(held.key_N.tolist()) if key}
    assert slots.keys() == kept.keys()
    assert sorted(held.slot_T[held.slot_T >= 0].tolist()) == sorted(slots.values())
    numbers = [int(held.number_N[slots[key]]) for key in kept]
    assert numbers == sorted(numbers)
    for key, items in kept.items():
        s = slots[key]
        assert held.steps_N[s] == len(items)
        places = [held.items_NP[s, step % PLACES] for step in range(len(items))][-PLACES:]
        assert places == items[-PLACES:]
    for item in range(6):
        assert held.visited_M[item] == len(visits[item])
        for v, key in enumerate(visits[item][::-1][:3]):
            number = int(held.visits_MR[item, (len(visits[item]) - 1 - v) % 3])
            assert (held.number_N[number % 5] == number) == (key != 0)
            assert key in (0, held.key_N[number % 5])


def test_uniform_numbers_are_those_of_splitmix64_and_even() -> None:
    def plain(state: int) -> tuple[int, float]:
        mask = (1 << 64) - 1
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return state, ((z ^ (z >> 31)) >> 11) / 2**53

    state, expected_state, drawn = np.uint64(12345), 12345, []
    for _ in range(2000):
        state, number = next_uniform(np.uint64(state))
        expected_state, expected = plain(expected_state)
        assert (int(state), number) == (expected_state, expected)
        drawn.append(number)
    assert abs(np.mean(drawn) - 0.5) < 4 / np.sqrt(12 * 2000)

"""Successor tables, against a dense matrix of weights and lists of contexts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline.state.successors import BEFORE, FADE, REACH, Successors

from pipeline.state.splitmix import next_uniform
from pipeline.state.tables import LIVE, NEW, RETIRED

ITEMS, LENGTH = 7, 12
Step = tuple[int, float, list[int]]  # item, weight, the window before it, newest first


def add(successors: Successors, steps: list[Step], status: np.ndarray, seed: int = 1) -> None:  # type: ignore[type-arg]
    window = np.full((len(steps), LENGTH), -1, np.int32)
    for b, (_, _, before) in enumerate(steps):
        window[b, : len(before)] = before
    successors.add(
        np.array([item for item, _, _ in steps], np.int32),
        np.array([weight for _, weight, _ in steps], np.float32),
        window,
        np.array([len(before) for _, _, before in steps], np.int32),
        status,
        seed,
    )


def dense(successors: Successors, items: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    forward, backward = np.zeros((items, items)), np.zeros((items, items))
    for row in range(items):
        for slot, partner in enumerate(successors.partner.data[row]):
            if partner >= 0:
                forward[row, partner] += successors.forward.data[row, slot]
                backward[row, partner] += successors.backward.data[row, slot]
    return forward, backward


item = st.integers(0, ITEMS - 1)
step = st.tuples(
    st.integers(-1, ITEMS - 1), st.sampled_from([0.0, 1.0, 1.0, 2.5]), st.lists(item, max_size=LENGTH)
)


@given(st.lists(step, max_size=30), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_weights_are_exact_while_rows_have_room(steps: list[Step], batch: int) -> None:
    successors, status = Successors(ITEMS, slots=ITEMS, contexts=4), np.full(ITEMS, LIVE, np.uint8)
    status[3] = NEW
    forward, backward = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    count, followed, contexts = np.zeros(ITEMS), np.zeros(ITEMS), [list[list[int]]() for _ in range(ITEMS)]
    for m, weight, before in steps:
        if m < 0 or weight == 0:
            continue
        count[m] += weight
        for k, h in enumerate(before[:REACH]):
            forward[h, m] += weight * FADE**k
            backward[m, h] += weight * FADE**k
            followed[h] += weight * FADE**k
        if before:
            contexts[before[0]].append([m, *(before[1:5] + [-1] * BEFORE)[:BEFORE]])
    for first in range(0, len(steps), batch):
        add(successors, steps[first : first + batch], status)
    held = dense(successors, ITEMS)
    np.testing.assert_allclose(held[0], forward, rtol=1e-5)
    np.testing.assert_allclose(held[1], backward, rtol=1e-5)
    np.testing.assert_allclose(successors.count.data, count, rtol=1e-5)
    np.testing.assert_allclose(successors.followed.data, followed, rtol=1e-5)
    for h in range(ITEMS):
        assert successors.contexts.data[h] == len(contexts[h])
        kept = successors.context.data[h]
        assert sorted(row.tolist() for row in kept if row[0] >= 0) == sorted(contexts[h][-4:])
        partners = successors.partner.data[h]
        assert len(set(partners[partners >= 0].tolist())) == (partners >= 0).sum()


def full_row(weight: float, slots: int = 4) -> Successors:
    """Item 0 with every slot taken by an item of this forward weight, but one of twice as much."""
    successors = Successors(20, slots=slots)
    successors.partner.data[0] = np.arange(1, slots + 1)
    successors.forward.data[0] = [weight, *[2 * weight] * (slots - 1)]
    return successors


def test_a_newcomer_as_heavy_as_the_weakest_takes_its_slot() -> None:
    status = np.full(20, LIVE, np.uint8)
    successors = full_row(1.0)
    add(successors, [(9, 1.0, [0])], status)
    assert successors.partner.data[0].tolist() == [9, 2, 3, 4]
    assert successors.forward.data[0].tolist() == [1, 2, 2, 2]


def test_the_weakest_is_the_least_in_both_directions_together() -> None:
    status = np.full(20, LIVE, np.uint8)
    successors = full_row(1.0)
    successors.backward.data[0] = [3, 0.5, 0, 0.5]
    add(successors, [(9, 2.0, [0])], status)
    assert successors.partner.data[0].tolist() == [1, 2, 9, 4]
    assert (successors.forward.data[0, 2], successors.backward.data[0, 2]) == (2, 0)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.75])
def test_a_light_newcomers_expected_weight_is_its_own_and_the_rows_sum_stays(weight: float) -> None:
    status, held, draws = np.full(20, LIVE, np.uint8), [], 3000
    for seed in range(draws):
        successors = full_row(1.0)
        add(successors, [(9, weight, [0])], status, seed * 7919)
        row = dict(zip(successors.partner.data[0].tolist(), successors.forward.data[0].tolist(), strict=True))
        held.append(row.get(9, 0.0))
        assert sum(row.values()) == 7
        assert row.get(9, 1.0) == 1.0
        assert (9 in row) != (1 in row)
    error = 4 * np.sqrt(weight * (1 - weight) / draws)
    assert abs(np.mean(held) - weight) < error


def test_a_light_newcomer_of_the_backward_side_enters_backward() -> None:
    status, entered = np.full(20, LIVE, np.uint8), 0
    for seed in range(400):
        successors = full_row(1.0)
        add(successors, [(0, 0.5, [9])], status, seed * 31)
        if 9 in successors.partner.data[0]:
            entered += 1
            slot = successors.partner.data[0].tolist().index(9)
            assert (successors.forward.data[0, slot], successors.backward.data[0, slot]) == (0, 1)
    assert 140 < entered < 260


@pytest.mark.parametrize("scrubbed", [False, True])
def test_a_dead_partners_slot_is_taken_first_whether_scrubbed_or_not(scrubbed: bool) -> None:
    status = np.full(20, LIVE, np.uint8)
    successors = full_row(5.0)
    status[3] = RETIRED
    if scrubbed:
        successors.partner.data[successors.partner.data == 3] = -1
    add(successors, [(9, 0.01, [0])], status)
    assert successors.partner.data[0].tolist() == [1, 2, 9, 4]
    assert successors.forward.data[0, 2] == np.float32(0.01)
    assert successors.backward.data[0, 2] == 0


def test_the_draws_come_from_the_seed_alone() -> None:
    status = np.full(20, LIVE, np.uint8)
    rows = []
    for seed in [*range(8), *range(8)]:
        successors = full_row(1.0)
        for m in range(5, 15):
            add(successors, [(m, 0.3, [0])], status, seed * 1000 + m)
        rows.append(successors.partner.data[0].tolist())
    assert rows[:8] == rows[8:]
    assert any(row != rows[0] for row in rows)


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

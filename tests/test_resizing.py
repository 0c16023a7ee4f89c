"""Checkpoints under other lengths of histories and lists, or another rule of exclusion."""

import numpy as np
import pytest
from harness.streams import Batches, Event, history_items, names_of, small_settings
from test_compatibility import P0, learned, restored

from pipeline.state.packing import laid_anew


@pytest.mark.parametrize(("old", "new"), [(3, 3), (3, 5), (5, 3), (4, 9), (9, 4), (1, 2)])
def test_a_resized_ring_equals_one_that_got_the_newest_pushes(old: int, new: int) -> None:
    pushed_N = np.arange(25)

    def ring(length: int, known: int) -> np.ndarray:
        out = np.full((25, length), -1)
        for user, count in enumerate(pushed_N.tolist()):
            for number in range(max(0, count - known), count):
                out[user, number % length] = number
        return out

    np.testing.assert_array_equal(laid_anew(ring(old, old), pushed_N, new, -1), ring(new, min(old, new)))


@pytest.mark.parametrize(("old", "new"), [(20, 12), (20, 30), (12, 18)])
def test_resized_histories_keep_the_newest_events_and_the_model(old: int, new: int) -> None:
    first = learned(small_settings(history=old))
    second = restored(first.snapshot(), history=new)
    for user in ("u1", "u7"):
        before, now = (history_items(each.state, user) for each in (first, second))
        assert len(before) == old
        assert now == before[:new]
    one, two = first.models[0].columns(), second.models[0].columns()
    for name, column in one.items():
        if column.axis == "none" and "place" not in name:
            np.testing.assert_array_equal(two[name].data, column.data, err_msg=name)
    place, resized = (columns["parameters_values_place"].data for columns in (one, two))
    assert place.any()
    shared = min(len(place), len(resized))
    np.testing.assert_array_equal(resized[:shared], place[:shared])
    assert not resized[shared:].any()
    assert second.quality.cumulative() == first.quality.cumulative()
    batches = Batches(seq=second.seq, ends={0: second.offsets[P0]})
    for number in range(15):
        second.step(batches([Event("u1", f"later-{number}")]))
    now = history_items(second.state, "u1")
    assert now[:12] == [f"later-{14 - number}" for number in range(12)]
    assert len(now) == new


@pytest.mark.parametrize("k", [3, 9])
def test_resized_published_lists_keep_their_best_places(k: int) -> None:
    first = learned(small_settings(k=5))
    second = restored(first.snapshot(), k=k)
    for user in ("u1", "u2"):
        states = [(each.state, each.state.users.row_of[user]) for each in (first, second)]
        before, now = (names_of(state, state.published.items.data[row]) for state, row in states)
        assert len(before) == 5
        assert now == before[:k]


def test_consumed_items_are_kept_under_a_narrower_rule_and_dropped_without_exclusion() -> None:
    first = learned()
    consumed = []
    for each in (first, *(restored(first.snapshot(), exclude=types) for types in (["buy"], []))):
        state = each.state
        rows = state.consumed.of(state.users.row_of["u1"], state.items.status.data)
        consumed.append(names_of(state, rows))
    assert len(consumed[0]) > 5
    assert consumed[1:] == [consumed[0], []]

"""Waves of new items through a bounded catalogue: rows are reused without a trace of their last items."""

import numpy as np
import pytest
from harness.streams import MINUTE_MS, START_MS, Batches, Event, small_settings

from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.published_lists import PublishedLists
from pipeline.state.store import nbytes
from pipeline.state.tables import LIVE, RETIRED

WAVES, WAVE, LIMIT, USERS, BATCH = 20, 1000, 1000, 16, 250
QUIET = 4  # users with events in one wave only: their items' rows are reused later


def wave_of(item: str) -> int:
    return int(item.partition("-")[0])


def memory(recommender: Recommender) -> int:
    state = recommender.state
    return nbytes([*state.stores.values(), state.users, state.items]) + state.consumed.values.nbytes


class Waves:
    """Send the waves, and record every user's events."""

    def __init__(self, exclude: list[str] | None) -> None:
        limits = LimitsConfig(items=LIMIT)
        self.recommender = Recommender(small_settings(exclude=exclude, limits=limits, k=10, history=20))
        self.batches, self.rng = Batches(), np.random.default_rng(1)
        self.busy = [f"u{n}" for n in range(USERS)]
        self.quiet = [f"quiet{n}" for n in range(QUIET)]
        self.past: dict[str, set[str]] = {user: set() for user in (*self.busy, *self.quiet)}
        self.time_ms = START_MS
        self.shown: set[str] = set()

    def step(self, pairs: list[tuple[str, str]]) -> Outcome:
        events = []
        for user, item in pairs:
            self.time_ms += MINUTE_MS // 10
            self.past[user].add(item)
            events.append(Event(user, item, time_ms=self.time_ms))
        # an impression refreshes the list and does not enter the history
        events += [Event(user, pairs[-1][1], "impression", self.time_ms) for user in self.quiet]
        outcome = self.recommender.step(self.batches(events))
        for ranking in outcome.rankings:
            past = self.past.get(ranking.user_id, set())
            for item in ranking.items:
                assert set(item.because) <= past, (ranking.user_id, item)
                assert self.recommender.settings.rank.exclude_event_types == [] or item.item_id not in past
                self.shown.add(item.item_id)
        return outcome

    def send(self, wave: int) -> list[Ranking]:
        """Send a wave, every item once, then a batch with one more event of every busy user."""
        order = self.rng.permutation(WAVE).tolist()
        for first in range(0, WAVE, BATCH):
            self.step(
                [(self.busy[self.rng.integers(USERS)], f"{wave}-{n}") for n in order[first : first + BATCH]]
            )
        if wave <= QUIET:
            self.step([(self.quiet[wave - 1], f"{wave}-{n}") for n in order[:30]])
        return self.step([(user, f"{wave}-{self.rng.integers(WAVE)}") for user in self.busy]).rankings


@pytest.mark.parametrize("exclude", [None, []], ids=["excluded", "repeats"])
def test_no_list_shows_an_item_of_two_waves_ago_and_memory_stays(exclude: list[str] | None) -> None:
    waves = Waves(exclude)
    recommender, items = waves.recommender, waves.recommender.state.items
    bytes_after, shown = {}, set[str]()
    for wave in range(1, WAVES + 1):
        rankings = waves.send(wave)
        assert {ranking.user_id for ranking in rankings} - {DEFAULT_USER} == set(waves.past)
        for ranking in rankings:
            assert len(ranking.items) == 10
            assert min(wave_of(item.item_id) for item in ranking.items) > wave - 2
            shown |= {item.item_id for item in ranking.items}
        assert 900 <= np.count_nonzero(items.status.data == LIVE) <= LIMIT
        bytes_after[wave] = memory(recommender)
    assert items.evicted >= (WAVES - 1) * WAVE
    assert items.capacity <= 4 * LIMIT  # so every row was used several times
    assert {wave_of(item) for item in shown} == set(range(1, WAVES + 1))
    assert bytes_after[WAVES] <= 1.1 * bytes_after[8]


def test_a_reused_row_is_empty_not_referenced_and_not_counted_in_lists_of_its_last_item() -> None:
    waves = Waves(None)
    recommender, state, seen = waves.recommender, waves.recommender.state, []
    init_rows = recommender._init_rows

    def check(users: np.ndarray, rows: np.ndarray) -> None:  # type: ignore[type-arg]
        for name, store in state.stores.items():
            for key, column in store.columns().items():
                if column.of_items:
                    assert not np.isin(column.data, rows).any(), f"{name}.{key}"
                if column.axis == "item" and key != "table":  # derived columns count every row as unused
                    assert (column.data[rows] == column.fill).all(), f"{name}.{key}"
        values, _ = state.consumed.ragged(np.arange(state.users.capacity, dtype=np.int32))
        assert not np.isin(values, rows).any()
        seen.extend(rows.tolist())
        init_rows(users, rows)

    recommender._init_rows = check  # type: ignore[method-assign]
    for wave in range(1, 9):
        waves.send(wave)
        live = np.flatnonzero(state.items.status.data == LIVE)
        shown = sum(state.items.id_of[row] in waves.shown for row in live.tolist())
        assert recommender.exposure.coverage(live) == shown / live.size
    assert len(seen) == 8 * WAVE
    assert len(set(seen)) < 3 * WAVE


def test_a_list_of_removed_items_is_no_list_before_and_after_their_references_are_removed() -> None:
    served, status = PublishedLists(3, 2), np.full(6, LIVE, np.uint8)
    served.put(np.array([0, 1], np.int32), np.array([[0, 1], [2, 3]], np.int32))
    status[[0, 1, 3]] = RETIRED
    users, items = np.array([0, 1, 1, 2], np.int32), np.array([4, 2, -1, 2], np.int32)
    before = served.hits(users, items, status)
    served.items.data[np.isin(served.items.data, [0, 1, 3])] = -1
    after = served.hits(users, items, status)
    for listed, hit in (before, after):
        assert listed.tolist() == [False, True, True, False]
        assert hit.tolist() == [False, True, False, False]

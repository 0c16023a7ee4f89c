"""Waves of new items through a bounded catalogue: rows are reused, and nothing of their last items shows."""

from collections.abc import Sequence

import numpy as np
import pytest
from pipeline.state.published import Served
from streams import MINUTE_MS, START_MS, Batches, Event, small_settings

from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.store import nbytes
from pipeline.state.tables import GONE, LIVE

WAVES, WAVE, LIMIT, USERS, BATCH = 20, 1000, 1000, 16, 250
QUIET = 4  # users who do something in one wave alone: what they did lies in rows that others get later


def wave_of(item: str) -> int:
    return int(item.partition("-")[0])


def memory(recommender: Recommender) -> int:
    """Bytes of all stores, both tables, and the consumed sets' shared array."""
    state = recommender.state
    return nbytes([*state.stores.values(), state.users, state.items]) + state.consumed.values.data.nbytes


class Waves:
    """Sends the waves, and keeps what every user truly did."""

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
        # who only looks gets a new list, and nothing enters the history
        events += [Event(user, pairs[-1][1], "impression", self.time_ms) for user in self.quiet]
        outcome = self.recommender.step(self.batches(events))
        for ranking in outcome.rankings:
            self.check_reasons(ranking)
            self.shown |= {item.item_id for item in ranking.items}
        return outcome

    def check_reasons(self, ranking: Ranking) -> None:
        for item in ranking.items:
            true = self.past.get(ranking.user_id, set())
            assert set(item.because) <= true, (ranking.user_id, item)
            assert self.recommender.settings.rank.exclude_event_types == [] or item.item_id not in true

    def send(self, wave: int) -> list[Ranking]:
        """Send a wave, every item once, then a batch in which every busy user does something more."""
        order = self.rng.permutation(WAVE).tolist()
        for first in range(0, WAVE, BATCH):
            self.step(
                [(self.busy[self.rng.integers(USERS)], f"{wave}-{n}") for n in order[first : first + BATCH]]
            )
        if wave <= QUIET:
            self.step([(self.quiet[wave - 1], f"{wave}-{n}") for n in order[:30]])
        return self.step([(user, f"{wave}-{self.rng.integers(WAVE)}") for user in self.busy]).rankings


@pytest.mark.parametrize("exclude", [None, []], ids=["all bar", "repeats"])
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


def test_what_is_remembered_of_users_is_of_their_own_past_alone() -> None:
    waves = Waves(None)
    state = waves.recommender.state
    for wave in range(1, 9):
        waves.send(wave)
        known = state.items.status.data
        for user, past in waves.past.items():
            row = state.users.row_of[user]
            window = state.histories.window(row, known)[0]
            assert {state.items.id_of[m] for m in window.tolist()} <= past
            consumed = state.consumed.of(row, known)
            assert {state.items.id_of[m] for m in consumed.tolist()} <= past


def test_a_row_that_is_given_out_is_empty_and_named_nowhere() -> None:
    waves = Waves(None)
    state, welcome, seen = waves.recommender.state, waves.recommender.state.welcome, []

    def check(rows: np.ndarray, ids: Sequence[str]) -> None:  # type: ignore[type-arg]
        for name, store in state.stores.items():
            for key, column in store.columns().items():
                if column.of_items:
                    assert not np.isin(column.data, rows).any(), f"{name}.{key}"
                if (
                    column.axis == "item" and key != "table"
                ):  # its derived columns show every row as uncounted
                    assert (column.data[rows] == column.fill).all(), f"{name}.{key}"
        values, _ = state.consumed.ragged(np.arange(state.users.capacity, dtype=np.int32))
        assert not np.isin(values, rows).any()
        seen.extend(rows.tolist())
        welcome(rows, ids)

    state.welcome = check
    for wave in range(1, 9):
        waves.send(wave)
    assert len(seen) == 8 * WAVE
    assert len(set(seen)) < 3 * WAVE


def test_coverage_counts_an_item_for_its_own_lists_alone() -> None:
    waves = Waves(None)
    items = waves.recommender.state.items
    for wave in range(1, 6):
        waves.send(wave)
        live = np.flatnonzero(items.status.data == LIVE)
        shown = sum(items.id_of[row] in waves.shown for row in live.tolist())
        assert waves.recommender.exposure.coverage(live) == shown / live.size


def test_a_list_whose_items_are_all_gone_is_none_whether_scrubbed_or_not() -> None:
    served, status = Served(3, 2), np.full(6, LIVE, np.uint8)
    served.put(np.array([0, 1], np.int32), np.array([[0, 1], [2, 3]], np.int32))
    status[[0, 1, 3]] = GONE
    users, items = np.array([0, 1, 1, 2], np.int32), np.array([4, 2, -1, 2], np.int32)
    before = served.hits(users, items, status)
    served.items.data[np.isin(served.items.data, [0, 1, 3])] = -1
    after = served.hits(users, items, status)
    for listed, hit in (before, after):
        assert listed.tolist() == [False, True, True, False]
        assert hit.tolist() == [False, True, False, False]

"""Ids and rows, against a plain dict that never gives a row twice."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from harness.streams import (
    MINUTE_MS,
    START_MS,
    Batches,
    Event,
    history_items,
    move_on,
    names_of,
    new_state,
    small_settings,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.events.batch import RawBatch
from pipeline.settings import LimitsConfig
from pipeline.state import reclaiming
from pipeline.state.positions import DAY_MS
from pipeline.state.reclaiming import STEPS
from pipeline.state.state import State
from pipeline.state.tables import FREE, LIVE, RETIRED, SWEPT, IdTable

HISTORY = 10  # a ring is never shorter than the reach of transitions
Life = tuple[str, int]  # an id, and which of its admissions


@dataclass
class Held:
    last_event: int
    last_ms: int


@dataclass
class PlainTable:
    """What a table should hold, with no rows at all."""

    limit: int
    ttl_days: float
    admit_after: int = 1
    held: dict[str, Held] = field(default_factory=dict)
    sightings: dict[str, int] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)

    def admit(self, ids: list[str]) -> None:
        for text in ids:
            if text not in self.held:
                self.sightings[text] = self.sightings.get(text, 0) + 1
        for text, seen in list(self.sightings.items()):
            if seen >= self.admit_after:
                del self.sightings[text]
                self.held[text] = Held(-1, 0)
                self.lives[text] = self.lives.get(text, 0) + 1

    def touch(self, text: str, number: int, time_ms: int) -> None:
        if text in self.held:
            self.held[text] = Held(number, max(time_ms, self.held[text].last_ms))

    def expire(self, now_ms: int) -> list[str]:
        removed = []
        while self.held:
            oldest = min(self.held, key=lambda text: self.held[text].last_event)
            late = self.ttl_days > 0 and self.held[oldest].last_ms < now_ms - self.ttl_days * DAY_MS
            if not late and not (self.limit and len(self.held) > self.limit):
                break
            del self.held[oldest]
            removed.append(oldest)
        return removed

    def life(self, text: str) -> Life | None:
        return (text, self.lives[text]) if text in self.held else None


class PlainState:
    """Users' histories and consumed items as lists of lives: what died once never comes back."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.users = PlainTable(limits.users, limits.user_ttl_days)
        self.items = PlainTable(limits.items, limits.item_ttl_days, limits.admit_after)
        self.rings: dict[str, list[Life]] = {}
        self.consumed: dict[str, list[Life]] = {}
        self.learned = 0

    def step(self, raw: RawBatch) -> list[str]:
        events = raw.events
        self.users.admit(events.user_ids)
        self.items.admit(events.item_ids)
        for user, item, kind, time_ms in zip(
            events.user_ids, events.item_ids, events.types, events.time_ms_B.tolist(), strict=True
        ):
            moment = min(time_ms, raw.now_ms)
            self.users.touch(user, self.learned, moment)
            self.items.touch(item, self.learned, moment)
            self.learned += 1
            life = self.items.life(item)
            if life is None:
                continue
            if kind in ("click", "view"):
                self.rings[user] = [*self.rings.get(user, []), life][-HISTORY:]
            if kind in ("click", "dislike"):
                self.consumed[user] = [x for x in self.consumed.get(user, []) if x != life] + [life]
        removed = self.users.expire(raw.now_ms)
        for user in removed:
            self.rings.pop(user, None)
            self.consumed.pop(user, None)
        self.items.expire(raw.now_ms)
        return removed

    def alive(self, lives: list[Life]) -> list[str]:
        return [text for text, number in lives if self.items.life(text) == (text, number)]


def check(state: State, plain: PlainState) -> None:
    for table, expected in ((state.users, plain.users), (state.items, plain.items)):
        ids = {text: row for text, row in table.row_of.items() if text != "__default__"}
        assert set(ids) == set(expected.held)
        assert all(table.id_of[row] == text for text, row in ids.items())
        for text, row in ids.items():
            assert table.status.data[row] == LIVE
            assert Held(table.last_event.data[row], table.last_ms.data[row]) == expected.held[text], text
        assert not set(table.free) & set(ids.values())
        assert len(set(table.free)) == len(table.free)
        assert (table.status.data[table.free] == FREE).all()
    status, used = state.items.status.data, state.items.used
    assert state.consumed.values.max() < used  # excluded items are among them
    for user in plain.users.held:
        row = state.users.row_of[user]
        window = history_items(state, user)
        assert window == plain.alive(plain.rings.get(user, []))[::-1]
        assert names_of(state, state.consumed.of(row, status)) == plain.alive(plain.consumed.get(user, []))


def with_few_rows(state: State, rows: int) -> State:
    """Leave so many free item rows, that rows have to be reused or the table has to grow."""
    state.items.free = state.items.free[-rows:]
    return state


events = st.tuples(
    st.integers(0, 5), st.integers(0, 24), st.sampled_from(["click", "view", "dislike", "impression"]),
    st.sampled_from([0, 0, 7]),  # minutes of delay
)  # fmt: skip


@given(
    st.lists(st.lists(events, max_size=14), max_size=24),
    st.sampled_from([(0, 0, 1, 0.0), (3, 8, 1, 0.0), (2, 5, 2, 0.0), (0, 6, 3, 0.001), (0, 0, 1, 0.002)]),
    st.integers(6, 12),
)
@settings(max_examples=60)
def test_admission_eviction_and_expiry_equal_those_of_a_dictionary(
    stream: list[list[tuple[int, int, str, int]]], numbers: tuple[int, int, int, float], rows: int
) -> None:
    users, items, admit_after, ttl = numbers
    limits = LimitsConfig(
        users=users, items=items, admit_after=admit_after, user_ttl_days=ttl, item_ttl_days=ttl
    )
    state = with_few_rows(new_state(small_settings(limits=limits)), rows)
    plain, batches = PlainState(limits), Batches()
    few, reclaiming.ROWS_WORTH_A_CYCLE = reclaiming.ROWS_WORTH_A_CYCLE, 3
    try:
        for number, drawn in enumerate(stream):
            time_ms = START_MS + number * MINUTE_MS
            made = [Event(f"u{u}", f"i{i}", kind, time_ms - late * MINUTE_MS) for u, i, kind, late in drawn]
            raw = batches(made, time_ms)
            assert move_on(state, raw).removed_users == plain.step(raw)
            check(state, plain)
    finally:
        reclaiming.ROWS_WORTH_A_CYCLE = few


def test_sightings_are_forgotten_oldest_first_above_their_limit() -> None:
    table = IdTable("item", capacity=8, admit_after=2, pending_limit=2)
    table.missing(["a", "b", "c"])
    assert list(table.pending) == ["b", "c"]
    assert table.missing(["a", "c"]) == ["c"]


def test_an_unadmitted_item_is_in_the_batch_without_a_row_and_unknown() -> None:
    state = new_state(small_settings(limits=LimitsConfig(admit_after=2)))
    batches = Batches()
    first = move_on(state, batches([Event("u", "a")])).batch
    second = move_on(state, batches([Event("u", "a"), Event("u", "a")])).batch
    third = move_on(state, batches([Event("u", "a")])).batch
    assert first.item_B.tolist() == [-1]
    assert second.item_B.tolist() == [0, 0]
    assert [batch.known_B.tolist() for batch in (first, second, third)] == [[False], [False, False], [True]]


def test_the_oldest_row_is_exact_however_old_the_queue_is() -> None:
    rng = np.random.default_rng(1)
    table = IdTable("user", capacity=8192)
    rows = table.admit([f"u{n}" for n in range(6000)])
    table.settle(rows)
    table.touch(rows, rng.permutation(6000).astype(np.int64), np.zeros(6000, np.int64))
    for number in range(6000, 9000):
        live = np.flatnonzero(table.status.data == LIVE)
        oldest = table.oldest()
        assert table.last_event.data[oldest] == table.last_event.data[live].min()
        if number % 3 == 0:
            table.forget(oldest, RETIRED)
        else:
            row = live[rng.integers(live.size, size=1)].astype(np.int32)
            table.touch(row, np.array([number]), np.zeros(1, np.int64))


def test_a_consumed_item_that_moves_during_a_cycle_is_removed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaiming, "ROWS_WORTH_A_CYCLE", 1)
    state, batches = new_state(small_settings(limits=LimitsConfig(items=300))), Batches()
    state.users.free.append(state.users.free.pop(-500))  # a row that the middle of a cycle comes to
    held = [f"i{n}" for n in range(300)]
    move_on(state, batches([Event("u", name) for name in held]))
    dying = state.items.row_of["i150"]
    move_on(state, batches([Event("w", name, "view") for name in held if name != "i150"]))
    move_on(state, batches([Event("w", "fresh", "view")]))  # the limit takes i150, the first step runs
    assert state.users.row_of["u"] > 2 * state.users.capacity // STEPS
    assert state.items.status.data[dying] == SWEPT
    move_on(state, batches([Event("u", "i0")]))  # moves to the newest place, all others one to the left
    for _ in range(STEPS):
        move_on(state, batches([Event("w", "fresh", "view")]))
    assert state.items.status.data[dying] == FREE
    block, _ = state.consumed.ragged(np.array([state.users.row_of["u"]], np.int32))
    assert dying not in block


def test_forgotten_users_leave_nothing_behind() -> None:
    state, batches = new_state(small_settings(limits=LimitsConfig(users=2))), Batches()
    before = {name: {key: c.data[5].copy() for key, c in store.columns().items() if c.axis == "user"}
              for name, store in state.stores.items()}  # fmt: skip
    move_on(state, batches([Event(f"u{n}", f"i{n}") for n in range(2)]))
    move_on(state, batches([Event(f"u{n}", "i0", kind) for n in range(2, 9) for kind in ("click", "view")]))
    assert set(state.users.row_of) == {"__default__", "u7", "u8"}
    for name, store in state.stores.items():
        for key, column in store.columns().items():
            if column.axis == "user":
                np.testing.assert_array_equal(column.data[1], before[name][key], err_msg=f"{name}.{key}")

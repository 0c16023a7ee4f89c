"""Count features, against a slow count of a log of all events, by id."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from harness.streams import MINUTE_MS, START_MS, Batches, Event, small_settings
from slow_counts import HISTORY, Life, SlowCounts, slow_features, slow_sums

from pipeline.events.batch import RawBatch
from pipeline.features import transitions
from pipeline.features.bank import FeatureBank
from pipeline.features.block import RETRIEVED, Candidates
from pipeline.features.gate_inputs import GATE
from pipeline.features.lessons import Lessons
from pipeline.features.newest import NEWEST
from pipeline.features.popularity import DAY, LISTED, P1000, POPULAR, POSITION
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state import reclaiming
from pipeline.state.queries import Queries, list_queries
from pipeline.state.tables import LIVE, IdTable

SECTIONS = 6


class World(NamedTuple):
    """A recommender in mid-stream, the log of what it was taught, and queries."""

    recommender: Recommender
    slow: SlowCounts
    queries: Queries
    repeats: bool

    def histories(self) -> Iterator[tuple[int, list[Life]]]:
        for b in range(self.queries.user_B.size):
            rows = self.queries.items_BL[b, : self.queries.length_B[b]].tolist()
            yield b, [self.slow.life(row) for row in rows]


def sectioned(count: int, pace: float) -> Iterator[RawBatch]:
    """Yield batches of users who stay in one of six sections each, so that no row of partners is full."""
    rng, batches, time_ms = np.random.default_rng(11), Batches(), START_MS
    for number in range(count):
        events = []
        for _ in range(36):
            time_ms += int(rng.integers(1, 20 * MINUTE_MS))
            user, item = int(rng.integers(12)), int(number * pace) + int(22 * rng.random() ** 1.5)
            kind = ("click", "click", "buy", "view", "dislike")[int(rng.integers(5))]
            events.append(Event(f"u{user}", f"s{user % SECTIONS}-{item}", kind, time_ms))
        yield batches(events)


WORLDS = {"all excluded": (None, 0), "repeats": ([], 0), "limits": (["buy"], 95), "limits, repeats": ([], 95)}


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS.keys())
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    exclude, items = request.param
    settings = small_settings(exclude=exclude, limits=LimitsConfig(items=items), history=HISTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reclaiming, "ROWS_WORTH_A_CYCLE", 10)
        recommender = Recommender(settings)
        slow = SlowCounts(recommender)
        if items:
            recommender.state.items.free = recommender.state.items.free[-150:]
        for raw in sectioned(24, 0.3 if exclude == [] and not items else 1.0):
            if raw.seq == 13:  # a restart
                snapshot, recommender = recommender.snapshot(), Recommender(settings)
                recommender.restore(snapshot)
                slow.follow(recommender)
            recommender.step(raw)
            slow.end_step()
        state = recommender.state
        assert not items or state.items.evicted > state.items.used > 0
        users = np.sort(state.users.rows([text for text in state.users.row_of if text != "u7"]))
        yield World(recommender, slow, list_queries(state, users), exclude is not None)


def found_of(candidates: Candidates, b: int) -> dict[int, np.ndarray]:  # type: ignore[type-arg]
    """Return a query's candidates with their features, each once."""
    span = slice(candidates.indptr[b], candidates.indptr[b + 1])
    rows = candidates.rows[span].tolist()
    assert len(set(rows)) == len(rows)
    return dict(zip(rows, candidates.features[span], strict=True))


def excluded_of(queries: Queries, b: int) -> set[int]:
    return set(queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]].tolist())


def test_candidates_and_their_features_are_those_of_the_formulae(world: World) -> None:
    state, bank, slow = world.recommender.state, world.recommender.bank, world.slow
    candidates = bank.candidates(world.queries)
    live = set(np.flatnonzero(state.items.status.data == LIVE).tolist())
    seen: dict[str, int] = defaultdict(int)
    excluded, left_out = 0, 0
    for b, history in world.histories():
        position, session = int(world.queries.position_B[b]), int(world.queries.session_B[b])
        sums = slow_sums(slow, history, session, world.repeats)
        found, allowed = found_of(candidates, b), live - excluded_of(world.queries, b)
        for row, x in found.items():
            expected = slow_features(slow, sums, slow.life(row), position)
            np.testing.assert_allclose(x, [expected[name] for name in bank.names], rtol=1e-3, atol=1e-3)
            for name, value in expected.items():
                seen[name] += value != 0
        near = history[: transitions.PARENTS]
        wanted = {
            m for name, places in sums.of.items() for m, parts in places.items()
            if any(parts[: len(near)] if name == "lift" else parts) and slow.alive(m)
        }  # fmt: skip
        rows = {slow.row(m) for m in wanted} & allowed
        for column in (P1000, DAY, POSITION + position):
            values = {slow.row(m): value for m, value in slow.popularity(column).items()}
            order = sorted((m for m in values if m in live), key=lambda m: (-values[m], m))[:LISTED]
            rows |= set([m for m in order if m in allowed][:POPULAR])
        assert rows <= found.keys() <= allowed
        newest = set(bank.families["newest"].ring.data.tolist()) - rows  # type: ignore[attr-defined]
        assert len(found) - len(newest & found.keys()) <= max(len(rows), min(bank.least, len(allowed)))
        assert len(found) >= max(len(rows), min(bank.least, len(allowed)))
        excluded += len(live - allowed)
        left_out += len(allowed - found.keys())
    assert left_out > 0
    assert (excluded > 0) == (state.repeats is False)
    assert min(value for name, value in seen.items() if name not in ("last", "often", "again")) > 1
    assert all((seen[name] > 1) == world.repeats for name in ("last", "often", "again"))


def test_what_a_history_item_adds_is_shared_out_as_it_was_summed(world: World) -> None:
    bank, slow, queries = world.recommender.bank, world.slow, world.queries
    candidates, rng = bank.candidates(queries), np.random.default_rng(1)
    batch = queries.user_B.size
    coef_BF = rng.normal(size=(batch, len(bank.names))).astype(np.float32)
    places_BK = candidates.indptr[:-1, None] + np.arange(30)
    places_BK[:, 7] = -1
    value_BKF = candidates.features[np.maximum(places_BK, 0)] * coef_BF[:, None, :]
    out = bank.attribute(queries, candidates, places_BK, value_BKF)
    assert out.shape == (batch, 30, queries.items_BL.shape[1] + 1)
    for b, history in world.histories():
        sums = slow_sums(slow, history, int(queries.session_B[b]), world.repeats)
        for k, place in enumerate(places_BK[b].tolist()):
            expected = np.zeros(out.shape[2])
            for f, name in enumerate(bank.names if place >= 0 else ()):
                parts = np.zeros(HISTORY)
                if name in sums.of:
                    parts = np.array(sums.of[name].get(slow.life(int(candidates.rows[place])), parts))
                if parts.sum() > 0:
                    expected[:HISTORY] += value_BKF[b, k, f] * parts / parts.sum()
                else:
                    expected[-1] += value_BKF[b, k, f]
            np.testing.assert_allclose(out[b, k], expected, rtol=2e-3, atol=2e-4)


def test_gate_inputs_are_those_of_the_formula(world: World) -> None:
    state, bank, queries = world.recommender.state, world.recommender.bank, world.queries
    pairs, batch = world.slow.pairs(), world.queries.user_B.size
    queries = queries._replace(now_ms_B=queries.now_ms_B + 1000 * np.arange(batch))
    found = bank.candidates(queries).gate_inputs
    assert found.shape == (batch, GATE)
    of_user, typical = bank.success.of_user.data, bank.success.typical.data
    for b, history in world.histories():
        user, position, n = int(queries.user_B[b]), int(queries.position_B[b]), len(history)
        pushed = max(int(state.histories.pushed.data[user]), 1)
        expected = [
            math.log(1 + n) / 2 - 0.5,
            math.log(1 + pairs["count"][history[0]]) / 4 - 0.5 if n else 0,
            math.log(1 + (queries.now_ms_B[b] - queries.times_BL[b, 0]) / 1000) / 8 if n else 1.6,
            math.log(1 + pairs["followed"][history[0]]) / 4 - 0.5 if n else 0,
            (position - 1) / 4 if position >= 2 else 0,
            float(position == 1),
            float(n == 0),
            state.histories.repeats.data[user] / pushed,
            *(of_user[user, :-1] + (1 - of_user[user, -1]) * typical),
        ]
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-4)
    assert found[0, 6] == 1  # row 0 has no history


def test_queries_of_one_batch_share_nothing(world: World) -> None:
    """Also where they fill several blocks, and after the tables have grown."""
    bank, state = world.recommender.bank, world.recommender.state
    users = np.tile(world.queries.user_B, 9)
    assert users.size > 64
    whole = bank.candidates(list_queries(state, users))
    for b in range(users.size):
        alone = bank.candidates(list_queries(state, users[b : b + 1]))
        span = slice(whole.indptr[b], whole.indptr[b + 1])
        np.testing.assert_array_equal(whole.rows[span], alone.rows)
        np.testing.assert_array_equal(whole.features[span], alone.features)
        np.testing.assert_array_equal(whole.gate_inputs[b], alone.gate_inputs[0])
    nothing = bank.candidates(list_queries(state, users[:0]))
    assert (nothing.rows.size, nothing.indptr.tolist()) == (0, [0])
    assert nothing.features.shape[1] == len(bank.names)


@pytest.mark.parametrize("k", [5, 100])
def test_too_few_candidates_are_topped_up_with_what_may_be_shown(k: int) -> None:
    recommender, batches = Recommender(small_settings(k=k)), Batches()
    recommender.step(batches([Event(f"v{n}", f"i{n}", "impression") for n in range(90)]))
    recommender.step(batches([Event("u", f"i{n}") for n in range(0, 20, 2)]))
    users = recommender.state.users.rows(["u"])
    for _ in range(2):  # the table grows in between
        found = found_of(recommender.bank.candidates(list_queries(recommender.state, users)), 0)
        rest = [m for m in range(len(recommender.state.items)) if m % 2 or m >= 20]
        newest = rest[: -NEWEST - 1 : -1]  # have no features, and come before what fills up
        assert list(found) == [*newest, *rest[:-NEWEST]][: max(k, POPULAR)]
        recommender.step(batches([Event(f"w{n}", f"z{n}", "impression") for n in range(1200)]))


def test_the_popular_have_room_however_many_items_the_history_leads_to() -> None:
    recommender, batches = Recommender(small_settings(exclude=[], name="attention")), Batches()
    state, table = recommender.state, recommender.bank.transitions
    recommender.step(batches([Event("w", f"i{n}", "impression") for n in range(400)]))
    recommender.step(batches([Event("u", f"i{n}") for n in range(392, 400)]))
    history = state.histories.latest(state.users.rows(["u"]), state.items.status.data)[0][0, :8]
    for parent, h in enumerate(history.tolist()):
        table.partner.data[h] = (np.arange(48) + 48 * parent) % 392
        table.forward.data[h] = 1
    for n in range(300, 340):
        recommender.step(batches([Event("v", f"i{n}")] * 2))
        table.partner.data[399, :] = np.arange(48)
    sessions_of_others = recommender.bank.families["sessions"].index  # type: ignore[attr-defined]
    for item in range(8):  # sessions that lead to more items than there are slots
        for step in range(20):
            key, row = np.array([7 + item], np.uint64), np.array([200 + 20 * item % 190 + step], np.int32)
            sessions_of_others.update(key, row, np.ones(1, np.float32))
        sessions_of_others.update(key, history[item : item + 1], np.ones(1, np.float32))
    found = found_of(recommender.bank.candidates(list_queries(state, state.users.rows(["u"]))), 0)
    assert len(found) <= RETRIEVED + 3 * POPULAR + recommender.bank.least
    assert set(range(301, 340)) <= found.keys()


def test_a_second_bank_that_gets_the_lessons_through_ids_ends_with_equal_item_columns() -> None:
    """Without the users: the lessons of another worker are applied by the same call."""
    recommender = Recommender(small_settings(exclude=["buy"], limits=LimitsConfig()))
    first, items = recommender.bank, recommender.state.items
    others = IdTable("item")
    np.random.default_rng(3).shuffle(others.free)
    second = FeatureBank(others, 8, 5, repeats=True, seed=0)
    update = first.update

    def shared(lessons: Lessons) -> None:
        update(lessons)
        ids = items.id_of
        new = [text for row, text in enumerate(ids) if text and text not in others.row_of]
        others.settle(others.admit(new))
        there = np.append(others.rows(ids), -1)  # -1 stays -1
        second.update(
            lessons._replace(
                item_B=there[lessons.item_B].astype(np.int32),
                items_BL=there[lessons.items_BL].astype(np.int32),
            )
        )

    first.update = shared  # type: ignore[method-assign]
    for raw in sectioned(20, 2.0):
        recommender.step(raw)
    order, place = items.canonical()
    other_order, other_place = others.canonical()
    assert order.tolist() != other_order.tolist()
    checked = 0
    for name, store in first.stores.items():
        for key, column in store.columns().items():
            other = second.stores[name].columns()[key]
            if column.axis == "user" or key in ("listed", "complete", "typical"):
                continue
            mine, theirs = column.data, other.data
            if column.axis == "item":
                mine, theirs = mine[order], theirs[other_order]
            if column.of_items:
                mine, theirs = (np.where(m >= 0, p[m], -1) for m, p in ((mine, place), (theirs, other_place)))
            np.testing.assert_array_equal(mine, theirs, err_msg=f"{name}.{key}")
            checked += 1
    assert checked > 15

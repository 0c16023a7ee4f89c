"""The streaming memories, against a slow dense computation of their formulae."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from harness.streams import MINUTE_MS, START_MS, Batches, Event, move_on, new_state, shoppers, small_settings
from pipeline.features.memories import (
    COLUMNS,
    D_CELL,
    D_DAY,
    D_LONG,
    D_RECENT,
    DENSE,
    FEATURES,
    GATE,
    KINDS,
    LISTS_SHOWN,
    PARENTS,
    POPULAR,
    REACHED,
    S_AGAIN,
    S_BACKOFF,
    S_CONTEXT,
    S_LATEST,
    S_LIFT,
    S_NAIVE,
    S_OFTEN,
    S_OWN,
    S_SESSION,
    S_SHARP,
    SMALL,
    SPARSE,
    Candidates,
)
from pipeline.models.explain import explain
from pipeline.ranking.pools import NEGATIVES, Pools
from pipeline.state.popularity import CELL, CELLS, DAY, P300, P1000
from pipeline.state.successors import BEFORE

from pipeline.features import memories
from pipeline.features.popularity import dense_columns, priors
from pipeline.features.sessions import REACH
from pipeline.settings import LimitsConfig
from pipeline.state import reclaiming as sweep
from pipeline.state.queries import Queries, serving_queries
from pipeline.state.state import State
from pipeline.state.tables import LIVE

LEAST = 5


class World(NamedTuple):
    """A state in mid-stream, the queries of its newest batch, and the pools over it."""

    state: State
    queries: Queries
    pools: Pools
    repeats: bool


def world(exclude: list[str] | None, items: int = 0, batches: int = 16, window: int = 150) -> World:
    few, sweep.BATCH_OF_GONE = sweep.BATCH_OF_GONE, 30
    try:
        state = new_state(small_settings(exclude=exclude, limits=LimitsConfig(items=items), history=12))
        pools = Pools(state.counts, state.items, LEAST, exclude is not None, 0)
        stream = shoppers(
            np.random.default_rng(11), Batches(), batches, size=60, users=9, window=window, pace=2,
            types=("click", "click", "buy", "view", "dislike"),
        )  # fmt: skip
        for raw in stream:
            moved = move_on(state, raw)
            pools.popular.update(np.unique(moved.batch.item_B[moved.batch.item_B >= 0]))
        users = np.array([0, *sorted(set(moved.batch.user_B.tolist()))], np.int32)
        return World(state, serving_queries(state, users), pools, exclude is not None)
    finally:
        sweep.BATCH_OF_GONE = few


WORLDS = {"all bar": (None, 0), "repeats": ([], 0), "buys bar": (["buy"], 0), "limits": (["buy"], 90)}


@pytest.fixture(params=WORLDS.values(), ids=WORLDS.keys())
def mid(request: pytest.FixtureRequest) -> World:
    return world(*request.param)


class Sums(NamedTuple):
    """What history and counts say of each item, by row: the last axis of `told` is the place that says it.

    `weights` is the sum over all occurrences of the newest item, whatever followed.
    """

    told: dict[int, dict[int, list[float]]]  # feature -> row -> summand of every place of the history
    often: dict[int, int]
    weights: float

    def add(self, feature: int, m: int, place: int, value: float) -> None:
        self.told[feature].setdefault(m, [0.0] * 13)[place] += value

    def of(self, feature: int, m: int) -> float:
        return sum(self.told[feature].get(m, []))


def prior(state: State, m: int, column: int = P1000, weight: float = 20) -> float:
    """So many times the smoothed popularity share."""
    values = state.popularity.values(column).astype(np.float64)
    return float((values[m] + SMALL) / (values.sum() + SMALL * len(state.items)) * weight)


def occurrences(state: State, h: int) -> list[list[int]]:
    """What came next and before, at each of the last occurrences of an item."""
    s = state.successors
    return s.context.data[h][: s.contexts.data[h]].tolist()  # type: ignore[no-any-return]


def add_sessions(state: State, sums: Sums, history: list[int], user: int) -> None:
    """Session-kNN as `families/sessions.py` writes it, over every session that is held."""
    held, visits = state.sessions, state.sessions.visits.data
    for s in np.flatnonzero(held.number.data > 0).tolist():
        number = int(held.number.data[s])
        inside = [m for m in held.items.data[s].tolist() if m >= 0]
        words = {
            k: 0.8**k / math.sqrt(1 + int(held.visited.data[h]))
            for k, h in enumerate(history[:REACH])
            if h not in history[:k] and number in visits[h].tolist()
        }
        if not words or number == held.current.data[user]:
            continue
        near = sum(words.values())
        length = min(int(held.steps.data[s]), held.items.data.shape[1])
        for m in inside:
            if m != history[min(words)]:
                for k, word in words.items():
                    sums.add(S_SESSION, m, k, near * word / math.sqrt(1 + length))


def sums_of(state: State, history: list[int], repeats: bool, user: int) -> Sums:
    """The sums over a user's history, newest first, straight from the docstrings."""
    s, sums = state.successors, Sums({f: {} for f in range(SPARSE)}, {}, 0.0)
    for k, h in enumerate(history[:REACHED]):
        for slot, m in enumerate(s.partner.data[h].tolist()):
            forward, backward = float(s.forward.data[h, slot]), float(s.backward.data[h, slot])
            both = forward + backward
            if m >= 0:
                lift = both / math.sqrt(1 + s.count.data[h]) / (1 + s.count.data[m])
                sums.add(S_LIFT, m, k, 0.9**k * lift)
            if m >= 0 and k < PARENTS:
                sums.add(S_BACKOFF, m, k, 0.6**k * forward)
                sums.add(S_NAIVE, m, k, 0.8**k * math.log(1 + both / (2 * prior(state, m))))
    for h in history[:1]:
        for m, stored in zip(state.latest.partner.data[h], state.latest.stored.data[h], strict=True):
            sums.add(S_LATEST, int(m), 0, float(stored) * state.latest.scale)
    add_sessions(state, sums, history, user)
    weights = 0.0
    for followed, *before in occurrences(state, history[0]) if history else []:
        match = 1.0
        for q, p in enumerate(before, start=1):
            if p >= 0 and q < len(history) and history[q] == p:
                match += 1
            elif p >= 0 and p in history[1:6]:
                match += 0.5
        weights += match**2
        sums.add(S_CONTEXT, followed, 0, match**2)
        sums.add(S_SHARP, followed, 0, match**4)
    if repeats:
        for k, m in enumerate(history):
            if m not in sums.told[S_OWN]:
                sums.add(S_OWN, m, k, 1 / (1 + k))
            sums.often[m] = sums.often.get(m, 0) + 1
        for k in range(1, len(history)):
            two = k + 1 < len(history) and history[k + 1] == history[1]
            like = 3.0 if two else 1.0
            if history[k] != history[0]:
                like = 0.3 if history[k] == history[1] else 0.0
            sums.add(S_AGAIN, history[k - 1], k, like)
    return sums._replace(weights=weights)


def plain_features(state: State, sums: Sums, m: int) -> list[float]:
    """One item's sparse features."""
    mine, out = prior(state, m), [0.0] * SPARSE
    out[S_BACKOFF] = math.log(1 + sums.of(S_BACKOFF, m) / mine) / 3
    out[S_NAIVE] = sums.of(S_NAIVE, m) / 3
    out[S_LIFT] = math.log(1 + 300 * sums.of(S_LIFT, m)) / 3
    out[S_LATEST] = math.log(1 + sums.of(S_LATEST, m) / prior(state, m, P300, 10)) / 3
    out[S_SESSION] = math.log(1 + 300 * sums.of(S_SESSION, m)) / 3
    if sums.weights:
        out[S_CONTEXT] = math.log(1 + 1000 * sums.of(S_CONTEXT, m) / sums.weights) / 3
    out[S_SHARP] = math.log(1 + sums.of(S_SHARP, m)) / 3
    if m in sums.often:
        out[S_OWN] = (4 + math.log(sums.of(S_OWN, m))) / 3
        out[S_OFTEN] = math.log(1 + sums.often[m])
        out[S_AGAIN] = math.log(1 + sums.of(S_AGAIN, m))
    return out


def history_of(queries: Queries, b: int) -> list[int]:
    return queries.items_BL[b, : queries.length_B[b]].tolist()  # type: ignore[no-any-return]


def barred_of(queries: Queries, b: int) -> set[int]:
    return set(queries.barred[queries.border_B[b] : queries.border_B[b + 1]].tolist())


def found_of(candidates: Candidates, b: int) -> list[int]:
    return candidates.rows[b, : candidates.count[b]].tolist()  # type: ignore[no-any-return]


def test_every_feature_is_that_of_the_formula(mid: World) -> None:
    candidates = mid.pools.candidates(mid.queries, LISTS_SHOWN)
    seen = np.zeros(SPARSE)
    for b in range(mid.queries.user_B.size):
        sums = sums_of(mid.state, history_of(mid.queries, b), mid.repeats, mid.queries.user_B[b])
        for c, m in enumerate(found_of(candidates.candidates, b)):
            expected = plain_features(mid.state, sums, m)
            np.testing.assert_allclose(candidates.candidates.features[b, c], expected, rtol=1e-3, atol=1e-4)
            seen += np.array(expected) > 0
    own = [S_OWN, S_OFTEN, S_AGAIN]
    assert (np.delete(seen, own) > 5).all()
    assert (seen[own] > 2).all() == mid.repeats


def test_candidates_are_all_that_the_memories_speak_of_and_the_popular(mid: World) -> None:
    state, queries = mid.state, mid.queries
    found = mid.pools.candidates(queries, LISTS_SHOWN).candidates
    live = set(np.flatnonzero(state.items.status.data == LIVE).tolist())
    for b in range(queries.user_B.size):
        sums = sums_of(state, history_of(queries, b), mid.repeats, queries.user_B[b])
        allowed = live - barred_of(queries, b)
        spoken = {m for told in sums.told.values() for m in told} & allowed
        popular = set()
        for column in (P1000, DAY, CELL + int(queries.cell_B[b])):
            values = state.popularity.stored.data[:, column]
            order = sorted((-float(values[m]), m) for m in live if values[m] > 0)[: memories.LISTED]
            popular |= set([m for _, m in order if m in allowed][:POPULAR])
        expected = spoken | popular
        rows = found_of(found, b)
        assert len(rows) == len(set(rows))
        if len(expected) < POPULAR:
            rest = [m for m in sorted(allowed) if m not in expected]
            expected |= set(rest[: POPULAR - len(expected)])
        assert set(rows) == expected
        assert (found.rows[b, len(rows) :] == -1).all()
        assert (found.features[b, len(rows) :] == 0).all()


def test_barred_and_dead_items_are_no_candidates(mid: World) -> None:
    found = mid.pools.candidates(mid.queries, LISTS_SHOWN).candidates
    status, barred_ever = mid.state.items.status.data, 0
    for b in range(mid.queries.user_B.size):
        barred = barred_of(mid.queries, b)
        barred_ever += len(barred)
        assert not set(found_of(found, b)) & barred
        assert (status[found_of(found, b)] == LIVE).all()
    assert (barred_ever > 0) == (mid.state.exclude != [])


@pytest.mark.parametrize("least", [5, 60, 100])
def test_too_few_candidates_are_topped_up_with_what_may_be_shown(least: int) -> None:
    state, batches = new_state(small_settings()), Batches()
    move_on(state, batches([Event(f"v{n}", f"i{n}", "impression") for n in range(90)]))
    move_on(state, batches([Event("u", f"i{n}") for n in range(0, 20, 2)]))
    pools = Pools(state.counts, state.items, least, False, 0)  # no list is made yet
    queries = serving_queries(state, np.array([state.users.row_of["u"]], np.int32))
    rows = found_of(pools.candidates(queries, LISTS_SHOWN).candidates, 0)
    allowed = [m for m in range(90) if m % 2 or m >= 20]
    assert rows == allowed[: max(least, POPULAR)]


def test_the_popular_have_room_however_much_the_memories_have_to_say() -> None:
    state, batches = new_state(small_settings(exclude=[])), Batches()
    move_on(state, batches([Event("w", f"i{n}", "impression") for n in range(400)]))
    history = list(range(392, 400))
    for parent, h in enumerate(history):
        state.successors.partner.data[h] = np.arange(48 * parent, 48 * parent + 48)
        state.successors.forward.data[h] = 1
    move_on(state, batches([Event("u", f"i{h}") for h in reversed(history)]))
    for n in range(300, 340):
        move_on(state, batches([Event("v", f"i{n}")] * 2))
    pools = Pools(state.counts, state.items, LEAST, True, 0)
    pools.popular.update(np.empty(0, np.int32))
    queries = serving_queries(state, np.array([state.users.row_of["u"]], np.int32))
    found = pools.candidates(queries, LISTS_SHOWN).candidates
    rows = found_of(found, 0)
    assert len(rows) == len(set(rows)) <= found.rows.shape[1]
    assert set(range(301, 340)) <= set(rows)
    told = [m for c, m in enumerate(rows) if found.features[0, c].any()]
    assert len(told) == found.rows.shape[1] - 3 * POPULAR - POPULAR
    sums = sums_of(state, history, True, queries.user_B[0])
    for c, m in enumerate(rows[:100]):
        np.testing.assert_allclose(
            found.features[0, c, :S_OWN], plain_features(state, sums, m)[:S_OWN], rtol=1e-3, atol=1e-4
        )


def test_the_same_gatherer_gives_the_same_again_also_after_the_table_has_grown() -> None:
    mid = world(["buy"])
    first = mid.pools.candidates(mid.queries, LISTS_SHOWN).candidates
    second = mid.pools.candidates(mid.queries, LISTS_SHOWN).candidates
    move_on(mid.state, Batches(seq=99)([Event("w", f"j{n}", "impression") for n in range(1200)]))
    assert mid.state.items.capacity > 1024
    third = mid.pools.candidates(mid.queries, LISTS_SHOWN).candidates
    for b in range(mid.queries.user_B.size):
        assert found_of(first, b) == found_of(second, b) == found_of(third, b)
    np.testing.assert_array_equal(first.features, second.features)


def test_the_sample_is_drawn_from_known_items_by_seed_and_batch_alone() -> None:
    mid = world(["buy"], window=300, batches=30)
    known = np.flatnonzero(mid.state.items.status.data == LIVE)
    assert known.size > NEGATIVES
    draws = [mid.pools.lesson(mid.queries, (), seq) for seq in (4, 4, 5)]
    for pool in draws:
        assert pool.known == known.size
        assert len(set(pool.negatives_N.tolist())) == NEGATIVES
        assert np.isin(pool.negatives_N, known).all()
    assert draws[0].negatives_N.tolist() == draws[1].negatives_N.tolist() != draws[2].negatives_N.tolist()


def test_a_small_catalogue_is_drawn_whole() -> None:
    mid = world([], batches=3, window=60)
    pool = mid.pools.lesson(mid.queries, (), 0)
    assert pool.negatives_N.tolist() == np.flatnonzero(mid.state.items.status.data == LIVE).tolist()


def test_dense_columns_are_smoothed_logarithms_of_popularity(mid: World) -> None:
    state = mid.state
    out = np.zeros((state.items.capacity, COLUMNS), np.float32)
    dense_columns(state.popularity, out)
    values = {column: state.popularity.values(column).astype(np.float64) for column in range(CELL + CELLS)}
    expected = np.zeros((state.items.capacity, COLUMNS))
    expected[:, D_LONG] = np.log(values[P1000] + SMALL) / 3
    expected[:, D_RECENT] = np.log(values[P300] + SMALL) / 3
    expected[:, D_DAY] = np.log(values[DAY] + SMALL) / 3
    for c in range(CELLS):
        expected[:, D_CELL + c] = np.log(values[CELL + c] + SMALL) / 3
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_the_gates_context_is_that_of_the_formula(mid: World) -> None:
    state, queries = mid.state, mid.queries
    rng = np.random.default_rng(0)
    success = rng.random((queries.user_B.size, KINDS)).astype(np.float32)
    now = queries.now_ms_B + 1000 * np.arange(queries.user_B.size)
    found = memories.contexts(
        queries.user_B, queries.items_BL, queries.times_BL, queries.length_B, now, queries.cell_B,
        state.histories.pushed.data, state.histories.repeats.data, success, state.successors,
    )  # fmt: skip
    assert found.shape == (queries.user_B.size, GATE)
    for b, user in enumerate(queries.user_B.tolist()):
        n, cell = int(queries.length_B[b]), int(queries.cell_B[b])
        newest = queries.items_BL[b, 0]
        expected = [
            math.log(1 + n) / 2 - 0.5,
            math.log(1 + state.successors.count.data[newest]) / 4 - 0.5 if n else 0,
            math.log(1 + (now[b] - queries.times_BL[b, 0]) / 1000) / 8 if n else 1.6,
            math.log(1 + state.successors.followed.data[newest]) / 4 - 0.5 if n else 0,
            (cell - 1) / 4 if cell >= 2 else 0,
            float(cell == 1),
            float(n == 0),
            state.histories.repeats.data[user] / max(state.histories.pushed.data[user], 1),
            *success[b],
        ]
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-5)
    assert found[0, 6] == 1  # nobody has no history


def test_what_a_history_item_adds_is_shared_out_as_it_was_summed(mid: World) -> None:
    state, queries = mid.state, mid.queries
    candidates = mid.pools.candidates(queries, LISTS_SHOWN).candidates
    rng, dim = np.random.default_rng(1), 3
    coef = rng.normal(size=(queries.user_B.size, FEATURES)).astype(np.float32)
    table = np.zeros((state.items.capacity, dim + COLUMNS), np.float32)
    dense_columns(state.popularity, table[:, dim:])
    rows = candidates.rows[:, :60].copy()
    rows[:, 7] = -1
    length = queries.items_BL.shape[1]
    out = np.zeros((*rows.shape, length + 1), np.float32)
    explain(
        queries,
        rows,
        candidates,
        coef,
        table,
        dim,
        state.counts,
        priors(state.popularity, len(state.items)),
        out,
    )
    for b in range(rows.shape[0]):
        history = history_of(queries, b)
        sums = sums_of(state, history, mid.repeats, queries.user_B[b])
        for k, m in enumerate(rows[b].tolist()):
            expected = np.zeros(length + 1)
            if m >= 0:
                x = candidates.features[b, found_of(candidates, b).index(m)]
                expected[-1] = coef[b, :D_CELL] @ table[m, dim : dim + D_CELL]
                expected[-1] += coef[b, D_CELL] * table[m, dim + D_CELL + queries.cell_B[b]]
                for f in range(SPARSE):
                    told = sums.told[S_OWN if f == S_OFTEN else f].get(m, [0.0])
                    for place, part in enumerate(told):
                        if part > 0:
                            expected[place] += x[f] * coef[b, DENSE + f] * part / sum(told)
            np.testing.assert_allclose(out[b, k], expected, rtol=2e-3, atol=1e-4)


def test_a_context_that_matches_better_says_more() -> None:
    state, batches = new_state(small_settings(exclude=[])), Batches()
    stories = [("s1", ["far", "x", "hub", "wrong"]), ("s2", ["a", "b", "hub", "right"])]
    for user, items in stories:
        for n, item in enumerate(items):
            move_on(state, batches([Event(user, item, time_ms=START_MS + n * MINUTE_MS)]))
    for item in ("a", "b", "hub"):
        move_on(state, batches([Event("new", item)]))
    pools = Pools(state.counts, state.items, LEAST, True, 0)
    queries = serving_queries(state, np.array([state.users.row_of["new"]], np.int32))
    found = pools.candidates(queries, LISTS_SHOWN).candidates
    feature = {
        state.items.id_of[m]: found.features[0, c, S_CONTEXT] for c, m in enumerate(found_of(found, 0))
    }
    # two places in their place against none: (1 + 2)^2 = 9 parts of 10 against 1
    assert feature["right"] == pytest.approx(math.log(1 + 1000 * 9 / 10) / 3, rel=1e-4)
    assert feature["wrong"] == pytest.approx(math.log(1 + 1000 * 1 / 10) / 3, rel=1e-4)
    assert BEFORE == 4

"""Out of a recommender and into another: nothing may change by it, whatever rows the ids get there."""

import itertools

import numpy as np
import pytest
from harness.streams import (
    START_MS,
    Batches,
    Event,
    history_items,
    move_on,
    names_of,
    new_state,
    shoppers,
    small_settings,
    source,
)

from pipeline.events.batch import RawBatch
from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig, Settings
from pipeline.state import moving, packing, reclaiming
from pipeline.state.positions import DAY_MS
from pipeline.state.shards import Snapshot
from pipeline.state.state import State
from pipeline.state.tables import FREE, SWEPT

LIMITS = LimitsConfig(users=9, items=130, user_ttl_days=0.4, item_ttl_days=0.6)
CASES = {
    "no limits": small_settings(),
    "repeats": small_settings(exclude=[]),
    "some types exclude": small_settings(exclude=["buy"]),
    "limits": small_settings(limits=LIMITS),
    "limits and repeats": small_settings(exclude=[], limits=LIMITS),
    "late admission": small_settings(limits=LimitsConfig(items=90, admit_after=2)),
    "session_knn": small_settings(name="session_knn", limits=LIMITS),  # others: see the contract of models
    "ncf": small_settings(name="ncf", limits=LIMITS),
}
TYPES = ("click", "click", "buy", "view", "dislike", "impression")


def stream(batches: int = 40) -> list[RawBatch]:
    """A stream of moving items, with users of three partitions, and event ids that come twice."""
    rng = np.random.default_rng(7)
    return shoppers(
        rng, Batches(), batches, size=40, users=14, window=160, pace=8, partitions=3, ids=True, types=TYPES
    )


def fed(raws: list[RawBatch], settings: Settings | None = None) -> Recommender:
    recommender = Recommender(settings or small_settings())
    for raw in raws:
        recommender.step(raw)
    return recommender


def lists(outcome: Outcome) -> list[Ranking]:
    """The rankings of users; the default list goes out again after a restart."""
    return [ranking for ranking in outcome.rankings if ranking.user_id != DEFAULT_USER]


def restored(settings: Settings, snapshot: Snapshot) -> Recommender:
    recommender = Recommender(settings)
    recommender.restore(snapshot)
    return recommender


@pytest.fixture(autouse=True)
def _short_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaiming, "ROWS_WORTH_A_CYCLE", 5)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_restored_recommender_goes_on_bit_for_bit(settings: Settings) -> None:
    raws = stream()
    whole = Recommender(settings)
    snapshots: dict[int, Snapshot] = {}
    outcomes = []
    for number, raw in enumerate(raws):
        if number in (0, 11, 17, 22):
            snapshots[number] = whole.snapshot()
        outcomes.append(whole.step(raw))
    if settings.limits.items:
        assert whole.state.items.evicted > 50
        assert whole.state.reclaimer.step or whole.state.items.evicted > 200
    for number, snapshot in snapshots.items():
        again = restored(settings, snapshot)
        second = again.snapshot()
        assert second.meta == snapshot.meta
        assert second.shard.offsets == snapshot.shard.offsets
        assert second.shard.arrays.keys() == snapshot.shard.arrays.keys()
        for key, array in second.shard.arrays.items():
            np.testing.assert_array_equal(array, snapshot.shard.arrays[key], err_msg=key)
        for raw, outcome in itertools.islice(zip(raws, outcomes, strict=True), number, None):
            other = again.step(raw)
            assert lists(other) == lists(outcome), f"restored at {number}, batch {raw.seq}"
            assert other.removed_users == outcome.removed_users
            assert other.metrics.tables == outcome.metrics.tables
            assert repr(other.metrics) == repr(outcome.metrics)
        assert again.digests() == whole.digests(), f"restored at {number}"
        measured = again.evaluator.arrays()
        for name, array in whole.evaluator.arrays().items():
            if not name.startswith(("exposure/", "timeline/coverage")):  # of the default list too
                assert array.tobytes() == measured[name].tobytes(), name


def test_digests_tell_one_changed_value_from_none() -> None:
    recommender = fed(stream(6))
    before = recommender.digests()
    state = recommender.state
    row = state.users.row_of["u3"]
    state.histories.repeats.data[row] += 1
    changed = recommender.digests()
    assert changed["digest_users"] != before["digest_users"]
    assert changed["digest_model"] == before["digest_model"]
    state.histories.repeats.data[row] -= 1
    recommender.bank.transitions.forward.data[next(iter(state.items.row_of.values())), 0] += 1
    changed = recommender.digests()
    assert changed["digest_users"] == before["digest_users"]
    assert changed["digest_model"] != before["digest_model"]


def moved_users(state: State, user: str) -> tuple[list[str], list[str], list[str]]:
    row = state.users.row_of[user]
    consumed = state.consumed.of(row, state.items.status.data)
    listed = state.published.items.data[row]
    return history_items(state, user), names_of(state, consumed), names_of(state, listed)


def test_a_shard_carries_users_into_tables_with_other_rows() -> None:
    giver = fed(stream(12))
    taker = fed([Batches(ends={3: 0})([Event(f"x{n}", f"i{200 - n}", partition=3) for n in range(60)])])
    shard = giver.take([source(1)])
    taker.put(shard)
    number = giver.state.partition_of.number_of(source(1))
    users = [u for u in giver.state.users.row_of
             if giver.state.partition_of.partition.data[giver.state.users.row_of[u]] == number]  # fmt: skip
    assert len(users) == 5
    rows = [(giver.state.items.row_of[i], taker.state.items.row_of[i]) for i in ("i150", "i160")
            if i in giver.state.items.row_of and i in taker.state.items.row_of]  # fmt: skip
    assert any(one != two for one, two in rows)
    for user in users:
        assert moved_users(taker.state, user) == moved_users(giver.state, user)
    assert taker.offsets[source(1)] == giver.offsets[source(1)]
    back = taker.take([source(1)])
    assert back.arrays.keys() == shard.arrays.keys()
    for key in ("user_ids", "user.histories.pushed", "user.histories.times", "user.users", "duplicates"):
        if key in shard.arrays:
            np.testing.assert_array_equal(back.arrays[key], shard.arrays[key])


@pytest.mark.parametrize("name", ["ncf", "isgd", "biased_mf"])
def test_user_parameters_of_another_worker_start_afresh_and_own_ones_go_on(name: str) -> None:
    """They belong to the item vectors that they were learned with."""
    settings = small_settings(name=name)
    giver, taker = fed(stream(8), settings), Recommender(settings)
    taker.put(giver.take([source(1)]))
    own = restored(settings, giver.snapshot())
    users = [user for user in taker.state.users.row_of if user != DEFAULT_USER]
    held = 0
    for key, column in giver.models[0].columns().items():
        if column.axis == "user":
            given, taken, went_on = (
                each.models[0].columns()[key].data[each.state.users.rows(users)]
                for each in (giver, taker, own)
            )
            assert (taken == column.fill).all(), key
            np.testing.assert_array_equal(went_on, given, err_msg=key)
            held += int((given != column.fill).sum())
    assert held > len(users)
    assert all(moved_users(taker.state, user) == moved_users(giver.state, user) for user in users)
    ranked = taker.rank(taker.state.users.rows(users))
    assert np.isfinite(ranked.scores_BK).all()


def test_users_have_one_digest_whatever_rows_they_and_their_items_lie_in() -> None:
    first = fed(stream(12))
    digest = first.digests()["digest_users"]
    # the users leave and come back in another order: their rows are others now
    some, rest = first.take([source(1), source(2)]), first.take([source(0)])
    for number in (1, 0, 2):
        first.release([source(number)])
    first.put(some, [source(2)])
    first.put(rest)
    first.put(some, [source(1)])
    assert first.offsets == some.offsets | rest.offsets
    assert first.digests()["digest_users"] == digest


def test_a_shard_replaces_what_is_held_of_its_partition_and_of_its_users() -> None:
    raws = stream(10)
    older, newer = fed(raws[:5]), fed(raws)
    users = newer.state.users.row_of.keys() - {DEFAULT_USER}
    newest = {user: moved_users(newer.state, user) for user in users}
    older.put(newer.take([source(number) for number in range(3)]))
    assert {user: moved_users(older.state, user) for user in users} == newest
    assert set(older.state.users.row_of) == set(newer.state.users.row_of)


def test_a_released_partition_leaves_no_user_no_offset_and_no_event_id() -> None:
    recommender = fed(stream(5))
    recommender.release([source(1)])
    assert source(1) not in recommender.offsets
    assert source(1) not in recommender.state.duplicates
    assert {int(user[1:]) % 3 for user in recommender.state.users.row_of if user != DEFAULT_USER} == {0, 2}


def test_catching_up_moves_users_and_leaves_the_model() -> None:
    raws = stream(6)
    learner, follower = fed(raws[:3]), fed(raws[:3])
    model = {name: column.data.copy() for name, column in packing.shared_columns(follower.state).items()}
    for raw in raws[3:]:
        learner.step(raw)
        follower.catch_up(raw)
    assert follower.seq == 3
    assert follower.events_learned == sum(len(set(raw.events.event_ids)) for raw in raws[:3])
    for name, column in packing.shared_columns(follower.state).items():
        if not name.endswith(("items_values", ".at_event")):  # new items have got an embedding and an age
            rows = model[name].shape[0] if column.data.ndim else ...
            np.testing.assert_array_equal(column.data[:rows], model[name], err_msg=name)
    for user in learner.state.users.row_of:
        if user != DEFAULT_USER:
            assert moved_users(follower.state, user)[:2] == moved_users(learner.state, user)[:2]


def test_users_who_know_no_item_and_partitions_without_users_survive_a_restart() -> None:
    settings = small_settings(limits=LimitsConfig(admit_after=2))
    for events in ([Event("u", "a")], []):
        first = Recommender(settings)
        first.step(Batches()(events))
        second = restored(settings, first.snapshot())
        assert second.digests() == first.digests()
        assert second.offsets == first.offsets == {source(0): len(events)}
        assert [moved_users(second.state, event.user) for event in events] == [([], [], [])] * len(events)


def test_items_that_came_with_a_shard_do_not_expire_at_once() -> None:
    settings = small_settings(limits=LimitsConfig(item_ttl_days=1))
    giver, taker = Recommender(settings), Recommender(settings)
    giver.step(Batches()([Event("u", "a", partition=1), Event("u", "b", partition=1)]))
    taker.put(giver.take([source(1)]))
    taker.step(Batches()([Event("v", "c", time_ms=START_MS + 1000)]))
    assert moved_users(taker.state, "u")[0] == ["b", "a"]
    taker.step(Batches(seq=1, ends={0: 1})([Event("v", "c", time_ms=START_MS + DAY_MS + 2000)]))
    assert moved_users(taker.state, "u")[0] == []


def test_users_who_came_with_a_shard_leave_in_order_of_their_last_event() -> None:
    settings = small_settings(limits=LimitsConfig(users=5))
    giver, taker = new_state(settings), new_state(settings)
    move_on(giver, Batches()([Event("early", "a", partition=1)]))
    batches = Batches()
    move_on(taker, batches([Event(f"u{n}", "a") for n in range(7)]))  # makes the queue of the oldest
    moving.put(taker, moving.take(giver, [source(1)]))
    assert move_on(taker, batches([Event("u6", "a")])).removed_users == ["early"]


def test_a_cycle_of_reclaiming_is_resumed_after_the_table_has_grown() -> None:
    settings = small_settings(limits=LimitsConfig(items=900))
    first, batches = Recommender(settings).state, Batches()
    move_on(first, batches([Event("u", f"i{n}") for n in range(906)]))  # six die: the cycle begins
    dead = np.flatnonzero(first.items.status.data == SWEPT)
    assert (first.reclaimer.step, dead.size) == (1, 6)
    for _ in range(3):
        move_on(first, batches([Event("v", "i905", "view")]))
    # rows above the part that is scrubbed already still name a dead item
    first.stores["features.transitions"].columns()["partner"].data[300:500, 0] = dead[0]
    move_on(first, batches([Event("v", f"j{n}", "view") for n in range(300)]))
    assert first.items.capacity == 2048
    arrays, meta = packing.save_items(first)
    second = Recommender(settings).state
    packing.load_items(second, arrays, meta)
    moving.put(second, moving.take(first, [source(0)]))
    while second.reclaimer.step:
        move_on(second, batches([Event("v", "j299", "view")]))
    assert (second.items.status.data[dead] == FREE).all()
    partners = second.stores["features.transitions"].columns()["partner"].data
    assert not np.isin(partners, dead).any()

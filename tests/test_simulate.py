"""The made-up shoppers: repeatable, worth learning, changing when told to, and sent at an even rate."""

import subprocess
import sys
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from pipeline.errors import PublishFailed
from producers.pace import paced
from producers.shoppers import CATEGORIES, TYPES, Columns, Market, ShopEvent, shoppers, wire_events
from producers.simulate import send


def all_events(events, seed, change_at=None, market=None, chunk=8_192):
    chunks = list(shoppers(events, seed, change_at, market, chunk))
    return Columns(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


@pytest.fixture(scope="module")
def demo():
    """The demo's stream."""
    return all_events(60_000, seed=0, change_at=30_000)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_same_seed_gives_the_same_events_however_they_are_cut():
    assert same(all_events(5_000, 3, 2_000), all_events(5_000, 3, 2_000, chunk=100))
    assert not same(all_events(5_000, 3), all_events(5_000, 4))


@pytest.mark.parametrize("events", [1, 127, 129, 1_000])
def test_as_many_events_come_as_were_asked_for(events):
    assert len(all_events(events, 0).user_B) == events


def test_tastes_change_at_the_very_event_that_was_named(monkeypatch):
    changed = all_events(4_000, 0, change_at=2_001)
    monkeypatch.setattr("producers.shoppers._Shoppers.change_taste", lambda shoppers: None)
    plain = all_events(4_000, 0, change_at=2_001)
    assert same((column[:2_001] for column in plain), (column[:2_001] for column in changed))
    assert (plain.item_B[2_001:2_051] != changed.item_B[2_001:2_051]).mean() > 0.5


def test_users_and_items_keep_arriving(demo):
    for column in (demo.user_B, demo.item_B):
        first_B = np.zeros(len(column), bool)
        first_B[np.unique(column, return_index=True)[1]] = True
        newcomers = np.add.reduceat(first_B, np.arange(0, 60_000, 15_000))
        assert (newcomers >= 50).all()


def test_a_user_meets_an_item_again_only_to_go_down_the_funnel(demo):
    seen, again, deeper = {}, 0, 0
    for user, item, kind in zip(
        demo.user_B.tolist(), demo.item_B.tolist(), demo.type_B.tolist(), strict=True
    ):
        if (user, item) in seen:
            again += 1
            deeper += kind > seen[user, item]
        seen[user, item] = kind
    assert 0.03 < again / 60_000 < 0.1
    assert again - deeper < 0.005 * 60_000


def test_every_step_of_the_funnel_is_rarer_than_the_one_before(demo):
    kinds = np.bincount(demo.type_B, minlength=len(TYPES))
    assert (np.diff(kinds) < 0).all()
    assert kinds[-1] > 0


def test_a_session_belongs_to_one_user_and_a_user_has_one_at_a_time(demo):
    owner = {}
    last = {}
    for user, session in zip(demo.user_B.tolist(), demo.session_B.tolist(), strict=True):
        assert owner.setdefault(session, user) == user
        assert last.get(user, -1) <= session  # a session that was left is not gone back to
        last[user] = session


def test_event_time_never_runs_backwards(demo):
    assert (np.diff(demo.time_ms_B) >= 0).all()


def hits_at_10(stream, start, stop):
    """Hit rates over events start .. stop of two counts kept event by event: popularity, and successors."""
    items = int(stream.item_B.max()) + 1
    popular, follows, last, met = np.zeros(items), np.zeros((items, items)), {}, set()
    hits = []
    for number, (user, item) in enumerate(zip(stream.user_B.tolist(), stream.item_B.tolist(), strict=True)):
        if (user, item) not in met:
            before = last.get(user)
            if start <= number < stop:
                blend = popular / (popular.sum() + 1) + (follows[before] if before is not None else 0.0)
                hits.append([(scores > scores[item]).sum() < 10 for scores in (popular, blend)])
            if before is not None:
                follows[before, item] += 1
            popular[item] += 1
            last[user] = item
            met.add((user, item))
        if number >= stop:
            break
    return np.mean(hits, axis=0)


def test_what_follows_what_can_be_learned_and_is_worth_far_more_than_popularity(demo):
    popularity, successors = hits_at_10(demo, 25_000, 30_000)
    assert successors > 0.25
    assert successors > 3 * popularity


def test_the_change_of_taste_makes_what_was_learned_worthless(demo):
    _, before = hits_at_10(demo, 28_000, 30_000)
    _, after = hits_at_10(demo, 30_000, 32_000)
    assert after < before / 2


def test_a_market_without_room_for_its_sessions_is_refused():
    with pytest.raises(ValueError, match="users 200: expected at least twice the sessions"):
        Market(users=200)
    with pytest.raises(ValueError, match="items 3: expected at least 48"):
        Market(items=3)


def test_a_small_market_with_hardly_anything_new_left_goes_on():
    market = Market(users=8, sessions=4, items=2 * len(CATEGORIES))
    assert len(all_events(3_000, 0, market=market).user_B) == 3_000


def test_events_on_the_wire_name_their_category_and_count_time_from_the_start():
    columns = Columns(*(np.array([value]) for value in (7, len(CATEGORIES) + 1, 4, 3, 250)))
    assert list(wire_events(columns, 1_000)) == [
        ShopEvent("shopper-7", f"{CATEGORIES[1]}-1", "buy", 1_250, "s3")
    ]  # fmt: skip


class Time:
    """A clock that moves only when someone waits, by what was asked for and a little more."""

    def __init__(self, late=0.0):
        self.now, self.late, self.waits = 100.0, late, 0

    def wait(self, seconds):
        self.waits += 1
        self.now += seconds + self.late
        return False


@pytest.mark.parametrize("late", [0.0, 0.004, 0.5])
def test_a_rate_holds_over_the_run_even_when_every_wait_is_too_long(late):
    clock = Time(late)
    times = [clock.now - 100 for _ in paced(range(2_000), 1_000, clock.wait, lambda: clock.now)]
    lateness = [at - number / 1_000 for number, at in enumerate(times)]
    assert min(lateness) >= -1e-9
    assert max(lateness) <= 0.016 + late


def test_events_leave_in_small_even_slices():
    clock = Time()
    times = [clock.now for _ in paced(range(2_000), 2_000, clock.wait, lambda: clock.now)]
    steps = [b - a for a, b in pairwise(times) if b > a]
    assert max(steps) < 0.02
    assert clock.waits < 80


def test_without_a_rate_nobody_waits():
    clock = Time()
    assert list(paced(range(5_000), 0, clock.wait, lambda: clock.now)) == list(range(5_000))
    assert clock.now == 100.0


def test_a_wait_that_says_stop_ends_the_stream():
    stops = iter([False, False, True])
    clock = Time()

    def wait(seconds):
        clock.wait(seconds)
        return next(stops)

    assert len(list(paced(range(10**9), 1_000, wait, lambda: clock.now))) == 31


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="expected events a second"):
        list(paced([1], rate))


class Future:
    def __init__(self, error):
        self.error = error

    def add_errback(self, call):
        if self.error:
            call(self.error)
        return self


class ListProducer:
    """Keep what is sent; refuse what comes after `room` records."""

    def __init__(self, room=10**9):
        self.records, self.room, self.flushed = [], room, False

    def send(self, topic, *, key, value):
        self.records.append((topic, key, value))
        return Future(OSError("disk full") if len(self.records) > self.room else None)

    def flush(self, timeout=None):
        self.flushed = True


def some_events(count):
    return (event for columns in shoppers(count, 0) for event in wire_events(columns, 0))


def test_sending_keys_records_by_user_and_waits_until_all_are_in():
    producer = ListProducer()
    assert send(producer, "clicks", some_events(50), rate=0).events == 50
    assert producer.flushed
    for (topic, key, value), event in zip(producer.records, some_events(50), strict=True):
        assert (topic, key.decode()) == ("clicks", event.user_id)
        assert msgspec.json.decode(value, type=ShopEvent) == event


def test_a_record_that_is_not_taken_ends_the_sending_with_one_line():
    producer = ListProducer(room=3)
    with pytest.raises(
        PublishFailed, match="not taken by topic clicks: OSError disk full; look at the broker"
    ):
        send(producer, "clicks", some_events(50), rate=0)
    assert len(producer.records) == 4


def test_the_process_says_which_broker_it_could_not_reach():
    command = [
        sys.executable,
        "-m",
        "producers.simulate",
        "--bootstrap-servers",
        "127.0.0.1:1",
        "--events",
        "10",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

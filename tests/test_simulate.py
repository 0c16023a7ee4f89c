"""The made-up shoppers: repeatable, worth learning, changing when told to, and sent at an even rate."""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.topics import create_topics
from producers.rate_limiter import paced
from producers.simulator.simulate import encoded
from producers.simulator.tastes import draw_distinct
from producers.simulator.users import CATEGORIES, TYPES, Columns, Market, ShopEvent, shoppers, wire_events


class Bare(msgspec.Struct, frozen=True, order=True):
    """An event without its time."""

    user_id: str
    item_id: str
    event_type: str
    session_id: str


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


def test_the_streams_that_measured_figures_rest_on_stay_what_they_are(demo):
    columns = b"".join(np.ascontiguousarray(column, np.int64).tobytes() for column in demo)
    assert hashlib.sha256(columns).hexdigest().startswith("d123e65db13e5af3")


def test_favourites_are_drawn_as_numpy_draws_without_replacement():
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    share = np.array([0.7, 0.2, 0.05, 0.03, 0.02])
    for _ in range(500):
        assert draw_distinct(ours, share, 3) == theirs.choice(5, 3, replace=False, p=share).tolist()
    assert ours.random() == theirs.random()


@pytest.mark.parametrize("events", [1, 127, 129, 1_000])
def test_as_many_events_come_as_were_asked_for(events):
    assert len(all_events(events, 0).user_B) == events


def test_tastes_change_at_the_very_event_that_was_named(monkeypatch):
    changed = all_events(4_000, 0, change_at=2_001)
    monkeypatch.setattr("producers.simulator.tastes.Tastes.advance", lambda *_: None)
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


def test_events_are_keyed_by_user_and_their_own_time_ends_about_now():
    now_ms = 1_750_000_000_000
    events = list(encoded(3_000, 0, None, now_ms))
    assert len(events) == 3_000
    for event in events[::500]:
        shown = msgspec.json.decode(event.value, type=ShopEvent)
        assert (event.key.decode(), event.time_ms) == (shown.user_id, shown.timestamp_ms)
    times = [event.time_ms for event in events]
    assert times == sorted(times)
    span_ms = now_ms - times[0]
    assert abs(times[-1] - now_ms) < 0.1 * span_ms


@pytest.mark.kafka
def test_the_process_sends_everything_and_says_how_many(broker, topic_name):
    topics = TopicsConfig(events=[topic_name("shoppers")])
    create_topics(KafkaConfig(bootstrap_servers=broker), topics, partitions=2)
    (topic,) = topics.event_topics()
    command = [
        sys.executable,
        "-m",
        "producers.simulator.simulate",
        "--bootstrap-servers",
        broker,
        "--topic",
        topic,
    ]
    done = subprocess.run(
        [*command, "--events", "500", "--rate", "5000"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1])["sent"] == 500
    with contextlib.closing(
        KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest")
    ) as consumer:
        consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        records = []
        while len(records) < 500:
            records += [record for batch in consumer.poll(1_000).values() for record in batch]
    sent = sorted(event.value for event in encoded(500, 0, None, 0))
    strip = msgspec.json.Decoder(Bare).decode
    assert sorted(map(strip, (record.value for record in records))) == sorted(map(strip, sent))
    assert all(abs(record.timestamp / 1000 - time.time()) < 60 for record in records)


@pytest.mark.kafka
def test_the_process_ends_when_its_input_does(broker, topic_name):
    topics = TopicsConfig(events=[topic_name("shoppers")])
    create_topics(KafkaConfig(bootstrap_servers=broker), topics, partitions=1)
    command = [
        sys.executable,
        "-m",
        "producers.simulator.simulate",
        "--bootstrap-servers",
        broker,
        "--until-stdin-closes",
    ]
    with subprocess.Popen(
        [*command, "--topic", next(iter(topics.event_topics())), "--rate", "10"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        out, _ = process.communicate(timeout=60)  # closes its input
    assert process.returncode == 0
    assert json.loads(out)["sent"] < 60_000


def test_the_process_says_which_broker_it_could_not_reach():
    command = [
        sys.executable,
        "-m",
        "producers.simulator.simulate",
        "--bootstrap-servers",
        "127.0.0.1:1",
        "--events",
        "10",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

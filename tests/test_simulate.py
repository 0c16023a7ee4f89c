"""Simulated users: repeatable streams that a recommender can learn from, and that change when planned."""

import hashlib

import numpy as np
import pytest

from producers.simulator.events import (
    CATEGORIES,
    Columns,
    SimulatedEvent,
    SimulatorConfig,
    item_name,
    wire_events,
)
from producers.simulator.plan import Change, Plan
from producers.simulator.users import simulate_users


def joined(chunks):
    return Columns(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


def sudden(event):
    return Plan((Change("sudden", event),))


@pytest.fixture(scope="module")
def demo():
    return joined(simulate_users(60_000, 0, sudden(30_000)))


def test_the_streams_of_published_measurements_do_not_change(demo):
    columns = b"".join(np.ascontiguousarray(column, np.int64).tobytes() for column in demo)
    assert hashlib.sha256(columns).hexdigest().startswith("d123e65db13e5af3")


@pytest.mark.parametrize(
    ("events", "config"),
    [
        *((events, SimulatorConfig()) for events in (1, 127, 129, 1_000)),
        (3_000, SimulatorConfig(users=8, sessions=4, items=2 * len(CATEGORIES))),  # little is left unconsumed
    ],
)
def test_the_stream_has_the_requested_length(events, config):
    assert len(joined(simulate_users(events, 0, config=config)).user_B) == events


def hits_at_10(stream, start, stop):
    """Return the hit rates over events start .. stop of popularity and of transition counts."""
    items = int(stream.item_B.max()) + 1
    popular, follows, last, consumed = np.zeros(items), np.zeros((items, items)), {}, set()
    hits = []
    for number, (user, item) in enumerate(zip(stream.user_B.tolist(), stream.item_B.tolist(), strict=True)):
        if (user, item) not in consumed:
            before = last.get(user)
            if start <= number < stop:
                blend = popular / (popular.sum() + 1) + (follows[before] if before is not None else 0.0)
                hits.append([(scores > scores[item]).sum() < 10 for scores in (popular, blend)])
            if before is not None:
                follows[before, item] += 1
            popular[item] += 1
            last[user] = item
            consumed.add((user, item))
        if number >= stop:
            break
    return np.mean(hits, axis=0)


def test_transitions_can_be_learned_and_predict_far_better_than_popularity(demo):
    popularity, transitions = hits_at_10(demo, 25_000, 30_000)
    assert transitions > 0.25
    assert transitions > 3 * popularity


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"users": 200}, "users 200: expected at least twice the sessions"),
        ({"items": 3}, "items 3: expected at least 48"),
    ],
)
def test_too_few_users_or_items_are_an_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        SimulatorConfig(**sizes)


def test_wire_events_have_ids_with_the_category_and_times_from_the_start():
    columns = Columns(*(np.array([value]) for value in (7, len(CATEGORIES) + 1, 4, 3, 250)))
    (event,) = wire_events(columns, 1_000)
    assert event == SimulatedEvent("shopper-7", f"{CATEGORIES[1]}-1", "buy", 1_250, "s3")
    categories = [item_name(category).partition("-")[0] for category in range(len(CATEGORIES))]
    assert categories == list(CATEGORIES)

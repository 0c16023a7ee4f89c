"""Event streams and their oracle in plain dicts: what each user's state and newest ranking must be."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.service import Sent
from pipeline.events.records import DEFAULT_USER
from pipeline.recommender import Recommender
from producers.replay import WireEvent
from producers.simulator.events import SimulatorConfig
from producers.simulator.simulation import Order, Simulation

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DUPLICATE_AFTER = 2_000  # records between an event and its duplicate


class Truth:
    """Each user's last event time and items in order; every event of these streams is positive."""

    def __init__(self, events: Iterable[Sent] = ()) -> None:
        self.events = 0
        self.last_ms: dict[str, int] = {}
        self.items: dict[str, list[str]] = {}
        for event in events:
            self.add(event)

    def add(self, event: Sent) -> None:
        assert event.value is not None
        fields = json.loads(event.value)
        user = fields["user_id"]
        self.events += 1
        self.last_ms[user] = fields["timestamp_ms"]
        self.items.setdefault(user, []).append(fields["item_id"])

    def wrong(self, newest: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return a line for each fault in the users' newest rankings; empty when all are right."""
        faults = [f"{user}: no ranking" for user in self.last_ms if user not in newest]
        unknown = newest.keys() - self.last_ms.keys() - {DEFAULT_USER}
        faults += [f"{user}: a ranking, and no event" for user in sorted(unknown)]
        for user in self.last_ms.keys() & newest.keys():
            ranking = newest[user]
            items = [each["item_id"] for each in ranking["items"]]
            because = {item for each in ranking["items"] for item in each["because"]}
            if ranking["event_timestamp_ms"] != self.last_ms[user]:
                faults.append(f"{user}: {ranking['event_timestamp_ms']}, expected {self.last_ms[user]}")
            if again := set(items).intersection(self.items[user]):
                faults.append(f"{user}: {sorted(again)} were consumed")
            if invented := because.difference(self.items[user]):
                faults.append(f"{user}: because of {sorted(invented)}, which are not of the history")
            if not items or len(items) != len(set(items)):
                faults.append(f"{user}: items {items}")
        return faults

    def otherwise_held(self, learner: Recommender, history: int) -> list[str]:
        """Return a line for each user with another history (of `history` items) or other consumed items."""
        faults = []
        for user, items in self.items.items():
            held = learner.describe_user(user)
            if held is None:
                faults.append(f"{user}: not held")
                continue
            path = [each["item_id"] for each in held["history"]]  # type: ignore[attr-defined]
            if path != items[: -history - 1 : -1]:
                faults.append(f"{user}: history {path}, expected {items[: -history - 1 : -1]}")
            if set(held["consumed"]) != set(items):  # type: ignore[call-overload]
                faults.append(f"{user}: consumed {held['consumed']}, expected {sorted(set(items))}")
        return faults


class Stream(NamedTuple):
    """Records in order; `bad` maps the key of each bad one to its value and reason."""

    records: list[Sent]
    bad: dict[bytes, tuple[bytes | None, str]]
    truth: Truth
    duplicates: int


def shopping(events: int, seed: int, now_ms: int, users: int = 600, items: int = 800) -> list[Sent]:
    """Return events of simulated users in time order; their event times end an hour before `now_ms`."""
    config = SimulatorConfig(users=users, items=items, sessions=64)
    simulation = Simulation(Order(events, seed, config=config), now_ms - HOUR_MS)
    return [Sent(event.key, event.value) for event in simulation.wire(simulation.columns())]


def chain(successor: Sequence[int], users: int, events: int, seed: int, start_ms: int) -> list[Sent]:
    """Return events of users who go from each item to its one successor, from random starts."""
    rng = np.random.default_rng(seed)
    at = rng.integers(len(successor), size=users)
    out = []
    for number, user in enumerate(rng.integers(users, size=events).tolist()):
        out.append(event_of(f"walker-{user}", f"item-{at[user]}", start_ms + 1_000 * number))
        at[user] = successor[at[user]]
    return out


def event_of(user: str, item: str, time_ms: int, **more: object) -> Sent:
    fields = {"user_id": user, "item_id": item, "event_type": "click", "timestamp_ms": time_ms, **more}
    return Sent(user.encode(), json.dumps(fields).encode())


def spoiled(events: Sequence[Sent], seed: int, now_ms: int, share: float = 0.01) -> Stream:
    """Insert bad records of every kind into a stream, and as many duplicates with an `event_id`.

    Each bad record has its own key, which identifies its dead letter.
    """
    rng = np.random.default_rng(seed)
    kinds = _bad_values(now_ms)
    records: list[Sent] = []
    bad: dict[bytes, tuple[bytes | None, str]] = {}
    twice: dict[int, Sent] = {}
    duplicates = 0
    for number, event in enumerate(events):
        if rng.random() < share:
            key = b"bad-%d" % number
            value, reason = kinds[int(rng.integers(len(kinds)))]
            bad[key] = (value, reason)
            records.append(Sent(key, value))
        if rng.random() < share:
            assert event.value is not None
            event = Sent(event.key, json.dumps(json.loads(event.value) | {"event_id": f"e{number}"}).encode())
            twice[number + DUPLICATE_AFTER] = event
        records.append(event)
        if number in twice:
            records.append(twice[number])
            duplicates += 1
    return Stream(records, bad, Truth(events), duplicates)


def write_csv(path: Path, events: Iterable[Sent]) -> Path:
    """Write events as a file that `replay` and `evaluate` read; return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("user", "item", "timestamp", "event"))
        for event in events:
            fields = json.loads(event.value or b"")
            writer.writerow([fields[name] for name in ("user_id", "item_id", "timestamp_ms", "event_type")])
    return path


def sent(events: Iterable[WireEvent]) -> list[Sent]:
    return [Sent(event.key, event.value) for event in events]


def _bad_values(now_ms: int) -> list[tuple[bytes | None, str]]:
    def good_but(**fields: object) -> bytes:
        good = {"user_id": "somebody", "item_id": "something", "timestamp_ms": now_ms - HOUR_MS}
        return json.dumps(good | fields).encode()

    return [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"user_id": "caf\xe9", "item_id": "i"}', "not_utf8"),
        (b"[1, 2]", "not_object"),
        (b'{"user_id": "somebody"}', "missing_field"),
        (good_but(user_id=7.5), "wrong_type"),
        (good_but(item_id=""), "empty_id"),
        (good_but(item_id="x" * 257), "long_id"),
        (good_but(user_id=DEFAULT_USER), "reserved_id"),
        (good_but(value=float("nan")), "not_finite"),
        (good_but(value=float("inf")), "not_finite"),
        (good_but(timestamp_ms=now_ms + 2 * DAY_MS), "bad_time"),
        (good_but(timestamp_ms=12), "bad_time"),
        (good_but(context={"x": "y" * 70_000}), "too_large"),
        (b'{"deep":' + b"[" * 200 + b"]" * 200 + b"}", "too_deep"),
    ]

"""Two questions of a shop's first day: how soon a withdrawn item is removed, and what an old topic causes.

    python tests/benchmarks/first_day.py [--broker embedded|apache] [--check withdrawal|backlog]

withdrawal: 25,000 users get a list, 20,000 or more of them with the same item, and have no further events.
A tombstone on the items topic withdraws the item, on an idle service and once more under 1,000 events/s:
seconds until no user's newest list holds it.
backlog: a topic with events of half a year, most of them from users who were last seen long ago, exists
before the first start: rankings published, for how many users, and the seconds until all is learned.

Prints a table and one last JSON line; ends with 1 when a check fails.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench import parser_of
from delivery import LONG_S, Line, add_checks, now_ms, reader_of, run_checks
from harness.clients import make_topic
from harness.service import Process, Sent, Site
from harness.truth import DAY_MS, event_of
from kafka import KafkaProducer

from producers.kafka.client import producer_options
from producers.kafka.records import key_hash

USERS, HOLDERS = 25_000, 20_000
WITHIN_S = 5.0
RECENT_DAYS = 7
HOUR_MS = 3_600_000


def two_each(users: int, seed: int) -> list[Sent]:
    """Return an event of every user on other items, and one of every eighth fan on the item to withdraw."""
    items = np.random.default_rng(seed).zipf(1.3, size=users) % 2_000 + 1
    start_ms = now_ms() - users
    out = []
    for number in range(users):
        out.append(event_of(f"user-{number}", f"item-{items[number]}", start_ms + number))
        if number % 8 == 0:
            out.append(event_of(f"fan-{number}", "item-0", start_ms + number))
    return out


class Lists:
    """The newest list of every user."""

    def __init__(self, broker: str, topic: str) -> None:
        self.newest: dict[str, list[str]] = {}
        self._consumer = reader_of(broker, topic)
        self._consumer.seek_to_beginning()

    def read(self) -> None:
        """Read new lists."""
        for records in self._consumer.poll(timeout_ms=50).values():
            for record in records:
                items = [] if record.value is None else json.loads(record.value)["items"]
                self.newest[record.key.decode()] = [item["item_id"] for item in items]

    def read_all(self) -> None:
        """Read until no further user comes for a second."""
        seen, quiet_s = -1, time.monotonic()
        while time.monotonic() - quiet_s < 1:
            self.read()
            if len(self.newest) != seen:
                seen, quiet_s = len(self.newest), time.monotonic()

    def holders(self, item: str) -> int:
        """Return the number of users with an item in their newest list."""
        return sum(item in items for items in self.newest.values())

    def close(self) -> None:
        self._consumer.close(autocommit=False)


def check_withdrawal(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Withdraw the item of most lists, twice."""
    with Site(broker, "withdrawal", folder) as site:
        site.create_topics()
        site.send(two_each(USERS, options.seed))
        service = site.run()
        service.until(site.all_committed, "all is committed", LONG_S)
        lists = Lists(broker, f"{site.stem}-recommendations")
        for load in (0, 1_000):
            yield from withdraw(site, service, lists, load)
        lists.close()
        service.end()


def withdraw(site: Site, service: Process, lists: Lists, load: int) -> Iterator[Line]:
    """Withdraw the item that most lists hold, with so many events/s of other users at the same time."""
    lists.read_all()
    item = max({item for held in lists.newest.values() for item in held}, key=lists.holders)
    holders, name = lists.holders(item), f"{load or 'no'} events/s beside it"
    yield Line(f"{name}: lists with the item", holders, f">= {HOLDERS}", holders >= HOLDERS)
    stop = threading.Event()
    sender = threading.Thread(target=keep_sending, args=(site, load, stop))
    if load:
        sender.start()
        service.until(lambda: service.learned() > len(lists.newest), "events come", LONG_S)
    producer = KafkaProducer(bootstrap_servers=site.broker)
    began = time.monotonic()
    producer.send(f"{site.stem}-items", key=item.encode(), value=None).get(timeout=20)
    producer.close()
    while lists.holders(item) and time.monotonic() - began < 60:
        lists.read()
    seconds = time.monotonic() - began
    stop.set()
    if load:
        sender.join()
    yield Line(f"{name}: seconds until no list has it", seconds, f"< {WITHIN_S:g}", seconds < WITHIN_S)


def keep_sending(site: Site, rate: int, stop: threading.Event) -> None:
    """Send events of other users, evenly, until `stop`."""
    while not stop.wait(0.1):
        site.send([event_of(f"guest-{n}", f"item-{n % 1_999 + 1}", now_ms()) for n in range(rate // 10)])


def check_backlog(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Start for the first time over a topic that has been filled for half a year."""
    with Site(broker, "backlog", folder) as site:
        make_topic(broker, site.events, site.partitions)
        certain, recent = fill(site, options.events, options.seed)
        service = site.run()
        began = time.monotonic()
        service.until(site.all_committed, "all is committed", LONG_S)
        seconds = time.monotonic() - began
        service.until(lambda: service.metrics().get("afresh_rankings_due") == 0, "no list is due", LONG_S)
        service.end()
        published = len(site.read(f"{site.stem}-recommendations"))
        users = site.newest().keys() - {"__default__"}
        learned = site.inspect()["events_learned"]
    yield Line("events learned", learned, f"{options.events}", learned == options.events)
    yield Line("seconds until all is learned", seconds)
    yield Line(f"users seen in the last {RECENT_DAYS} days", len(recent))
    fits = certain <= users <= recent
    yield Line("users with a list", len(users), f"{len(certain)} to {len(recent)}", fits)
    most = 1.02 * len(recent) + 200  # and the default list, whenever it changes
    yield Line("rankings published", published, f"<= {most:.0f}", published <= most)


def fill(site: Site, events: int, seed: int) -> tuple[set[str], set[str]]:
    """Send events of 180 days, stamped as they were sent then.

    Return the users of the last `RECENT_DAYS` days at the end of the run, if it ends within an hour, and now.
    """
    rng = np.random.default_rng(seed)
    end_ms = now_ms() - 600_000
    days = np.sort(rng.uniform(0, 180, events))[::-1]
    # a user is active for some days: each day has its own part of all users
    users = (180 - days) * events / 1_800 + rng.integers(0, max(1, events // 300), events)
    items = rng.zipf(1.2, events) % 5_000
    producer = KafkaProducer(**producer_options(site.configured().kafka))
    certain, recent = set(), set()
    for day, user, item in zip(days.tolist(), users.astype(int).tolist(), items.tolist(), strict=True):
        sent_ms = end_ms - int(day * DAY_MS)
        record = event_of(f"user-{user}", f"item-{item}", sent_ms)
        producer.send(
            site.events, key=record.key, value=record.value, timestamp_ms=sent_ms,
            partition=key_hash(record.key) % site.partitions,
        )  # fmt: skip
        age_ms = now_ms() - sent_ms
        if age_ms < RECENT_DAYS * DAY_MS:
            recent.add(record.key.decode())
        if age_ms < RECENT_DAYS * DAY_MS - HOUR_MS:
            certain.add(record.key.decode())
    producer.close()
    return certain, recent


CHECKS = {"withdrawal": check_withdrawal, "backlog": check_backlog}


def main() -> int:
    parser = parser_of(__doc__)
    add_checks(parser, CHECKS)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the backlog")
    return run_checks(CHECKS, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

"""Users with events in two topics: each user's state is complete and held once, across kills and rebalances.

Both topics' partitions of one number are assigned to one worker (consumers/kafka/co_partitions.py). A user's
state belongs to the partition of the newest event, so a move must take both partitions at the same time.
"""

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.streams import START_MS, history_items
from harness.workers import Worker, changed, publish, settings_for

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import Polled, Span, TopicPartition
from pipeline.recommender import Recommender
from pipeline.service.catch_up import in_time_order

TOPICS = ("buys", "views")


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: files survive the end of a process without it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def both(number: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in TOPICS]


class Shop:
    """Two topics, the workers that read them, and each user's events in order of time."""

    def __init__(self, folder: Path, numbers: int = 1) -> None:
        self.folder = folder
        self.log = MemoryLog(dict.fromkeys(TOPICS, numbers))
        self.events: dict[str, list[str]] = defaultdict(list)
        self.count = 0
        self.learners: dict[str, Any] = {}

    def start(self, name: str, numbers: Iterable[int] = (0,)) -> Worker:
        settings = changed(
            settings_for(self.folder, name), model__tables={"attention": {"dim": 8, "history": 64}}
        )
        learner = self.learners[name] = Recommender(settings)
        mine = [source for number in numbers for source in both(number)]
        worker = Worker(self.log, settings, assigned=mine, learner=learner)
        worker.loop.start()
        worker.loop.tick()
        return worker

    def publish(self, *events: tuple[str, str], number: int = 0) -> None:
        """Append events given as (user, topic), each of another item."""
        for user, topic in events:
            publish(self.log, [user], TopicPartition(topic, number), start=self.count)
            self.events[user].append(f"item-{self.count}")
            self.count += 1

    def trim(self) -> None:
        """Drop the records so far, as retention does: users remain in shards only."""
        for source in self.log.partitions():
            self.log.trim(source, self.log.end(source))

    def die(self, worker: Worker) -> None:
        """Let a worker learn and commit everything, then kill it."""
        worker.finish()
        worker.settle()
        worker.kill()

    def assert_whole(self, name: str, users: Iterable[str] | None = None) -> None:
        """Assert that every user has learned each event once, in order of time."""
        state = self.learners[name].state
        for user in self.events if users is None else users:
            row = state.users.row_of[user]
            assert history_items(state, user) == self.events[user][::-1]
            assert state.histories.pushed.data[row] == len(self.events[user])


def die_writing(worker: Worker, nth: int, act: Callable[[], None]) -> bool:
    """Call `act`, and kill the worker before it writes its nth file; return whether that happened."""
    folder = worker.survival.checkpoints.folder  # type: ignore[union-attr]
    write, left = folder.write, [nth]

    def count(name: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        write(name, data)

    folder.write = count  # type: ignore[method-assign]
    try:
        act()
    except Killed:
        worker.kill()
        return True
    finally:
        folder.write = write  # type: ignore[method-assign]
    return False


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_worker_that_is_killed_while_it_saves_leaves_its_users_whole(tmp_path: Path, nth: int) -> None:
    """The files are users, model and manifest, in this order."""
    shop = Shop(tmp_path)
    dead = shop.start("dead")
    shop.publish(("ann", "views"), ("bob", "buys"))
    dead.finish()
    dead.loop.checkpoint()
    shop.trim()
    shop.publish(("ann", "buys"), ("bob", "views"))  # each continues in the other topic
    dead.finish()
    dead.settle()
    assert die_writing(dead, nth, dead.loop.checkpoint)
    heir = shop.start("heir")
    heir.finish()
    shop.assert_whole("heir")
    heir.loop.checkpoint()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_shard_is_kept_while_it_has_the_newest_users(tmp_path: Path, nth: int) -> None:
    shop = Shop(tmp_path)
    first = shop.start("first")
    shop.publish(("ann", "views"), ("bob", "buys"))
    first.finish()
    first.source.revoke(both(0))
    first.loop.tick()
    shop.trim()
    second = shop.start("second", [])
    second.source.assign(both(0))
    assert die_writing(second, nth, second.loop.tick)  # the checkpoint that follows a takeover
    for _ in range(4):  # beyond what `checkpoint.keep` keeps by itself
        first.loop.checkpoint()
    first.source.assign(both(0))
    first.loop.tick()
    shop.assert_whole("first")


def test_one_topics_users_are_not_kept_when_the_others_are_behind(tmp_path: Path) -> None:
    """While the worker is dead, another one learns events of one topic and dies without a shard."""
    shop = Shop(tmp_path)
    first = shop.start("first")
    shop.publish(("ann", "buys"), ("bob", "views"))
    first.finish()
    first.loop.checkpoint()
    shop.publish(("ann", "views"), ("bob", "buys"))
    shop.die(first)
    second = shop.start("second")
    shop.publish(("ann", "buys"))
    shop.die(second)
    for path in (tmp_path / "shards").rglob("*.safetensors"):
        if "-second-" in path.name:
            path.unlink()
    shop.start("first").finish()
    shop.assert_whole("first")


@pytest.mark.parametrize("seed", [4, 5, 34, 45, 97, 149])  # each has found a defect
def test_users_learn_every_event_once_across_rebalances_and_kills(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    shop = Shop(tmp_path, numbers=2)
    owners = {0: "a", 1: "b"}
    workers = {name: shop.start(name, [number]) for number, name in owners.items()}

    def mine(name: str) -> list[int]:
        return [number for number, owner in owners.items() if owner == name]

    def replace(name: str) -> None:
        """Assign a dead worker's numbers to the other one, and restart the dead one without any."""
        heir = "b" if name == "a" else "a"
        for number in mine(name):
            owners[number] = heir
            workers[heir].source.assign(both(number))
        if chance.random() < 0.7:
            workers[heir].loop.tick()
        workers[name] = shop.start(name, [])

    for _ in range(80):
        number = chance.randrange(2)
        shop.publish((f"u{number}{chance.randrange(3)}", chance.choice(TOPICS)), number=number)
        name = chance.choice("ab")
        worker = workers[name]
        match chance.randrange(14):
            case 0:  # killed, and back at once
                worker.kill()
                workers[name] = shop.start(name, mine(name))
            case 1:
                worker.kill()
                replace(name)
            case 2:
                worker.clock.advance(61)
                if die_writing(worker, chance.randint(1, 6), worker.loop.tick):
                    replace(name)
            case 3 | 4 if owners[number] == name:
                leave = worker.source.revoke if chance.random() < 0.7 else worker.source.lose
                leave(both(number))
                if die_writing(worker, chance.randint(1, 8), worker.loop.tick):
                    replace(name)
                else:
                    owners[number] = "b" if name == "a" else "a"
                    workers[owners[number]].source.assign(both(number))
            case 5:
                worker.clock.advance(61)
            case _:
                worker.clock.advance(chance.choice([0.1, 1.5]))
                worker.loop.tick()
    for name, worker in workers.items():
        worker.finish()
        shop.assert_whole(name, [user for user in shop.events if owners[int(user[1])] == name])


def test_records_are_merged_by_time_whatever_the_size_of_a_read() -> None:
    chance = random.Random(3)
    log = MemoryLog({"a": 1, "b": 1, "c": 1})
    for number in range(90):
        log.append(
            b"%d" % number, topic=chance.choice("abc"), timestamp=START_MS + number // 2, skip=number % 5 // 4
        )
    spans = [Span(*source, 2, log.end(source) + 3) for source in reversed(log.partitions())]
    (whole,) = parts_of(log, spans, 1000)[:1]
    times = [record.timestamp for record in whole.records]
    assert times == sorted(times)
    assert len(times) > 75
    for chunk in (1, 7, 30):
        parts = parts_of(log, spans, chunk)
        assert [record for part in parts for record in part.records] == whole.records
        assert all(len(part.records) <= chunk for part in parts)
        for part in parts:
            sources = [part.spans[place].source for place in part.order_R.tolist()]
            assert sources == [(record.topic, record.partition) for record in part.records]
        assert_no_gap(parts, spans)
    assert parts_of(log, [Span("a", 0, 4, 4), Span("a", 0, 5, 3)], 10) == []


def parts_of(log: MemoryLog, spans: Sequence[Span], chunk: int) -> list[Polled]:
    def read(asked: tuple[Span, ...], order: None) -> Polled:
        assert all(span.stop - span.start <= chunk for span in asked)
        return MemorySource(log).read(asked, order)

    return list(in_time_order(read, spans, chunk))


def assert_no_gap(parts: Sequence[Polled], spans: Sequence[Span]) -> None:
    at: dict[Any, int] = {span.source: span.start for span in spans}
    for span in (span for part in parts for span in part.spans):
        assert at[span.source] == span.start < span.stop
        at[span.source] = span.stop
    assert at == {span.source: span.stop for span in spans}

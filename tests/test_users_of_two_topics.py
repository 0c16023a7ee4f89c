"""Users with events in two topics: each is held once and whole, whatever becomes of the workers.

Both topics' partitions of one number go to one worker, as consumers/kafka/co_partitions.py sees to it. A
user's state lies with the partition of the newest event, so a move must bring both from the same moment.
"""

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from streams import small_settings
from workers import START_MS, Worker, publish, settings_for

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import Polled, Span, TopicPartition
from pipeline.recommender import Recommender
from pipeline.service.catch_up import in_time_order
from pipeline.settings import Settings

TOPICS = ("buys", "views")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: what the kernel has survives the end of a process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def both(number: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in TOPICS]


class Shop:
    """Two topics, the workers that read them, and what each user has done in order of time."""

    def __init__(self, folder: Path, numbers: int = 1) -> None:
        self.folder = folder
        self.log = MemoryLog(dict.fromkeys(TOPICS, numbers))
        self.events: dict[str, list[str]] = defaultdict(list)
        self.count = 0
        self.learners: dict[str, Recommender] = {}

    def start(self, name: str, numbers: Iterable[int] = (0,)) -> Worker:
        settings = settings_of(self.folder, name)
        learner = self.learners[name] = Recommender(settings)
        mine = [source for number in numbers for source in both(number)]
        worker = Worker(
            self.log, settings, assigned=mine, wrap=lambda part, it: learner if part == "learner" else it
        )
        worker.loop.start()
        worker.loop.tick()
        return worker

    def publish(self, user: str, topic: str, number: int = 0) -> None:
        publish(self.log, [user], TopicPartition(topic, number), start=self.count)
        self.events[user].append(f"item-{self.count}")
        self.count += 1

    def trim(self) -> None:
        """Drop the records so far, as retention does: users are in shards alone."""
        for source in self.log.partitions():
            self.log.trim(source, self.log.end(source))

    def assert_whole(self, name: str, users: Iterable[str] | None = None) -> None:
        """Every user has learned each event once, in order of time."""
        state = self.learners[name].state
        for user in self.events if users is None else users:
            row = state.users.row_of[user]
            items, _ = state.histories.window(row, state.items.status.data)
            assert [state.items.id_of[item] for item in items.tolist()] == self.events[user][::-1]
            assert state.histories.pushed.data[row] == len(self.events[user])


def settings_of(folder: Path, name: str) -> Settings:
    small = small_settings(name="popularity", history=64).model
    return structs.replace(settings_for(folder, name), model=small)


def die_writing(worker: Worker, nth: int, act: Callable[[], None]) -> bool:
    """Let a worker act, and kill it before its nth file is written; say whether that came."""
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


def test_both_topics_users_are_revoked_and_taken_over_whole(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    old = shop.start("old")
    for user, topic in [
        ("ann", "views"),
        ("bob", "buys"),
        ("ann", "buys"),
        ("bob", "views"),
        ("cyd", "views"),
    ]:
        shop.publish(user, topic)
        old.finish()
    old.source.revoke(both(0))
    old.loop.tick()
    assert shop.learners["old"].offsets == {}
    shop.publish("ann", "views")
    shop.start("new").finish()
    shop.assert_whole("new")


def test_a_dead_workers_topics_are_caught_up_in_order_of_time(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    dead = shop.start("dead")
    for topic in ("views", "buys", "views"):
        shop.publish("ann", topic)
    dead.finish()
    dead.loop.checkpoint()
    for topic in ("views", "buys", "views", "views", "buys", "views"):
        shop.publish("ann", topic)
        dead.finish()
    dead.settle()
    dead.kill()
    heir = shop.start("heir")
    heir.finish()
    shop.assert_whole("heir")
    assert shop.learners["heir"].state.events_learned == 0  # the model of another worker has learned them


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_worker_that_is_killed_while_it_saves_leaves_its_users_whole(tmp_path: Path, nth: int) -> None:
    """The files are the users, the model and the manifest."""
    shop = Shop(tmp_path)
    dead = shop.start("dead")
    for user, topic in [("ann", "views"), ("bob", "buys")]:
        shop.publish(user, topic)
    dead.finish()
    dead.loop.checkpoint()
    shop.trim()
    for user, topic in [("ann", "buys"), ("bob", "views")]:  # each goes on to the other topic
        shop.publish(user, topic)
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
    for user, topic in [("ann", "views"), ("bob", "buys")]:
        shop.publish(user, topic)
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
    """While the worker was dead another one has learned events of one topic, and died without a shard."""
    shop = Shop(tmp_path)
    first = shop.start("first")
    for user, topic in [("ann", "buys"), ("bob", "views")]:
        shop.publish(user, topic)
    first.finish()
    first.loop.checkpoint()
    for user, topic in [("ann", "views"), ("bob", "buys")]:
        shop.publish(user, topic)
    first.finish()
    first.settle()
    first.kill()
    second = shop.start("second")
    shop.publish("ann", "buys")
    second.finish()
    second.settle()
    second.kill()
    (tmp_path / "shards").rename(tmp_path / "all")
    keep_shards_of(tmp_path, "first")
    shop.start("first").finish()
    shop.assert_whole("first")


def keep_shards_of(folder: Path, worker: str) -> None:
    """Put the shards of one worker back."""
    for path in (folder / "all").rglob("*.safetensors"):
        if f"-{worker}-" in path.name:
            to = folder / "shards" / path.relative_to(folder / "all")
            to.parent.mkdir(parents=True, exist_ok=True)
            path.rename(to)


@pytest.mark.parametrize("seed", [4, 5, 34, 45, 97, 149])  # each has found a mistake
def test_users_learn_every_event_of_both_topics_once_whatever_the_group_does(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    shop = Shop(tmp_path, numbers=2)
    owners = {0: "a", 1: "b"}
    workers = {name: shop.start(name, [number]) for number, name in owners.items()}

    def mine(name: str) -> list[int]:
        return [number for number, owner in owners.items() if owner == name]

    def bury(name: str) -> None:
        """Let the other worker have a dead one's numbers, and the dead one come back without."""
        heir = "b" if name == "a" else "a"
        for number in mine(name):
            owners[number] = heir
            workers[heir].source.assign(both(number))
        if chance.random() < 0.7:
            workers[heir].loop.tick()
        workers[name] = shop.start(name, [])

    for _ in range(80):
        number = chance.randrange(2)
        shop.publish(f"u{number}{chance.randrange(3)}", chance.choice(TOPICS), number)
        name = chance.choice("ab")
        worker = workers[name]
        match chance.randrange(14):
            case 0:  # killed, and back at once
                worker.kill()
                workers[name] = shop.start(name, mine(name))
            case 1:
                worker.kill()
                bury(name)
            case 2:
                worker.clock.advance(61)
                if die_writing(worker, chance.randint(1, 6), worker.loop.tick):
                    bury(name)
            case 3 | 4 if owners[number] == name:
                leave = worker.source.revoke if chance.random() < 0.7 else worker.source.lose
                leave(both(number))
                if die_writing(worker, chance.randint(1, 8), worker.loop.tick):
                    bury(name)
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


def parts_of(log: MemoryLog, spans: Sequence[Span], chunk: int) -> list[Polled]:
    def read(asked: tuple[Span, ...], order: None) -> Polled:
        assert all(span.stop - span.start <= chunk for span in asked)
        return MemorySource(log).read(asked, order)

    return list(in_time_order(read, spans, chunk))


def assert_no_gap(parts: Sequence[Polled], spans: Sequence[Span]) -> None:
    """The parts' spans follow each other from the first offset to the last."""
    at: dict[Any, int] = {span.source: span.start for span in spans}
    for span in (span for part in parts for span in part.spans):
        assert at[span.source] == span.start < span.stop
        at[span.source] = span.stop
    assert at == {span.source: span.stop for span in spans}


def test_nothing_is_read_where_nothing_is_missing() -> None:
    log = MemoryLog({"a": 1})
    assert parts_of(log, [Span("a", 0, 4, 4), Span("a", 0, 5, 3)], 10) == []

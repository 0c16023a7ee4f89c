"""Users with events in several partitions: detected, counted, and exact after a restart."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from harness.streams import Batches, Event, new_state, shoppers, small_settings
from harness.workers import P0, P1, Worker, changed, publish, settings_for

from consumers.memory import MemoryLog
from pipeline.events.batch import RawBatch, Span
from pipeline.recommender import Recommender
from pipeline.state.state import State


@pytest.fixture
def state() -> State:
    return new_state(small_settings())


def moves(state: State, batches: Batches, *events: Event) -> int:
    return state.admit(batches(events)).moved


def test_each_event_from_another_partition_is_a_move(state: State) -> None:
    batches = Batches()
    for item in "ab":  # each user in one partition
        assert moves(state, batches, Event("u", item, partition=1), Event("v", item)) == 0
    assert moves(state, batches, Event("u", "b"), Event("v", "b")) == 1
    thrice = [Event("v", item, partition=number) for item, number in (("a", 2), ("b", 1), ("c", 1))]
    assert moves(state, batches, *thrice) == 2
    assert moves(state, batches, Event("u", "c"), Event("v", "d", partition=1)) == 0


def two_topics(seq: int, places: list[tuple[str, int]]) -> RawBatch:
    """One event of user u from each of these partitions, in order."""
    raw = Batches(seq=seq)([Event("u", f"i{n}") for n in range(len(places))])
    distinct = list(dict.fromkeys(places))
    raw.events.source_B[:] = [distinct.index(place) for place in places]
    return dataclasses.replace(raw, spans=tuple(Span(*place, seq, seq + 1) for place in distinct))


def test_two_topics_are_no_move_but_two_partitions_of_one_of_them_are(state: State) -> None:
    """Only consecutive events are compared: a move behind another topic's event is not detected."""
    assert state.admit(two_topics(0, [("clicks", 3), ("orders", 5), ("clicks", 3)])).moved == 0
    assert state.admit(two_topics(1, [("orders", 5), ("orders", 4)])).moved == 1


def test_a_move_is_logged_once_with_advice(state: State, caplog: pytest.LogCaptureFixture) -> None:
    batches = Batches()
    for turn in range(4):
        moves(state, batches, Event("u", "a", partition=turn % 2), Event("v", "a", partition=turn % 2))
    (message,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    for words in ("user 'u'", "partition 1 of topic events", "in 0", "same partitioner (murmur2"):
        assert words in message


def test_moves_are_in_the_metrics_of_a_batch() -> None:
    recommender, batches = Recommender(small_settings()), Batches()
    recommender.step(batches([Event("u", "a"), Event("v", "a")]))
    outcome = recommender.step(batches([Event("u", "b", partition=1), Event("v", "b")]))
    assert outcome.metrics.moved == 1


class Scattered(Batches):
    def __call__(self, events: Sequence[Event], now_ms: int | None = None) -> RawBatch:
        chance = np.random.default_rng(self.seq)
        return super().__call__([each._replace(partition=int(chance.integers(3))) for each in events], now_ms)


def test_a_restart_is_exact_for_users_that_move() -> None:
    raws = shoppers(np.random.default_rng(4), Scattered(), 10, size=30, users=9, pace=3)
    unbroken = Recommender(small_settings())
    for raw in raws:
        unbroken.step(raw)
    resumed = Recommender(small_settings())
    for raw in raws[:6]:
        resumed.step(raw)
    snapshot = resumed.snapshot()
    again = Recommender(small_settings())
    again.restore(snapshot)
    held = [user for each in snapshot.shard.offsets for user in users_of(again, each)]
    assert len(held) == len(set(held)) == 9  # each user in one shard
    for raw in raws[6:]:
        again.step(raw)
    assert again.digests() == unbroken.digests()


def test_a_takeover_loses_no_event_of_a_user_that_moves(tmp_path: Path) -> None:
    """Both partitions' shards are loaded before either catches up from the topic."""
    log = MemoryLog({"events": 2})
    dead = recommending(log, tmp_path, "dead")
    for start, source in enumerate((P0, P1)):
        publish(log, ["ann"], source, start)
        dead.finish()
    dead.loop.checkpoint()  # ann is in the shard of partition 1
    for start, source in ((2, P0), (3, P1), (4, P0)):
        publish(log, ["ann"], source, start)
        dead.finish()
    dead.settle()
    dead.kill()
    heir = recommending(log, tmp_path, "heir")
    heir.finish()
    items = [entry["item_id"] for entry in heir.learner.describe_user("ann")["history"]]
    assert sorted(items) == [f"item-{number}" for number in range(5)]


def recommending(log: MemoryLog, folder: Path, name: str) -> Worker:
    settings = changed(settings_for(folder, name), model__tables={"attention": {"dim": 8, "history": 8}})
    worker = Worker(log, settings, learner=Recommender(settings))
    worker.loop.start()
    return worker


def users_of(recommender: Recommender, source: object) -> list[str]:
    state = recommender.state
    number = state.partitions.index(source)  # type: ignore[arg-type]
    rows = np.flatnonzero(state.partition_of.partition.data == number)
    return [state.users.id_of[row] for row in rows.tolist()]

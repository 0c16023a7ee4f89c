"""Kill the loop at thousands of points and restart it: the end equals that of an unbroken run.

Each life ends in a call of source, sink or learner, a line of the journal or a file of a checkpoint.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from crashes import ITEMS, TOPICS, World, events_in, fill, is_spoiled, settings_for
from harness.learners import CountingLearner
from harness.workers import changed, repeat

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import Record
from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.settings import Settings


def small_recommender(settings: Settings) -> Recommender:
    return Recommender(changed(settings, model__tables={"attention": {"dim": 8, "history": 8}}))


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: what the kernel has survives the end of a process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Reference(NamedTuple):
    digests: dict[str, str]
    events_learned: int
    newest: dict[str, Ranking]


def never_killed(world: World) -> Reference:
    """Repeat the batches of a world's journal from an empty state."""
    learner = world.make(world.settings)
    journal = Journal(world.folder / world.settings.kafka.worker_id)
    newest = repeat(journal, learner, MemorySource(world.log), world.decoder())
    return Reference(learner.digests(), learner.events_learned, newest)


def make_world(folder: Path, make: Any, events: int, seed: int) -> World:
    log = MemoryLog(TOPICS)
    fill(log, events, seed)
    return World(folder, make, settings_for(folder), log, seed)


def assert_as_if_never_killed(world: World) -> None:
    """Start once more over what is left; compare the end with the unbroken run."""
    learner = world.live()
    assert learner is not None
    reference = never_killed(world)
    records = [record for source in world.log.partitions() for record in world.log.read(source, 0)]
    records += catalog_read(world, learner)
    bad = {(r.topic, r.partition, r.offset) for r in records if is_spoiled(r)}
    events = sum(events_in(record) for record in records if record.topic != ITEMS.topic)
    assert learner.events_learned == reference.events_learned == events
    assert learner.digests() == reference.digests
    assert of_users(world.outbox.newest) == of_users(reference.newest)
    assert not shown(world) & withdrawn(world, learner)
    assert {(r.record.topic, r.record.partition, r.record.offset) for r in world.outbox.rejects} == bad
    assert world.log.committed == {source: world.log.end(source) for source in world.log.partitions()}


def catalog_read(world: World, learner: Any) -> list[Record]:
    return list(world.items.read(ITEMS, 0, learner.item_offsets.get(ITEMS, 0)))


def shown(world: World) -> set[str]:
    return {item.item_id for ranking in world.outbox.newest.values() for item in ranking.items}


def withdrawn(world: World, learner: Any) -> set[str]:
    """Return the items that the last record about them withdrew, as far as it was read."""
    available: dict[str, bool] = {}
    for record in catalog_read(world, learner):
        if not is_spoiled(record):
            assert record.key is not None
            available[record.key.decode()] = msgspec.json.decode(record.value or b"")["available"]
    return {item for item, is_available in available.items() if not is_available}


def of_users(newest: dict[str, Ranking]) -> dict[str, Ranking]:
    """Leave out the default list: each life publishes it again."""
    return {user: ranking for user, ranking in newest.items() if user != DEFAULT_USER}


@pytest.mark.parametrize(
    ("make", "stride", "seed"), [(CountingLearner, 1, 0), (CountingLearner, 1, 1), (small_recommender, 17, 0)]
)
def test_a_crash_at_any_operation_changes_nothing(tmp_path: Path, make: Any, stride: int, seed: int) -> None:
    whole = make_world(tmp_path / "whole", make, 110, seed)
    assert whole.live() is not None
    operations = whole.fate.done
    assert operations > 150
    for last in range(1, operations + 1, stride):
        world = make_world(tmp_path / str(last), make, 110, seed)
        assert world.live(last) is None, f"operation {last} of {operations} did not happen"
        assert_as_if_never_killed(world)


@pytest.mark.parametrize(
    ("make", "rows"),
    [pytest.param(CountingLearner, 50, id="counting"), pytest.param(small_recommender, 2, id="recommender")],
)
def test_crashes_in_a_row_change_nothing(tmp_path: Path, make: Any, rows: int) -> None:
    crashes = 0
    for seed in range(rows):
        world = make_world(tmp_path / str(seed), make, 300, seed)
        mean = world.fate.random.choice([20, 45, 100])
        while world.crashes < 100 and world.live(1 + int(world.fate.random.expovariate(1 / mean))) is None:
            pass
        crashes += world.crashes
        assert_as_if_never_killed(world)
    assert crashes > 20 * rows

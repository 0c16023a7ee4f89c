"""Kill the loop at thousands of points and go on: as if nothing had happened.

Each life ends in the middle of some operation (a call of source, sink or learner, a line of the journal, a
file of a checkpoint); the next one starts with new objects over what survived. The reference is a learner
that was never killed, and that repeats the journal's batches from an empty state in one go.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from crashes import ITEMS, TOPICS, World, events_in, fill, is_spoiled, settings_for
from learners import CountingLearner

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import Record
from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.service.loop import with_catalog
from pipeline.settings import ModelConfig, Settings


class Case(NamedTuple):
    """A learner to kill, and how often: it must not take long."""

    make: Any
    singles: int  # streams of 110 events, with one crash at each operation of a run
    stride: int  # of these operations, every so many-th
    rows: int  # streams of 300 events, with a row of crashes each


def small_recommender(settings: Settings) -> Recommender:
    """Make the service's own learner, of a small shape."""
    return Recommender(msgspec.structs.replace(settings, model=ModelConfig(dim=8, history=8)))


CASES = [
    pytest.param(Case(CountingLearner, singles=2, stride=1, rows=50), id="counting"),
    pytest.param(Case(small_recommender, singles=1, stride=17, rows=2), id="recommender"),
]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: what the kernel has survives the end of a process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Reference(NamedTuple):
    """What a run never killed ends with."""

    digests: dict[str, str]
    events_learned: int
    newest: dict[str, Ranking]


def never_killed(world: World) -> Reference:
    """Repeat the batches of a world's journal from an empty state."""
    learner = world.make(world.settings)
    source, decoder = MemorySource(world.log), world.decoder()
    newest: dict[str, Ranking] = {}
    for entry in Journal(world.folder / world.settings.kafka.worker_id).entries(0):
        polled = source.read(entry.spans, entry.order_R)
        raw = with_catalog(decoder.decode(entry.seq, entry.now_ms, polled), entry.catalog)
        outcome = learner.step(raw)
        newest.update((ranking.user_id, ranking) for ranking in outcome.rankings)
    return Reference(learner.digests(), learner.events_learned, newest)


def make_world(folder: Path, make: Any, events: int, seed: int) -> World:
    """Return a new world with its log filled."""
    log = MemoryLog(TOPICS)
    fill(log, events, seed)
    return World(folder, make, settings_for(folder), log, seed)


def assert_as_if_never_killed(world: World) -> None:
    """Start once more over what is left; hold the end against the run never killed."""
    learner = world.live()
    assert learner is not None
    reference = never_killed(world)
    records = [record for source in world.log.partitions() for record in world.log.read(source, 0)]
    bad = {(r.topic, r.partition, r.offset) for r in records if is_spoiled(r)}
    assert learner.events_learned == reference.events_learned == sum(map(events_in, records))
    assert learner.digests() == reference.digests
    assert of_users(world.outbox.newest) == of_users(reference.newest)
    assert shown(world) & withdrawn(world, learner) == set()
    bad |= {
        ("items", 0, at.offset)
        for at in world.items.read(ITEMS, 0)
        if is_spoiled(at) and was_read(at, learner)
    }
    assert {(r.record.topic, r.record.partition, r.record.offset) for r in world.outbox.rejects} == bad
    assert world.log.committed == {source: world.log.end(source) for source in world.log.partitions()}


def was_read(record: Record, learner: Any) -> bool:
    """Say whether the items topic was read up to a record."""
    return record.offset < learner.item_offsets.get(ITEMS, 0)


def shown(world: World) -> set[str]:
    """Return all items of the newest lists."""
    return {item.item_id for ranking in world.outbox.newest.values() for item in ranking.items}


def withdrawn(world: World, learner: Any) -> set[str]:
    """Return the items whose last word, as far as it was read, is that they may not be shown."""
    said: dict[str, bool] = {}
    for record in world.items.read(ITEMS, 0):
        if not is_spoiled(record) and was_read(record, learner):
            said[record.key.decode()] = msgspec.json.decode(record.value)["available"]
    return {item for item, available in said.items() if not available}


def of_users(newest: dict[str, Ranking]) -> dict[str, Ranking]:
    """Leave out the list for people without events: each life publishes it once more."""
    return {user: ranking for user, ranking in newest.items() if user != DEFAULT_USER}


@pytest.mark.parametrize("case", CASES)
def test_one_crash_at_any_operation_changes_nothing(tmp_path: Path, case: Case) -> None:
    for seed in range(case.singles):
        whole = make_world(tmp_path / f"{seed}-whole", case.make, 110, seed)
        assert whole.live() is not None
        operations = whole.fate.done
        assert operations > 150
        for last in range(1, operations + 1, case.stride):
            world = make_world(tmp_path / f"{seed}-{last}", case.make, 110, seed)
            assert world.live(last) is None, f"operation {last} of {operations} did not happen"
            assert_as_if_never_killed(world)


@pytest.mark.parametrize("case", CASES)
def test_crashes_in_a_row_change_nothing(tmp_path: Path, case: Case) -> None:
    crashes = 0
    for seed in range(case.rows):
        world = make_world(tmp_path / str(seed), case.make, 300, seed)
        mean = world.fate.random.choice([20, 45, 100])
        while world.crashes < 100 and world.live(1 + int(world.fate.random.expovariate(1 / mean))) is None:
            pass
        crashes += world.crashes
        assert_as_if_never_killed(world)
    assert crashes > 20 * case.rows

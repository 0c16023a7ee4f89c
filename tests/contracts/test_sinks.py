"""The contract of every sink: order, content, tombstones, receipts, offsets. One suite over all of them."""

import importlib
import inspect
import pkgutil
import time
from collections.abc import Iterator

import pytest
from sinks import FACTORIES, SINKS, World, ranking, reject

import producers
from pipeline.events.records import DriftAlarm
from pipeline.service.ports import Publication, Sink


@pytest.fixture(params=FACTORIES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made: World = request.param(request)
    yield made
    made.close()


@pytest.fixture
def sink(world: World) -> Sink:
    return world.sink()


def test_every_sink_of_the_product_runs_the_contract() -> None:
    names = [module.name for module in pkgutil.walk_packages(producers.__path__, "producers.")]
    modules = map(importlib.import_module, names)
    classes = {each for module in modules for _, each in inspect.getmembers(module, inspect.isclass)}
    assert {each for each in classes if hasattr(each, "publish")} == SINKS


def test_rankings_are_published_under_their_user_with_their_content(world: World, sink: Sink) -> None:
    users = ("ann", "böb", "u-\U0001f40c", "x" * 256)
    sink.publish(Publication([ranking(user_id) for user_id in users])).wait(10)
    for user_id in users:
        assert world.rankings(user_id) == [ranking(user_id)]


def test_the_newest_ranking_of_a_user_is_last_and_a_removed_user_gets_a_tombstone(
    world: World, sink: Sink
) -> None:
    sink.publish(Publication([ranking("ann", "old"), ranking("bob")])).wait(10)
    sink.publish(Publication([ranking("ann", "new")], removed_users=["bob"])).wait(10)
    assert world.rankings("ann") == [ranking("ann", "old"), ranking("ann", "new")]
    assert world.rankings("bob") == [ranking("bob"), None]


@pytest.mark.parametrize(
    ("value", "key"),
    [(b"{", b"ann"), (b"\xff\xfe\x00", b"\x00\xff"), (b"", b""), (b"no key", None), (None, b"tombstone")],
)
def test_a_dead_letter_keeps_its_bytes(
    world: World, sink: Sink, value: bytes | None, key: bytes | None
) -> None:
    sink.publish(Publication(rejects=[reject(value, key)])).wait(10)
    assert world.letters() == [(key, value, "not_json")]


def test_a_drift_alarm_keeps_its_fields(world: World, sink: Sink) -> None:
    alarm = DriftAlarm("adwin", "hit_rate", 5_000, 0.3, 0.1, 1_700_000_000_000)
    sink.publish(Publication(alarms=[alarm])).wait(10)
    assert world.alarms() == [alarm]


def test_a_batch_is_published_without_a_wait(world: World, sink: Sink) -> None:
    receipt = sink.publish(Publication([ranking("ann")]))
    until = time.monotonic() + 10
    while not receipt.done():
        assert time.monotonic() < until
    assert world.rankings("ann") == [ranking("ann")]


def test_offsets_are_committed_with_the_batch_by_a_sink_that_commits_them(world: World, sink: Sink) -> None:
    sink.publish(Publication([ranking("ann")]), {world.source: 7}).wait(20)
    assert world.committed() == (7 if sink.commits_offsets else None)
    sink.publish(Publication(), {world.source: 9}).wait(20)
    assert world.committed() == (9 if sink.commits_offsets else None)


def test_a_new_sink_continues_where_the_last_one_was_closed(world: World) -> None:
    for name in ("r1", "r2"):
        sink = world.sink()
        sink.publish(Publication([ranking("ann", name)])).wait(20)
        sink.close()
    assert world.rankings("ann") == [ranking("ann", "r1"), ranking("ann", "r2")]

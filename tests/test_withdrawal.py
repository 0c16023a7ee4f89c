"""Items that must not be listed: withdrawn by the items topic, or blocked by the configuration."""

from pathlib import Path

import numpy as np
import pytest
from harness.streams import START_MS, Event, Shop, small_settings, source
from harness.workers import Worker
from test_loop import filled, restarted, started

from consumers.memory import MemoryLog
from pipeline.events.batch import ItemChange, TopicPartition
from pipeline.events.records import DEFAULT_USER
from pipeline.ranking.recipients import URGENT_A_BATCH

K = 5


def crowd(users: int, seed: int = 0) -> list[Event]:
    """Return three events of each user among twelve items, `i0` by far the most popular."""
    rng = np.random.default_rng(seed)
    return [
        Event(f"u{user}", f"i{min(int(item), 11)}", time_ms=START_MS + user)
        for user in range(users)
        for item in rng.geometric(0.25, 3)
    ]


@pytest.mark.parametrize(
    "name", ["attention", "popularity", "recent_popularity", "item_knn", "session_knn", "isgd"]
)
def test_a_withdrawn_item_leaves_all_lists_without_any_event(name: str) -> None:
    shop = Shop(small_settings(name=name))
    shop.steps(crowd(3 * URGENT_A_BATCH))
    victim = max((f"i{n}" for n in range(12)), key=lambda item: len(shop.holders(item)))
    assert len(shop.holders(victim)) > 2 * URGENT_A_BATCH
    outcome = shop.step([], (victim, False))
    assert len(outcome.refreshed) == URGENT_A_BATCH
    assert outcome.metrics.due == len(shop.holders(victim) - {DEFAULT_USER})
    assert shop.settle() <= 3
    assert shop.holders(victim) == set()
    assert all(len(items) >= K - 1 for items in shop.newest.values())  # other items replace it


def test_an_item_that_comes_back_is_shown_again() -> None:
    shop = Shop()
    shop.step(crowd(40))
    shop.step([], ("i1", False))
    shop.settle()
    assert not shop.holders("i1")
    shop.step(crowd(40, seed=1), ("i1", True))
    assert "i1" in shop.newest[DEFAULT_USER]
    assert shop.holders("i1") - {DEFAULT_USER}


def test_an_item_that_was_withdrawn_before_its_first_event_is_never_shown() -> None:
    shop = Shop()
    shop.step(crowd(20), ("lamp", False))
    shop.step([Event(f"u{user}", "lamp") for user in range(10)])
    shop.step(crowd(20, seed=1))
    assert not shop.holders("lamp")
    assert shop.recommender.describe_item("lamp") is not None  # its events count


def test_events_on_a_withdrawn_item_are_not_tested() -> None:
    shop = Shop()
    shop.step(crowd(20))
    shop.step([], ("i1", False))
    before = shop.recommender.quality.cumulative()["attention"]["tests"]
    shop.step([Event("newcomer", "i1")])
    shop.step([Event("newcomer", "i1")])
    assert shop.recommender.quality.cumulative()["attention"]["tests"] == before
    shop.step([Event("newcomer", "i2")])
    assert shop.recommender.quality.cumulative()["attention"]["tests"] == before + 1


def test_a_blocked_item_is_never_shown() -> None:
    shop = Shop(small_settings(blocked=["i0", "i1"]))
    shop.steps(crowd(60), 30)
    assert not shop.holders("i0") | shop.holders("i1")
    assert shop.holders("i2")
    shop.step([], ("i0", True))  # the items topic does not lift a block
    shop.step(crowd(60, seed=1))
    assert not shop.holders("i0")


def test_a_restart_keeps_what_is_withdrawn_and_applies_a_new_block_to_old_lists() -> None:
    shop = Shop()
    shop.step(crowd(30))
    shop.step([], ("i2", False))
    shop.settle()
    shop.restart(small_settings(blocked=["i1"]))
    assert shop.holders("i1")
    assert shop.settle() >= 1
    assert not shop.holders("i1") | shop.holders("i2")
    shop.step(crowd(30, seed=1))
    assert not shop.holders("i1") | shop.holders("i2")


def test_users_that_another_worker_brings_get_lists_without_what_is_withdrawn_here() -> None:
    theirs, ours = Shop(), Shop()
    theirs.step(crowd(30))
    ours.step([Event("me", "i1", partition=1), Event("me", "i2", partition=1)])
    ours.step([], ("i1", False))
    ours.settle()
    ours.newest |= theirs.newest
    ours.recommender.put(theirs.recommender.take([source(0)]))
    assert ours.recommender.pending_rankings
    ours.settle()
    assert not ours.holders("i1") - {DEFAULT_USER}


def test_without_events_the_default_list_holds_announced_items() -> None:
    shop = Shop()
    shop.recommender.held = {source(0)}
    assert shop.recommender.pending_rankings
    shop.step([])
    assert shop.newest == {DEFAULT_USER: []}
    assert not shop.recommender.pending_rankings
    shop.step([], ("lamp", True), ("desk", True), ("sold", False))
    assert shop.newest == {DEFAULT_USER: ["desk", "lamp"]}  # the newest first
    shop.step([], ("lamp", False))
    assert shop.newest == {DEFAULT_USER: ["desk"]}
    shop.step([Event("ann", "rug")])
    assert shop.newest[DEFAULT_USER] == ["rug", "desk"]  # items with events come first


def test_updates_that_do_not_change_availability_are_dropped() -> None:
    shop = Shop()
    shop.step([Event("ann", f"i{number}") for number in range(100)])
    known, withdrawn = [ItemChange(f"i{number}", True) for number in range(100)], ItemChange("i1", False)
    new = [ItemChange(f"new{number}", True) for number in range(50)]
    assert shop.recommender.catalog_changes([*known, *new, withdrawn]) == (*new, withdrawn)
    shop.step([], *((change.item_id, change.available) for change in new))
    assert shop.recommender.catalog_changes([*known, *new]) == ()


def test_the_order_of_urgent_lists_does_not_depend_on_row_numbers() -> None:
    def order(restored: bool) -> list[str]:
        shop = Shop()
        shop.steps(crowd(2 * URGENT_A_BATCH))
        if restored:
            shop.restart()
        outcome = shop.step([], ("i1", False), ("i2", False))
        return [ranking.user_id for ranking in outcome.rankings]

    assert order(restored=False) == order(restored=True)
    assert len(order(restored=False)) >= URGENT_A_BATCH


# The items topic, read by the loop


@pytest.fixture
def items() -> MemoryLog:
    return MemoryLog({"items": 1})


def withdraw(items: MemoryLog, *names: str) -> None:
    for name in names:
        items.append(None, topic="items", key=name.encode())


def shown(worker: Worker) -> set[str]:
    return {item.item_id for ranking in worker.outbox.newest.values() for item in ranking.items}


def reading(log: MemoryLog, folder: Path, items: MemoryLog) -> Worker:
    worker = started(log, folder, items=items)
    while not worker.loop.catalog.complete:
        worker.loop.tick()
    return worker


def test_the_items_topic_is_read_to_its_end_before_the_first_event(tmp_path: Path, items: MemoryLog) -> None:
    withdraw(items, *(f"item-{number}" for number in range(1, 6)))
    worker = reading(filled(["ann", "bob"]), tmp_path, items)
    assert (worker.learner.seq, worker.learner.events_learned) == (3, 0)  # two records a poll
    worker.finish()
    assert shown(worker) == {"item-0"}


def test_a_restart_continues_the_items_topic_at_its_offset(tmp_path: Path, items: MemoryLog) -> None:
    withdraw(items, "item-0")
    worker = reading(filled(["ann", "bob"]), tmp_path, items)
    worker.finish()
    items.trim(TopicPartition("items", 0), 1)  # as compaction may: the journal holds the record
    again = restarted(worker, outbox=worker.outbox, items=items)
    assert again.learner.withdrawn == {"item-0"}
    assert again.learner.item_offsets == {TopicPartition("items", 0): 1}
    withdraw(items, "item-1")
    again.settle()
    again.settle()
    assert shown(again) == set()

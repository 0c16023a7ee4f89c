"""Users without events get the default list; with each event their lists move to their own preferences."""

import dataclasses

import numpy as np
import pytest
from harness.streams import Event, Shop, small_settings

from pipeline.events.batch import Span, TopicPartition
from pipeline.events.records import DEFAULT_USER

SHELVES, ITEMS = 8, 20  # preferences, and items of each
K = 10


class Shelves(Shop):
    """Users who take items of one shelf only; all shelves are equally popular."""

    def __init__(self, name: str) -> None:
        super().__init__(small_settings(name=name, k=K, history=10, dim=16))
        self.rng = np.random.default_rng(3)

    def walk(self, user: str, shelf: int, steps: int) -> list[Event]:
        return [Event(user, f"s{shelf}-{item}") for item in self.rng.permutation(ITEMS)[:steps].tolist()]

    def learn_users(self, users: int) -> None:
        for first in range(0, users, 10):
            walks = [self.walk(f"u{user}", user % SHELVES, 5) for user in range(first, first + 10)]
            self.step([event for step in zip(*walks, strict=True) for event in step])


def share_of(shelf: int, items: list[str]) -> float:
    return sum(item.startswith(f"s{shelf}-") for item in items) / len(items)


@pytest.mark.parametrize("name", ["attention", "item_knn"])
def test_lists_of_new_users_leave_the_default_list_with_each_event(name: str) -> None:
    shop = Shelves(name)
    shop.learn_users(1_600)
    default = shop.newest[DEFAULT_USER]
    assert len(default) == K
    assert max(share_of(shelf, default) for shelf in range(SHELVES)) <= 0.5
    own, in_common = [], []
    walks = {f"new{n}": shop.walk(f"new{n}", n % SHELVES, 4) for n in range(2 * SHELVES)}
    for step in range(4):
        shop.step([walk[step] for walk in walks.values()])
        lists = [shop.newest[f"new{n}"] for n in range(len(walks))]
        own.append(np.mean([share_of(n % SHELVES, items) for n, items in enumerate(lists)]))
        in_common.append(np.mean([len({*items} & {*shop.newest[DEFAULT_USER]}) for items in lists]))
    assert own[0] > share_of(0, default) + 2 / SHELVES  # after one event already
    assert own[-1] > 0.9
    assert in_common[-1] <= max(in_common[0], 1) < K / 2


def test_a_worker_that_leads_again_publishes_its_default_list_again() -> None:
    shop = Shelves("item_knn")
    recommender, first = shop.recommender, TopicPartition("events", 0)
    shop.learn_users(40)
    before = shop.newest.pop(DEFAULT_USER)
    recommender.release([first])
    elsewhere = dataclasses.replace(shop.batches(shop.walk("new", 0, 1)), spans=(Span("events", 1, 0, 1),))
    assert [ranking.user_id for ranking in shop.learn(elsewhere).rankings] == ["new"]
    recommender.held = {first}
    assert recommender.pending_rankings
    shop.step([])
    assert set(shop.newest[DEFAULT_USER]) & set(before)
    assert not recommender.pending_rankings

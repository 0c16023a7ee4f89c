"""People without events get the default list; with each event their lists turn to what is their own."""

from dataclasses import replace

import numpy as np
import pytest
from streams import START_MS, Batches, Event, small_settings

from pipeline.events.batch import Span, TopicPartition
from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.recommender import Recommender

SHELVES, ITEMS = 8, 20  # tastes, and items of each
K = 10


class Shop:
    """A shop whose users each take from one shelf only; shelves are popular one like the other."""

    def __init__(self, name: str) -> None:
        self.recommender = Recommender(small_settings(name=name, k=K, history=10, dim=16))
        self.batches, self.rng = Batches(), np.random.default_rng(3)
        self.newest: dict[str, list[str]] = {}

    def walk(self, user: str, shelf: int, steps: int) -> list[Event]:
        items = self.rng.permutation(ITEMS)[:steps].tolist()
        return [Event(user, f"s{shelf}-{item}", time_ms=START_MS) for item in items]

    def learn(self, users: int) -> None:
        for first in range(0, users, 10):
            walks = [self.walk(f"u{user}", user % SHELVES, 5) for user in range(first, first + 10)]
            self.step([event for step in zip(*walks, strict=True) for event in step])

    def step(self, events: list[Event]) -> None:
        self.keep(self.recommender.step(self.batches(events)).rankings)

    def keep(self, rankings: list[Ranking]) -> None:
        for ranking in rankings:
            self.newest[ranking.user_id] = [item.item_id for item in ranking.items]


def share_of(shelf: int, items: list[str]) -> float:
    return sum(item.startswith(f"s{shelf}-") for item in items) / len(items)


def shared(one: list[str], other: list[str]) -> int:
    return len(set(one) & set(other))


@pytest.mark.parametrize("name", ["attention", "item_knn"])
def test_lists_of_new_users_leave_the_default_list_with_each_event(name: str) -> None:
    shop = Shop(name)
    shop.learn(1_600)
    default = shop.newest[DEFAULT_USER]
    assert len(default) == K
    assert max(share_of(shelf, default) for shelf in range(SHELVES)) <= 0.5
    own, in_common = [], []
    walks = {f"new{n}": shop.walk(f"new{n}", n % SHELVES, 4) for n in range(2 * SHELVES)}
    for step in range(4):
        shop.step([walk[step] for walk in walks.values()])
        lists = [(n % SHELVES, shop.newest[f"new{n}"]) for n in range(len(walks))]
        own.append(np.mean([share_of(shelf, items) for shelf, items in lists]))
        in_common.append(np.mean([shared(items, shop.newest[DEFAULT_USER]) for _, items in lists]))
    assert own[0] > share_of(0, default) + 2 / SHELVES  # one event tells something already
    assert own[-1] > 0.9
    assert in_common[-1] <= max(in_common[0], 1) < K / 2


def test_a_worker_that_leads_again_publishes_its_default_list_again() -> None:
    shop = Shop("item_knn")
    recommender, first = shop.recommender, TopicPartition("events", 0)
    shop.learn(40)
    told = shop.newest.pop(DEFAULT_USER)
    recommender.release([first])
    elsewhere = replace(shop.batches(shop.walk("new", 0, 1)), spans=(Span("events", 1, 0, 1),))
    assert [ranking.user_id for ranking in recommender.step(elsewhere).rankings] == ["new"]
    recommender.held = {first}
    assert recommender.pending_rankings
    shop.keep(recommender.step(replace(shop.batches([]), spans=())).rankings)
    assert set(shop.newest[DEFAULT_USER]) & set(told)
    assert not recommender.pending_rankings

"""No list is shorter than K while K items can be listed: announced items fill up short lists."""

from typing import Any

import numpy as np
import pytest
from harness.streams import START_MS, Event, Shop, small_settings, source
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.events.records import DEFAULT_USER, Ranking
from pipeline.models.training import draw_negatives
from pipeline.outcome import Outcome
from pipeline.settings import LimitsConfig
from pipeline.state import availability
from pipeline.state.tables import LIVE

K = 5
MODELS = ["attention", "popularity", "markov", "item_knn", "session_knn", "isgd", "biased_mf"]


def announce(*names: str) -> list[tuple[str, bool]]:
    return [(name, True) for name in names]


def withdraw(*names: str) -> list[tuple[str, bool]]:
    return [(name, False) for name in names]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


def shop_with(items: int, name: str = "attention", limits: LimitsConfig | None = None) -> Shop:
    """Return a shop in which each of these items has one event, by one of 30 users."""
    shop = Shop(small_settings(name=name, limits=limits))
    shop.steps([Event(f"u{n % 30}", f"i{n}", time_ms=START_MS + n) for n in range(items)])
    return shop


def ranking_of(outcome: Outcome, user: str) -> Ranking:
    (ranking,) = (each for each in outcome.rankings if each.user_id == user)
    scores = [item.score for item in ranking.items]
    assert scores == sorted(scores, reverse=True)
    return ranking


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("before", [True, False], ids=["announced before", "announced after"])
def test_all_lists_are_full_when_a_catalogue_turns_over(name: str, before: bool) -> None:
    shop = shop_with(300, name)
    changes = [announce(*numbered("new", 50)), withdraw(*numbered("i", 300))]
    for some in changes if before else changes[::-1]:
        shop.step([], *some)
        shop.settle()
    assert len(shop.newest) == 31
    assert {tuple(items) for items in shop.newest.values()} == {tuple(numbered("new", 50)[: -K - 1 : -1])}


def test_a_new_user_of_a_service_without_events_has_a_full_list_after_three_clicks() -> None:
    shop = Shop()
    shop.step([], *announce(*numbered("new", 1000)))
    for step in range(3):
        ranking = ranking_of(shop.step([Event("me", f"new{990 + step}")]), "me")
        assert len(ranking.items) == K
    assert [item.item_id for item in ranking.items] == numbered("new", 1000)[: -K - 1 : -1]
    assert not any(item.because for item in ranking.items)


@pytest.mark.parametrize("name", ["attention", "popularity"])
def test_items_with_events_come_before_announced_ones(name: str) -> None:
    shop = Shop(small_settings(name=name))
    shop.step([Event("ann", "rug"), Event("bob", "rug"), Event("bob", "pan")], *announce("lamp", "desk"))
    items = ranking_of(shop.step([Event("cid", "rug")]), "cid").items
    described = shop.recommender.describe_item("lamp")
    assert described == {"item_id": "lamp", "events": 0.0, "available": True, "hidden": ""}
    assert [item.item_id for item in items] == ["pan", "desk", "lamp"]
    assert items[1].score == items[2].score == min(items[0].score, 0.0)


def test_a_user_who_has_consumed_all_popular_items_gets_the_next_most_popular() -> None:
    shop = Shop(small_settings(name="popularity"))
    taken = [Event(f"v{n}", f"i{item}") for item in range(300) for n in range(3)]
    others = [Event("w", f"j{item}") for item in range(400)] + [Event(f"x{n}", "j399") for n in range(2)]
    shop.steps([*taken, *others, *(Event("me", f"i{item}") for item in range(300))])
    assert len(shop.newest["me"]) == K
    assert shop.newest["me"][0] == "j399"
    assert set(shop.newest["me"]) <= set(numbered("j", 400))
    assert len(shop.recommender.state.items.announced) == 0


def test_nothing_withdrawn_or_blocked_is_filled_in() -> None:
    shop = Shop(small_settings(blocked=["gift"]))
    shop.step([Event("ann", "rug")], *announce("gift", "lamp", "desk", "vase"), *withdraw("sold"))
    assert shop.newest == {"ann": ["vase", "desk", "lamp"], DEFAULT_USER: ["rug", "vase", "desk", "lamp"]}
    shop.step([], *withdraw("desk"))
    shop.settle()
    assert shop.newest == {"ann": ["vase", "lamp"], DEFAULT_USER: ["rug", "vase", "lamp"]}
    shop.step([], *announce("desk"))
    shop.settle()
    assert shop.newest == {"ann": ["desk", "vase", "lamp"], DEFAULT_USER: ["rug", "desk", "vase", "lamp"]}
    shop.restart(small_settings(blocked=["vase"]))
    shop.settle()
    assert shop.newest["ann"] == ["desk", "lamp", "gift"]
    assert shop.recommender.state.items.find(["vase"]).tolist() == [-1]


def test_short_lists_are_made_again_when_items_get_their_first_events() -> None:
    shop = Shop()
    shop.step([Event("ann", "i0")])
    assert shop.newest["ann"] == []
    shop.step([Event("bob", f"i{n}") for n in range(1, 4)])
    assert shop.settle() == 0  # with the batch itself
    assert set(shop.newest["ann"]) == {"i1", "i2", "i3"}
    shop.step([Event("bob", f"i{n}") for n in range(4, 9)])
    assert len(shop.newest["ann"]) == K
    outcome = shop.step([Event("bob", "i9")])
    assert outcome.refreshed == {}  # a full list waits for its user's next event


def test_the_default_list_grows_while_a_backlog_of_long_ago_is_read() -> None:
    shop = Shop()
    shop.recommender.held = {source(0)}
    shop.step([])
    raw = shop.batches([Event("ann", f"i{n}") for n in range(9)], now_ms=START_MS)
    raw.events.append_ms_B[:] -= 30 * 24 * 3_600_000
    shop.learn(raw)
    assert shop.newest.keys() == {DEFAULT_USER}
    assert len(shop.newest[DEFAULT_USER]) == K


def test_announced_items_change_no_measurement_and_no_learning() -> None:
    def learned(*names: str) -> Shop:
        shop, rng = Shop(), np.random.default_rng(0)
        shop.step([Event(f"u{n % 9}", f"i{n}") for n in range(40)])
        shop.step([], *announce(*names))
        for step in range(12):
            items = [f"i{n}" for n in rng.integers(40 + 5 * step, size=20)]
            shop.step([Event(f"u{rng.integers(9)}", item) for item in items])
        return shop

    plain, with_news = learned(), learned(*numbered("i", 90), *numbered("never", 90))
    assert len(with_news.recommender.state.items.announced) >= K
    assert plain.newest == with_news.newest
    assert plain.recommender.quality.cumulative() == with_news.recommender.quality.cumulative()
    coverage = []
    for shop in (plain, with_news):
        items = shop.recommender.state.items
        coverage.append(shop.recommender.exposure.coverage(np.flatnonzero(items.status.data == LIVE)))
        drawn = {items.id_of[row] for row in draw_negatives(items, seed=0, seq=7)}
        assert drawn == plain.recommender.state.items.row_of.keys()
    assert coverage[0] == coverage[1] > 0


def test_an_event_of_a_listed_announced_item_is_a_hit() -> None:
    shop = Shop()
    shop.step([Event("ann", "rug")], *announce("lamp"))
    before = shop.recommender.quality.list_hits()
    shop.step([Event("ann", "lamp")])
    after = shop.recommender.quality.list_hits()
    assert (after.events - before.events, after.hr) == (1, 1.0)


def test_a_huge_catalogue_is_announced_in_few_rows() -> None:
    shop = shop_with(30)
    for first in range(0, 200_000, 5_000):
        shop.step([], *announce(*(f"new{n}" for n in range(first, first + 5_000))))
    items = shop.recommender.state.items
    assert len(shop.recommender.state.availability.announced) == 200_000
    assert len(items.announced) <= availability.ROWS
    assert items.used < 2 * availability.ROWS
    shop.step([], *withdraw(*(f"new{n}" for n in range(200, 200_000))))
    shop.step([], *withdraw(*numbered("i", 30)))
    shop.settle()
    assert {tuple(shown) for shown in shop.newest.values()} == {tuple(numbered("new", 200)[: -K - 1 : -1])}


def test_announced_items_are_evicted_before_items_with_events() -> None:
    limits = LimitsConfig(items=40)
    shop = shop_with(30, limits=limits)
    items = shop.recommender.state.items
    for n in range(60):
        shop.step([], *announce(f"new{n}"))
        assert len(items) == 30
        assert len(items.announced) <= 10
    assert len(shop.recommender.state.availability.announced) == 40
    shop.step([Event("u0", f"j{n}") for n in range(10)])
    assert len(items) == 40
    assert len(items.announced) == K  # what lists may need
    shop.step([Event("u0", "j10")])
    assert items.evicted == 1
    assert "new3" not in items.announced
    shop.step([Event("u1", "new3")])  # no longer announced
    assert items.row_of.keys() >= {"new3"}
    assert items.evicted == 2


def test_an_announced_item_is_admitted_after_as_many_events_as_any_other() -> None:
    shop = Shop(small_settings(limits=LimitsConfig(admit_after=2)))
    shop.step([], *announce("lamp", "desk"))
    items = shop.recommender.state.items
    shop.step([Event("ann", "lamp")])
    assert items.row_of == {}
    assert shop.newest["ann"] == ["desk", "lamp"]
    shop.step([Event("bob", "lamp")])
    assert items.row_of.keys() == {"lamp"}
    assert items.status.data[items.row_of["lamp"]] == LIVE


users, items = st.integers(0, 3).map("u{}".format), st.integers(0, 15).map("i{}".format)
kinds = st.sampled_from(["click", "view", "impression"])
events = st.lists(st.tuples(users, items, kinds), max_size=6)
changes = st.dictionaries(items, st.booleans(), max_size=6)
steps = st.lists(st.tuples(events, changes, st.booleans()), max_size=8)


@given(steps, st.sampled_from(["attention", "popularity", "item_knn"]), st.sampled_from([0, 1024]))
@settings(max_examples=40)
def test_every_list_holds_k_of_what_its_user_can_be_listed(stream: Any, name: str, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(availability, "ROWS", rows)  # 0: the K newest alone have rows
        shop = Shop(small_settings(blocked=["i3", "i13"], name=name))
        known, available, consumed = set[str](), dict[str, bool](), dict[str, set[str]]()
        for events, changes, restart in stream:
            batch = [Event(*fields) for fields in events]
            shop.step(batch, *changes.items())
            known |= {event.item for event in batch}
            available |= changes
            for event in batch:
                if event.type == "click":
                    consumed.setdefault(event.user, set()).add(event.item)
            if restart:
                shop.restart()
            shop.settle()
            for user, items in shop.newest.items():
                withdrawn = {item for item, there in available.items() if not there}
                allowed = (known | available.keys()) - withdrawn - consumed.get(user, set()) - {"i3", "i13"}
                assert len(items) == len(set(items)) == min(K, len(allowed)), (user, items, allowed)
                assert set(items) <= allowed

"""Rows of announced items are reused without a trace, restored, and move to another worker."""

from collections.abc import Sequence

import numpy as np
from harness.streams import Event, Shop, small_settings, source
from test_full_lists import K, announce, numbered, withdraw

from pipeline.settings import LimitsConfig
from pipeline.state.tables import ANNOUNCED, HIDDEN, RETIRED


def test_rows_of_announced_items_leave_no_trace_when_they_are_used_again() -> None:
    shop = Shop(small_settings(limits=LimitsConfig(items=60)))
    shop.step([Event(f"u{n}", "rug") for n in range(12)])
    recommender, state = shop.recommender, shop.recommender.state
    init_rows, items, announce_rows = recommender._init_rows, state.items, state.items.announce
    given: dict[str, list[int]] = {"announced": [], "new": []}

    def check(rows: np.ndarray, kind: str) -> None:  # type: ignore[type-arg]
        for name, store in state.stores.items():
            for key, column in store.columns().items():
                assert not (column.of_items and np.isin(column.data, rows).any()), f"{name}.{key}"
        given[kind].extend(rows.tolist())

    def checked_init(users: np.ndarray, rows: np.ndarray) -> None:  # type: ignore[type-arg]
        check(rows, "new")
        init_rows(users, rows)

    def checked_announce(ids: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]
        rows = announce_rows(ids)
        check(rows, "announced")
        return rows

    recommender._init_rows, items.announce = checked_init, checked_announce  # type: ignore[method-assign]
    for wave in range(40):
        names = [f"{wave}-{n}" for n in range(K)]
        shop.step([], *announce(*names))
        shop.settle()
        assert set(shop.newest["u1"]) <= {*names, f"other{wave - 1}"}
        shop.step([], *withdraw(*names))
        shop.step([Event("u0", f"other{wave}")], *withdraw(f"other{wave - 1}"))
        shop.settle()
    assert len(given["announced"]) > len(set(given["announced"]))
    assert set(given["announced"]) & set(given["new"])
    lists = state.published.items.data
    assert not np.isin(items.status.data[lists[lists >= 0]], (ANNOUNCED, RETIRED, HIDDEN)).any()


def test_a_restart_in_the_middle_ends_in_the_same_state_with_the_same_lists() -> None:
    shop, rng = Shop(small_settings(limits=LimitsConfig(items=30))), np.random.default_rng(4)
    half = None
    for step in range(40):
        if step == 20:
            half = shop.recommender.snapshot()
        names = numbered("a", 60)[step : step + 8]
        changes = [(names[n], bool(rng.random() < 0.6)) for n in range(8)]
        shop.step([Event(f"u{rng.integers(6)}", f"a{rng.integers(step + 10)}") for _ in range(3)], *changes)
    again = Shop(shop.recommender.settings)
    again.recommender.restore(half)
    for raw in shop.learned[20:]:
        again.learn(raw)
    assert shop.recommender.state.items.announced
    assert again.recommender.digests() == shop.recommender.digests()
    assert {user: shop.newest[user] for user in again.newest} == again.newest


def test_lists_of_announced_items_move_to_another_worker() -> None:
    giver = Shop()
    giver.step([Event("ann", "rug")], *announce("lamp", "desk"))
    shard = giver.recommender.take([source(0)])
    agrees, withdrew, behind = Shop(), Shop(), Shop()
    for each in (agrees, withdrew, behind):
        each.step([Event("me", "pan", partition=1)])
        each.newest = {"ann": ["desk", "lamp"]}
    agrees.step([], *announce("lamp", "desk"))
    withdrew.step([], *announce("desk"), *withdraw("lamp"))
    for each in (agrees, withdrew, behind):
        each.recommender.put(shard)
        assert each.recommender.state.items.row_of.keys() == {"pan", "rug"}
        each.settle()
    assert agrees.newest["ann"] == ["pan", "desk", "lamp"]  # more can be shown there
    assert withdrew.newest["ann"] == ["pan", "desk"]
    assert behind.newest["ann"] == ["pan"]
    behind.step([], *announce("lamp", "desk"))
    behind.settle()
    assert behind.newest["ann"] == ["pan", "desk", "lamp"]

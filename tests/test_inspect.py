"""What `afresh inspect` describes of a user and of an item, and how it is printed."""

import io
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from harness.streams import START_MS, Batches, Event, small_settings
from rich.console import Console

from pipeline.app.inspection import MAX_ROWS, show
from pipeline.describe import changes
from pipeline.events.batch import CatalogUpdate, ItemChange
from pipeline.recommender import Recommender
from pipeline.settings import RankConfig, Settings

SETTINGS = small_settings()  # `view` is neutral
MINUTE_MS = 60_000


def learned(settings: Settings, rounds: int = 6) -> tuple[Recommender, Batches]:
    """A recommender with twelve users; ann viewed i1, clicked i2 and bought i3, in this order."""
    recommender, batches = Recommender(settings), Batches()
    for number in range(rounds):
        at_ms = START_MS + number * MINUTE_MS
        events = [Event(f"u{user}", f"i{(user + number) % 9}", "click", at_ms) for user in range(12)]
        recommender.step(batches(events))
    mine = [("view", "i1"), ("click", "i2"), ("buy", "i3")]
    at_ms = START_MS + rounds * MINUTE_MS
    recommender.step(
        batches([Event("ann", item, kind, at_ms + place) for place, (kind, item) in enumerate(mine)])
    )
    return recommender, batches


@pytest.fixture(scope="module")
def known() -> Recommender:
    return learned(SETTINGS)[0]


def user(recommender: Recommender, user_id: str) -> dict[str, Any]:
    described = recommender.describe_user(user_id)
    assert described is not None
    msgspec.json.encode(described)  # nothing of numpy's
    return described


def test_a_user_has_a_history_and_excluded_items_each_with_its_event(known: Recommender) -> None:
    described = user(known, "ann")
    at_ms = START_MS + 6 * MINUTE_MS
    assert described["history"] == [
        {"item_id": "i3", "timestamp_ms": at_ms + 2, "event_type": "buy"},
        {"item_id": "i2", "timestamp_ms": at_ms + 1, "event_type": "click"},
        {"item_id": "i1", "timestamp_ms": at_ms, "event_type": "view"},
    ]
    assert (described["events"], described["partition"]) == (3, ["events", 0])
    assert described["consumed"] == ["i2", "i3"]  # a view is neutral
    assert [(each["item_id"], each["why"], each["event_type"]) for each in described["excluded"]] == [
        ("i3", "consumed", "buy"),
        ("i2", "consumed", "click"),
    ]
    assert not {"i2", "i3"} & {each["item_id"] for each in described["ranking"]}


def test_an_unknown_event_type_is_none() -> None:
    recommender, batches = learned(SETTINGS, rounds=1)
    recommender.step(batches([Event("ann", "i4", "zz-glance", START_MS + 9 * MINUTE_MS)]))
    assert user(recommender, "ann")["history"][0] == {
        "item_id": "i4", "timestamp_ms": START_MS + 9 * MINUTE_MS, "event_type": None,
    }  # fmt: skip
    assert user(recommender, "ann")["excluded"][0] == {
        "item_id": "i4", "why": "consumed", "event_type": None, "timestamp_ms": None,
    }  # fmt: skip


def test_with_an_exclusion_of_its_own_only_that_type_leaves_an_item_out() -> None:
    described = user(learned(small_settings(exclude=["buy"]), rounds=1)[0], "ann")
    assert [each["item_id"] for each in described["excluded"]] == ["i3"]
    assert user(learned(small_settings(exclude=[]), rounds=1)[0], "ann")["excluded"] == []


def test_withdrawn_and_blocked_items_of_the_user_are_described() -> None:
    settings = msgspec.structs.replace(SETTINGS, rank=RankConfig(k=5, blocked_items=["i3", "elsewhere"]))
    recommender, _ = learned(settings)
    before = user(recommender, "ann")
    assert {each["item_id"]: each["why"] for each in before["excluded"]}["i3"] == "blocked"
    first = before["published"][0]
    recommender.state.apply_catalog(
        CatalogUpdate(changes=(ItemChange(first, False), ItemChange("i0-new", False)))
    )
    described = user(recommender, "ann")
    why = {each["item_id"]: each["why"] for each in described["excluded"]}
    assert why == {"i2": "consumed", "i3": "blocked", first: "withdrawn"}
    assert {"item_id": first, "from": 1, "why": "excluded"} in described["changes"]["dropped"]
    assert recommender.describe_item("i0-new") == {
        "item_id": "i0-new", "events": 0.0, "available": False, "hidden": "withdrawn",
    }  # fmt: skip
    item = recommender.describe_item(first)
    assert item is not None
    assert (item["available"], item["hidden"]) == (False, "withdrawn")


def test_the_last_published_list_is_described_beside_that_of_now() -> None:
    recommender, batches = learned(SETTINGS)
    described = user(recommender, "ann")
    assert described["published"] == [each["item_id"] for each in described["ranking"]]
    assert not any(described["changes"].values())
    # others go on, ann's published list stays
    for number in range(6):
        events = [
            Event(f"u{each}", "fresh", "click", START_MS + (9 + number) * MINUTE_MS) for each in range(12)
        ]
        recommender.step(batches(events))
    after = user(recommender, "ann")
    assert after["published"] == described["published"]
    assert "fresh" in [each["item_id"] for each in after["changes"]["new"]]
    assert [each["why"] for each in after["changes"]["dropped"]] == ["outranked"]


def test_changes_are_new_dropped_and_moved_items() -> None:
    assert changes(["a", "b", "c", "d"], ["b", "a", "e", "d"], ["c"]) == {
        "new": [{"item_id": "e", "to": 3}],
        "dropped": [{"item_id": "c", "from": 3, "why": "excluded"}],
        "moved": [{"item_id": "b", "from": 2, "to": 1}, {"item_id": "a", "from": 1, "to": 2}],
    }


def test_users_without_events_are_described_and_unknown_ones_are_not(known: Recommender) -> None:
    described = user(known, "__default__")
    assert (described["partition"], described["history"], described["excluded"]) == (None, [], [])
    assert described["ranking"]
    assert known.describe_user("unknown") is None
    assert known.describe_item("nothing") is None


def test_an_item_is_described_with_its_rank_and_the_lists_that_hold_it(known: Recommender) -> None:
    counts = known.bank.transitions.count.data
    described = known.describe_item("i2")
    assert described is not None
    msgspec.json.encode(described)
    row = known.state.items.row_of["i2"]
    assert described["events"] == counts[row]
    served = known.state.published.items.data
    holders = [text for text, at in known.state.users.row_of.items() if row in served[at] and at > 0]
    assert described["on_lists"] == len(holders) > 0
    assert described["on_default_list"] == bool(np.isin(row, served[0]))
    everything = {each["over"]: each for each in described["popularities"]}["all time"]
    assert everything["weight"] == pytest.approx(counts[row])
    live = known.state.items.row_of.values()
    assert everything["place"] == 1 + sum(counts[other] > counts[row] for other in live)
    assert everything["of"] == len(known.state.items.row_of)
    weights = [each["weight"] for each in described["followed_by"]]
    assert weights == sorted(weights, reverse=True)
    assert weights


def laid_out(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    saved = {"seq": 92, "saved_at_ms": START_MS, "events_learned": 15_600}
    show(saved | report, Console(file=stream, width=110))
    heading, _, rest = stream.getvalue().partition("\n")
    assert heading.endswith("Z: 15,600 events learned")
    return rest


def test_the_tables_show_why_an_item_is_left_out_and_what_has_changed(known: Recommender) -> None:
    described = user(known, "ann")
    shown = laid_out({"user": described | {"changes": changes(["old"], ["i0"], ["old"])}})
    assert "  user_id: ann\n  partition: events, 0\n  events: 3\n" in shown
    assert re.search(r"i3 +│ consumed │ buy +│ 2023-11-14 22:19:20Z", shown)
    assert re.search(r"old +│ 1 +│ excluded", shown)
    shown = laid_out({"item": known.describe_item("i2")})
    assert "  available: True\n" in shown
    assert "half-life one day" in shown


def test_a_long_history_is_cut_and_markup_in_an_id_is_text(known: Recommender) -> None:
    one = user(known, "ann")["history"][0]
    long = user(known, "ann") | {"history": [one | {"item_id": "[red]x[/]"}] * (MAX_ROWS + 2)}
    shown = laid_out({"user": long})
    assert shown.count("[red]x[/]") == MAX_ROWS
    assert "and 2 more: see --json" in shown

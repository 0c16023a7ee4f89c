"""The settings that `afresh check` proposes for records that it can't read: each was tried on the records."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from consumers.memory import MemoryRecord
from pipeline.app.check.records import check_items, check_records
from pipeline.settings import EventsConfig, Settings

NOW_MS = 1_800_000_000_000
Make = Callable[[int], Any]


def records(make: Make, count: int = 40, topic: str = "events") -> list[MemoryRecord]:
    values = [(made := make(number)) and json.dumps(made).encode() for number in range(count)]
    return [MemoryRecord(topic, 0, n, NOW_MS, str(n).encode(), value) for n, value in enumerate(values)]


def advice(some: Sequence[MemoryRecord], settings: Settings) -> list[str]:
    findings = check_records("events", 1, some, settings, NOW_MS)
    return [each.to_do for each in findings if each.about == "records of events" and each.to_do]


def ga4(number: int) -> dict[str, Any]:
    item = {"item_id": f"i{number}", "item_name": "lamp", "quantity": 1}
    times = {"event_timestamp": NOW_MS * 1_000}
    return times | {"event_name": "view_item", "user_pseudo_id": f"u{number}.7", "items": [item]}


def changed(number: int) -> dict[str, Any]:
    """A change record: three of four are deletions."""
    row, old = {"user_id": number, "product_id": 7, "at": NOW_MS}, {"user_id": number, "product_id": 8}
    deleted, made = {"before": old, "after": None, "op": "d"}, {"before": None, "after": row, "op": "c"}
    schema = {"fields": [{"field": "before", "name": "user_id"}]}
    return {"schema": schema, "payload": deleted if number % 4 else made}


def segment(number: int) -> dict[str, Any]:
    ids = {"userId": f"u{number}", "anonymousId": f"a{number}"}
    return ids | {"event": "Product Viewed", "properties": {"product_id": f"p{number}", "price": 3.5}}


def nested(number: int) -> dict[str, Any]:
    return {"meta": {"id": 5}, "payload": {"user": {"id": number}, "product": {"id": number, "price": 3}}}


def at(time: int | str) -> Callable[[int], dict[str, Any]]:
    return lambda number: {"user_id": number, "item_id": "i", "timestamp_ms": time}


@pytest.mark.parametrize(
    ("make", "events", "words"),
    [
        (changed, {}, 'set events.fields.user_id = "payload.after.user_id" and '
         'events.fields.item_id = "payload.after.product_id"'),
        (segment, {}, 'set events.fields.user_id = "userId" and events.fields.item_id = '
         '"properties.product_id": then 40 of the newest 40 records can be read;'),
        (nested, {},
         'set events.fields.user_id = "payload.user.id" and events.fields.item_id = "payload.product.id":'),
        (nested, {"fields": {"user_id": "payload.user.id", "item_id": "payload.product"}},
         'set events.fields.item_id = "payload.product.id": then 40'),
        (at(NOW_MS * 1_000), {}, 'set events.time_unit = "auto": then 40'),
        (at(NOW_MS * 1_000_000), {}, 'set events.time_unit = "auto": then 40'),
        (at(NOW_MS), {"time_unit": "s"}, 'set events.time_unit = "ms": then 40'),
        (at(NOW_MS // 1_000), {}, 'set events.time_unit = "s": then 40'),
        (at("2026-07-01T00:00:00Z"), {}, 'set events.time_unit = "auto": then 40'),
        (lambda number: {"uid": number, "sku": 5, "timestamp_ms": NOW_MS * 1_000}, {},
         'set events.fields.user_id = "uid" and events.fields.item_id = "sku" and events.time_unit = "auto"'),
    ],
)  # fmt: skip
def test_a_setting_is_proposed_that_reads_the_records(make: Make, events: Any, words: str) -> None:
    _, hint = advice(records(make), Settings(events=EventsConfig(**events)))
    assert hint.startswith(words)


@pytest.mark.parametrize(
    "make",
    [
        lambda number: {"user_id": number, "items": [1.5, 2.5]},  # no ids
        lambda number: {"user_id": number, "item": {"name": "lamp"}},
        lambda number: {"user_id": number, "product": None, "sku": ""},
        lambda number: {"user_id": number, "before": {"item_id": 4}, "after": None},  # deletions alone
        lambda number: {"user_id": number, "item_id": "i", "timestamp_ms": 12},
    ],
)
def test_nothing_is_proposed_that_reads_no_more_records(make: Make) -> None:
    for to_do in advice(records(make), Settings()):
        assert "set " not in to_do


def test_a_setting_that_is_proposed_for_an_array_reads_it_whatever_the_decoder_takes() -> None:
    _, *hints = advice(records(ga4), Settings())
    for hint in hints:
        assert '"items"' not in hint
        assert "set " not in hint or ('item_id = "items[].item_id"' in hint and "then 40 of" in hint)


def test_records_that_fail_for_several_reasons_have_one_proposal_for_all() -> None:
    some = [*records(at(NOW_MS // 1_000)), *records(at("2026-07-01T00:00:00Z"))]  # bad_time, wrong_type
    _, first, second = advice(some, Settings())
    assert first == second
    assert 'events.time_unit = "auto": then 80 of the newest 80 records can be read' in first


def test_a_proposal_keeps_what_is_read_today() -> None:
    some = [*records(at(NOW_MS), 30), *records(lambda number: {"userId": number, "item_id": "i"}, 10)]
    for hint in advice(some, Settings())[1:]:
        assert 'user_id = "userId"' not in hint  # it would read 10 records in the place of 30
        assert "set " not in hint or "then 40 of the newest 40" in hint


def test_names_of_fields_are_proposed_for_the_items_topic_too() -> None:
    some = [
        each._replace(key=None) for each in records(lambda n: {"sku": f"i{n}", "in_stock": n}, topic="items")
    ]
    whole, reason, *_ = check_items("items", some, Settings())
    assert "40 of the newest 40 records can't be read" in whole.found
    assert 'set items.fields.item_id = "sku": then 40 of the newest 40 records can be read' in reason.to_do

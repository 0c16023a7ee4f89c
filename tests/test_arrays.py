"""Records of several events, event types to ignore, and the quick reader against the careful one."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_decode import NOW, decoded, event, refuse
from test_fields import GA4, as_bytes, columns, only

from consumers.memory import MemoryRecord
from pipeline.errors import UsageError
from pipeline.events.batch import Polled, Span
from pipeline.events.decode import Decoder
from pipeline.events.fields import field_names
from pipeline.settings import EventsConfig, TopicsConfig

GUIDES = Path(__file__).parent.parent / "deploy" / "guides"


def purchase(*items: Any, **fields: Any) -> bytes:
    return as_bytes({"user_id": "ann", "event_type": "purchase", "items": list(items), **fields})


def test_a_record_is_an_event_for_each_element_of_its_array() -> None:
    items = {"item_id": "tea", "price": 2.5}, {"item_id": 7, "price": None}
    value = purchase(*items, event_id="e1", timestamp_ms=NOW - 9)
    batch = decoded(event(item_id="rum"), value, purchase({"item_id": "tea"}), fields=GA4)
    assert columns(batch, "user_ids", "item_ids", "types", "event_ids", "time_ms_B") == [
        ["ann"] * 3, ["tea", "7", "tea"], ["purchase"] * 3, ["e1#0", "e1#1", None], [NOW - 9, NOW - 9, NOW],
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.events.value_B, [2.5, np.nan, np.nan])
    assert len(batch.rejects) == 1  # without the array, item_id is not looked for elsewhere


@pytest.mark.parametrize(
    ("path", "record"),
    [
        ("ecommerce.items[].id", {"ecommerce": {"items": [{"id": "tea"}, {"id": "rum"}]}}),
        ("p.products[].sku.id", {"p": {"products": [{"sku": {"id": "tea"}}, {"sku": {"id": "rum"}}]}}),
        ("item_ids[]", {"item_ids": ["tea", "rum"]}),
        ("a.ids[]", {"a": {"ids": ["tea", "rum"]}}),
    ],
)
def test_the_array_and_what_its_elements_hold_may_be_nested(path: str, record: dict[str, Any]) -> None:
    batch = decoded(as_bytes({"user_id": "ann"} | record), fields={"item_id": path})
    assert not batch.rejects
    assert batch.events.item_ids == ["tea", "rum"]


def test_an_element_may_have_an_event_id_of_its_own() -> None:
    value = purchase({"item_id": "tea", "event_id": "own"}, {"item_id": "rum", "event_id": ""}, event_id="e")
    batch = decoded(value, fields=GA4 | {"event_id": ["items[].event_id", "event_id"]})
    assert columns(batch, "item_ids", "event_ids") == [["tea", "rum"], ["own", "e#1"]]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ({"price": 1}, "missing_field", "Object missing required field `items[1].item_id`"),
        ("tea", "missing_field", "Object missing required field `items[1].item_id`"),
        ({"item_id": 5.5}, "wrong_type", "Expected `int | str`, got `float` - at `$.items[1].item_id`"),
        ({"item_id": ""}, "empty_id", "items[1].item_id is empty; expected 1 to 256 bytes"),
        ({"item_id": "x" * 257}, "long_id", "items[1].item_id has 257 bytes; expected 1 to 256 bytes"),
        ({"item_id": "a", "price": "2"}, "wrong_type", "Expected `float`, got `str` - at `$.items[1].price`"),
    ],
)
def test_a_bad_element_is_named_and_the_others_are_learned(bad: object, reason: str, detail: str) -> None:
    good = {"item_id": "tea"}
    batch = decoded(event(), purchase(good, bad, {"item_id": "rum"}, event_id="e"), fields=GA4)
    assert columns(batch, "item_ids", "event_ids") == [["tea", "rum"], ["e#0", "e#2"]]
    _, reject = batch.rejects
    assert (reject.reason, reject.detail, reject.record.offset) == (reason, detail, 1)


def test_several_bad_elements_are_one_dead_letter_and_what_the_record_lacks_is_said_once() -> None:
    batch = decoded(purchase({"item_id": "tea"}, {}, {"item_id": ""}, {}), fields=GA4)
    (reject,) = batch.rejects
    assert reject.detail == ("Object missing required field `items[1].item_id` (and 2 more of 4 elements)")
    value = purchase({"item_id": "tea"}, {"item_id": "rum"}, user_id=None)
    (reject,) = decoded(value, fields=GA4).rejects
    assert reject.detail == "Object missing required field `user_id`"


@pytest.mark.parametrize("items", [[], None, {"item_id": "tea"}])
def test_without_an_array_the_record_is_one_event_by_a_name_outside(items: object) -> None:
    fields = GA4 | {"item_id": ["items[].item_id", "sku"]}
    value = as_bytes({"user_id": "ann", "items": items, "sku": "rum", "event_id": "e"})
    batch = decoded(value, fields=fields)
    assert only(batch) == ("ann", "rum")
    assert batch.events.event_ids == ["e"]


def test_a_name_before_the_array_makes_the_record_one_event() -> None:
    fields = {"item_id": ["sku", "items[].item_id"]}
    records = [purchase({"item_id": "a"}, {"item_id": "b"}, sku=sku) for sku in ("rum", "", None)]
    assert decoded(*records, fields=fields).events.item_ids == ["rum", "a", "b", "a", "b"]


def test_an_array_of_more_than_a_thousand_elements_is_refused() -> None:
    items = [{"item_id": f"i{number}"} for number in range(1_001)]
    batch = decoded(purchase(*items[:1_000]), purchase(*items), limit=100_000, fields=GA4)
    assert len(batch.events) == 1_000
    (reject,) = batch.rejects
    assert (reject.reason, reject.detail) == ("too_many", "1001 elements in the array; expected at most 1000")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"item_id": "items[].id", "value": "products[].price"}, "'products[].price'; expected one array"),
        ({"value": "items[].price"}, "value is read from 'items[].price', in an array that item_id is not"),
        ({"item_id": "orders[].items[].id"}, "expected a path through one array"),
        ({"item_id": "items[]id"}, "expected a path through one array"),
        ({"item_id": "items[].id", "event_id": "items"}, "event_id is read from 'items', and item_id from"),
        ({"item_id": "items[].id", "value": "items.total"}, "of an array, and value from 'items.total'"),
        ({"item_id": "items[]", "value": "items[].price"}, "item_id is read from 'items[]', and value"),
        ({"item_id": ["items[].id", "sku"], "event_id": "sku"}, "item_id and event_id are both read"),
        ({"user_id": ["user", "user.id"]}, "user_id is read from 'user', and user_id from 'user.id'"),
        ({"user_id": ["uid", "item_id"]}, "user_id and item_id are both read from 'item_id'"),
        ({"item_id": "event_id"}, "item_id and event_id are both read from 'event_id'"),
        ({"item_id": "thing", "user_id": "thing.user"}, "and user_id from 'thing.user', inside of it"),
        ({"user_id": "item_id.user"}, "item_id is read from 'item_id', and user_id from 'item_id.user'"),
    ],
)
def test_names_that_contradict_each_other_are_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        field_names(EventsConfig(fields=fields))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ignored_types_need_no_user_and_no_item_and_are_counted() -> None:
    view = b'{"event_type":"page_view"}'
    records = [view, b'{"event_type":"page_view","user_id":[],"timestamp_ms":"soon"}', event(event_type=3)]
    records += [event(event_type="buy"), view.replace(b"page", b"Page"), b"\0\0\0\0\7" + view, view[:-1]]
    records += [b'{"event_type":["page_view"]}']
    batch = decoded(*records, roles={"page_view": "ignore", "3": "ignore"})
    assert batch.ignored == {"page_view": 3, "3": 1}
    assert batch.events.types == ["buy"]
    assert [reject.reason for reject in batch.rejects] == ["missing_field", "not_json", "wrong_type"]


def test_a_topic_of_an_ignored_type_gives_only_what_names_another() -> None:
    topics = TopicsConfig(events={"events": "look"})
    batch = decoded(b"{}", event(), event(event_type="buy"), topics=topics, roles={"look": "ignore"})
    assert (batch.events.types, batch.ignored, batch.rejects) == (["buy"], {"look": 2}, [])


def test_types_of_elements_are_judged_element_by_element() -> None:
    acts = [{"id": "tea", "type": "look"}, {"id": "rum", "type": "buy"}, {"type": "look"}]
    value = as_bytes({"user_id": "ann", "acts": acts})
    fields = {"item_id": "acts[].id", "event_type": "acts[].type"}
    batch = decoded(value, fields=fields, roles={"look": "ignore"})
    assert (batch.events.item_ids, batch.ignored, batch.rejects) == (["rum"], {"look": 2}, [])


def test_a_debezium_table_of_events_is_read_as_the_guide_maps_it() -> None:
    """Snapshot, insert, update, delete and truncate as Debezium writes them, and a delete's tombstone."""
    (mapping,) = re.findall(r"```toml\n(.*?)```", (GUIDES / "shop.md").read_text("utf-8"), re.DOTALL)
    config = tomllib.loads(mapping)["events"]

    def change(op: str, before: object, after: object) -> bytes:
        source = {"connector": "postgresql", "table": "actions", "ts_ms": NOW}
        payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": NOW}
        return json.dumps({"schema": {"type": "struct"}, "payload": payload}).encode()

    row = {"id": 9, "customer_id": 4, "sku": "tea", "type": "buy", "created_at": (NOW - 7) * 1000}
    other = row | {"id": 10, "sku": 5, "type": None, "created_at": None}
    values = [change("r", None, row), change("c", None, other), change("u", row, row)]
    values += [change("d", row, None), None, change("t", None, None)]
    records = [MemoryRecord("events", 0, place, NOW, b"9", value) for place, value in enumerate(values)]
    batch = decoded(*records, **config)
    assert (batch.ignored, batch.rejects) == ({"d": 1, "tombstone": 1, "t": 1}, [])
    # the update has the same event_id, and is dropped later
    assert columns(batch, "user_ids", "item_ids", "types", "event_ids", "time_ms_B") == [
        ["4"] * 3, ["tea", "5", "tea"], ["buy", "c", "buy"], ["9", "10", "9"], [NOW - 7, NOW, NOW - 7],
    ]  # fmt: skip


leaves = st.sampled_from(["", "ann", "tea", 7, NOW, 5.5, None, True, [], "look", "e1"])
lines = st.lists(
    st.dictionaries(st.sampled_from(["id", "sku", "price", "event_id"]), leaves, max_size=4) | leaves,
    max_size=3,
)
documents = st.fixed_dictionaries(
    {"user_id": st.sampled_from(["ann", 7, ""]), "timestamp_ms": st.just(NOW)},
    optional={
        "uid": leaves, "item_id": leaves, "event_type": leaves, "value": st.floats(0, 9) | leaves,
        "event_id": leaves, "a": st.dictionaries(st.sampled_from(["id", "b"]), leaves, max_size=2) | leaves,
        "a.id": leaves, "items": lines | leaves,
    },
)  # fmt: skip
MAPPINGS: list[dict[str, str | list[str]]] = [
    {},
    {"user_id": "a.id"},
    {"user_id": ["uid", "a.id", "$key"], "value": ["price", "a.b"]},
    {"user_id": ["$key", "uid"]},
    {"item_id": "items[].id", "value": "items[].price"},
    {"item_id": ["items[].id", "items[].sku", "item_id"], "event_id": ["items[].event_id", "event_id"]},
    {"item_id": ["item_id", "items[].id"], "user_id": ["uid", "a.id"]},
    {"item_id": "items[]"},
]


@given(st.lists(documents, max_size=3), st.sampled_from(MAPPINGS), st.booleans(), st.booleans())
def test_a_quick_reading_is_a_careful_one(records: Any, fields: Any, ignoring: bool, with_key: bool) -> None:
    """The careful reader looks at one value after the other; the quick one must never differ from it."""
    config = EventsConfig(fields=fields, roles={"look": "ignore"} if ignoring else {})
    quick, careful = (Decoder(config, TopicsConfig(), 2_000) for _ in range(2))
    careful._parse = refuse if careful._parse else None
    key = b"key" if with_key else None
    given = [MemoryRecord("events", 0, n, NOW, key, as_bytes(each)) for n, each in enumerate(records)]
    polled = Polled((Span("events", 0, 0, len(given)),), list(given), np.zeros(len(given), np.int32))
    one, other = quick.decode(0, NOW, polled), careful.decode(0, NOW, polled)
    for column in ("user_ids", "item_ids", "types", "event_ids"):
        assert getattr(one.events, column) == getattr(other.events, column)
    np.testing.assert_array_equal(one.events.value_B, other.events.value_B)
    assert one.ignored == other.ignored
    assert [reject.record for reject in one.rejects] == [reject.record for reject in other.rejects]
    if fields:
        assert one.rejects == other.rejects

"""Topics that exist already: names, nesting, whole numbers, keys, times and a schema registry's frame."""

import json
import re
import tomllib
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_decode import NOW, decoded, event

from consumers.memory import MemoryLog, MemoryRecord
from pipeline.errors import UsageError
from pipeline.events.batch import Polled, RawBatch, Span
from pipeline.events.checks import MAX_DEPTH
from pipeline.events.decode import Decoder
from pipeline.events.fields import field_names, value_at
from pipeline.settings import EventsConfig, TopicsConfig

GUIDES = Path(__file__).parent.parent / "deploy" / "guides"
PATHS = {"user_id": "payload.user.id", "item_id": "payload.sku", "timestamp_ms": "payload.at.$date"}


def only(batch: RawBatch) -> tuple[str, str]:
    assert not batch.rejects
    assert len(batch.events) == 1
    return batch.events.user_ids[0], batch.events.item_ids[0]


def problem(batch: RawBatch) -> tuple[str, str]:
    assert not len(batch.events)
    (reject,) = batch.rejects
    return reject.reason, reject.detail


def columns(batch: RawBatch, *names: str) -> list[list[Any]]:
    return [np.asarray(getattr(batch.events, name)).tolist() for name in names]


def as_bytes(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


def test_each_topic_gives_its_default_type_and_a_record_may_name_its_own() -> None:
    log = MemoryLog({"shop.orders": 1, "shop.clicks": 1})
    for topic in ("shop.orders", "shop.clicks"):
        for fields in ({}, {"event_type": "gift"}, {"event_type": ""}, {"event_type": None}):
            log.append(event(**fields), topic=topic, timestamp=NOW)
    records = [each for source in log.partitions() for each in log.read(source, 0)]
    topics = TopicsConfig(events={"shop.orders": "purchase", "shop.clicks": "view"})
    types = decoded(*records, topics=topics).events.types
    assert types == ["view", "gift", "view", "view", "purchase", "gift", "purchase", "purchase"]


@pytest.mark.parametrize("number", [42, 0, -7, 2**63, 10**255])
def test_a_whole_number_is_the_text_of_its_digits(number: int) -> None:
    value = event(user_id=number, item_id=number, event_type=number, event_id=number, session_id=number)
    events = decoded(value).events
    assert events.user_ids == events.item_ids == events.types == events.event_ids == [str(number)]


def test_a_number_and_its_text_are_one_user_beside_texts_that_only_look_like_it() -> None:
    records = [event(user_id=user) for user in (42, "42", "042", " 42")]
    assert decoded(*records).events.user_ids == ["42", "42", "042", " 42"]


# Paths


def nested(user: object = "ann") -> dict[str, Any]:
    return {"payload": {"user": {"id": user}, "sku": "tea", "at": {"$date": NOW - 5}}, "event_type": "buy"}


def test_a_path_leads_into_nested_objects_and_what_it_leaves_open_has_its_default() -> None:
    fields = PATHS | {"value": "payload.price", "event_type": "meta.kind"}
    batch = decoded(
        as_bytes(nested(7)), as_bytes({"payload": {"user": {"id": "b"}, "sku": "t"}}), fields=fields
    )
    assert columns(batch, "user_ids", "item_ids", "types", "time_ms_B") == [
        ["7", "b"], ["tea", "t"], ["click", "click"], [NOW - 5, NOW],
    ]  # fmt: skip
    assert np.isnan(batch.events.value_B).all()


def test_a_top_level_field_of_the_very_name_comes_before_the_path() -> None:
    flat = {"payload.user.id": "bob", "payload.sku": "rum", "payload": "anything"}
    batch = decoded(*(as_bytes(each) for each in (flat, nested() | flat, nested())), fields=PATHS)
    assert columns(batch, "user_ids", "item_ids") == [["bob", "bob", "ann"], ["rum", "rum", "tea"]]


def test_an_object_that_a_path_leads_into_may_have_the_name_of_a_field_of_ours() -> None:
    value = as_bytes({"value": {"userId": "ann", "page": {"n": 1}}, "item_id": "tea"})
    assert only(decoded(value, fields={"user_id": "value.userId"})) == ("ann", "tea")


CHOICES = {"user_id": ["uid", "device.id"]}
GA4 = {"item_id": "items[].item_id", "value": "items[].price"}
NO_USER = "Object missing required field `payload.user.id`"


@pytest.mark.parametrize(
    ("fields", "record", "reason", "detail"),
    [
        (PATHS, {"payload": {"sku": "tea"}}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": "ann"}}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": [{"id": "ann"}]}}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": None}}}, "missing_field", NO_USER),
        (PATHS, {"payload": None}, "missing_field", NO_USER),
        (PATHS, {"payload": "text"}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": 5.5}}}, "wrong_type", "`$.payload.user.id`"),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": ""}}}, "empty_id", "payload.user.id is empty"),
        (PATHS, {"payload": {"sku": "", "user": {"id": "ann"}}}, "empty_id", "payload.sku is empty"),
        (
            PATHS, {"payload": {"sku": "tea", "user": {"id": "ann"}, "at": {"$date": 12}}}, "bad_time",
            "payload.at.$date is 12",
        ),
        (PATHS, {"payload": {"sku": "t", "user": {"id": "a"}, "at": {"$date": 1e999}}}, "not_finite", "Inf"),
        (CHOICES, {"item_id": "tea"}, "missing_field", "missing required field `uid` or `device.id`"),
        (CHOICES, {"item_id": "tea", "uid": ""}, "empty_id", "uid is empty; expected 1 to 256 bytes"),
        (CHOICES, {"item_id": "tea", "device": {"id": "x" * 300}}, "long_id", "device.id has 300 bytes"),
        (CHOICES, {"item_id": "tea", "uid": 5.5, "device": {"id": "d"}}, "wrong_type", "at `$.uid`"),
        *(
            (GA4, {"user_id": "ann", "items": items}, "missing_field", "`items[].item_id`")
            for items in ([], None, "tea", 5, {"item_id": "tea"})
        ),
        (GA4, {"user_id": "ann", "item_id": "tea"}, "missing_field", "`items[].item_id`"),
    ],
)  # fmt: skip
def test_what_holds_no_event_is_refused_with_the_name_in_the_record(
    fields: dict[str, Any], record: dict[str, Any], reason: str, detail: str
) -> None:
    found = problem(decoded(as_bytes(record), fields=fields))
    assert found[0] == reason
    assert detail in found[1]


names = st.sampled_from(["a", "b", "a.b", "b.a", "a.b.a"])
values = st.recursive(
    st.none() | st.text(max_size=3) | st.integers(0, 9),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "a.b"]), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(names, values, max_size=4), names)
@example({"b.a": "0", "b": {"a": {}}}, "b.a")
def test_paths_are_followed_as_a_plain_walk_would(record: dict[str, Any], path: str) -> None:
    """Where the walk finds an id, decoding finds it; else it refuses the record."""
    batch = decoded(json.dumps({"item_id": "tea"} | record).encode(), fields={"user_id": path})
    found = value_at(record, path)
    good = isinstance(found, str | int) and str(found) != ""
    assert batch.events.user_ids == ([str(found)] if good else [])


# The key


def keyed(key: bytes | None, **fields: Any) -> MemoryRecord:
    return MemoryRecord("events", 0, 0, NOW, key, json.dumps({"item_id": "tea", **fields}).encode())


@pytest.mark.parametrize(
    ("key", "user"),
    [(b"ann", "ann"), (b"42", "42"), (b'"ann"', '"ann"'), (b"\0\0\0\0\5" + b'"ann"', "ann"),
     (b"\0\0\0\0\5" + b"42", "42"), ("ü".encode(), "ü")],
)  # fmt: skip
def test_the_user_may_be_the_key(key: bytes, user: str) -> None:
    batch = decoded(keyed(key, user_id=["another"]), fields={"user_id": "$key"})
    assert only(batch) == (user, "tea")


@pytest.mark.parametrize(
    ("key", "reason"),
    [(None, "missing_field"), (b"", "empty_id"), (b"\xff", "not_utf8"), (b"x" * 257, "long_id"),
     (b"__default__", "reserved_id"), (b"\0\0\0\0\5\6ann", "schema_framed"),
     (b"\0\0\0\0\5" + b'{"id":1}', "schema_framed")],
)  # fmt: skip
def test_a_key_that_is_no_id_is_refused(key: bytes | None, reason: str) -> None:
    assert problem(decoded(keyed(key), fields={"user_id": "$key"}))[0] == reason


def test_the_key_and_paths_go_together_behind_a_frame() -> None:
    value = b"\0\0\0\0\7" + json.dumps({"payload": {"sku": "tea"}}).encode()
    record = MemoryRecord("events", 0, 0, NOW, b"ann", value)
    assert only(decoded(record, fields={"user_id": "$key", "item_id": "payload.sku"})) == ("ann", "tea")


# A schema registry's frame

GUID = uuid.UUID("89791762-2336-186f-9674-180a8e2d0b33")


@pytest.mark.parametrize("frame", [b"\0\0\0\0\x07", b"\0\xff\xff\xff\xff", b"\x01" + GUID.bytes])
def test_json_behind_a_frame_is_read(frame: bytes) -> None:
    for space in (b"", b" \n"):
        assert only(decoded(frame + space + event())) == ("ann", "tea")


AVRO = b"\x06ann\x06tea\x00"
PROTOBUF = b"\n\x03ann\x12\x03tea"


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (b"\0\0\0\x01\x02" + AVRO, "schema id 258"),
        (b"\0\0\0\0\x07\0" + PROTOBUF, "schema id 7"),  # the first message: one byte
        (b"\0\0\0\0\x07\x04\x02\x00" + PROTOBUF, "schema id 7"),  # two indexes: 1, 0
        (b"\0\0\0\0\x07{" + AVRO, "schema id 7"),  # begins like an object
        (b"\0\0\0\0\x07\xff\xfe", "schema id 7"),
        (b"\0\0\0\0\x07", "schema id 7"),
        (b"\0\0\0\0\x07" + b"[" * 400, "schema id 7"),
        (b"\x01" + GUID.bytes + AVRO, f"schema {GUID}"),
    ],
)
def test_a_frame_without_json_is_refused_with_its_schema_and_what_to_do(value: bytes, schema: str) -> None:
    reason, detail = problem(decoded(value))
    assert reason == "schema_framed"
    assert f"({schema})" in detail
    assert "Avro and Protobuf are not read; expected JSON or JSON Schema" in detail


def test_a_schema_named_in_headers_explains_a_value_that_is_no_json() -> None:
    headers = [("trace", b"x"), ("__value_schema_id", b"\x01" + GUID.bytes)]
    for value, reason in ((AVRO, "schema_framed"), (b"{", "schema_framed"), (b"{}", "missing_field")):
        record = SimpleNamespace(
            topic="events", partition=0, offset=0, timestamp=NOW, key=b"ann", value=value, headers=headers
        )
        batch = decoded(record)
        assert problem(batch)[0] == reason
        assert str(GUID) in problem(batch)[1] or reason == "missing_field"


def test_a_framed_event_is_held_to_the_same_rules() -> None:
    frame = b"\0\0\0\0\7"
    bad = [event(user_id=""), event(timestamp_ms=12), b"{}", event(value="five"), b'{"x":NaN}', b"[]"]
    assert [reject.reason for reject in decoded(*(frame + value for value in bad)).rejects] == [
        "empty_id", "bad_time", "missing_field", "wrong_type", "not_finite", "schema_framed",
    ]  # fmt: skip
    deep = frame + b'{"user_id":"ann","item_id":"tea","x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"
    assert problem(decoded(deep))[0] == "too_deep"
    assert problem(decoded(frame + event(note="x" * 2_000)))[0] == "too_large"
    assert only(decoded(frame + event(user_id=42))) == ("42", "tea")


@pytest.mark.parametrize("value", [b"\0", b"\0\0\0\0", b"\x01" * 16, b"\x02\0\0\0\x07{}"])
def test_a_zero_byte_alone_is_no_frame(value: bytes) -> None:
    assert problem(decoded(value))[0] == "not_json"


# Several events in a record


def purchase(*items: Any, **fields: Any) -> bytes:
    return as_bytes({"user_id": "ann", "event_type": "purchase", "items": list(items), **fields})


def test_a_record_is_an_event_for_each_element_of_its_array() -> None:
    value = purchase(
        {"item_id": "tea", "price": 2.5}, {"item_id": 7, "price": None}, event_id="e1", timestamp_ms=NOW - 9
    )
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
        (
            "items[].id",
            {"items": [{"id": "tea", "event_id": "own"}, {"id": "rum", "event_id": ""}], "event_id": "e"},
        ),
    ],
)  # fmt: skip
def test_the_array_and_what_its_elements_hold_may_be_nested(path: str, record: dict[str, Any]) -> None:
    config = {"item_id": path, "event_id": ["items[].event_id", "event_id"]}
    fields = config if path.startswith("items") else {"item_id": path}
    batch = decoded(json.dumps({"user_id": "ann"} | record).encode(), fields=fields)
    assert not batch.rejects
    assert batch.events.item_ids == ["tea", "rum"]
    assert batch.events.event_ids == (["own", "e#1"] if path.startswith("items") else [None, None])


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        *(
            (bad, "missing_field", "Object missing required field `items[1].item_id`")
            for bad in ({"price": 1}, {"item_id": None}, "tea", None, [{"item_id": "a"}])
        ),
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


@pytest.mark.parametrize("items", [[], None, "tea", 5, {"item_id": "tea"}])
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


def test_a_long_event_id_is_measured_without_the_number_of_the_element() -> None:
    batch = decoded(purchase({"item_id": "tea"}, event_id="x" * 256), fields=GA4)
    assert batch.events.event_ids == ["x" * 256 + "#0"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"item_id": "items[].id", "value": "products[].price"},
            "item_id is read from 'items[].id', and value from 'products[].price'; expected one array",
        ),
        ({"value": "items[].price"}, "value is read from 'items[].price', in an array that item_id is not"),
        ({"item_id": "orders[].items[].id"}, "expected a path through one array"),
        ({"item_id": "[].id"}, "expected a path through one array"),
        ({"item_id": "items[].id[]"}, "expected a path through one array"),
        ({"item_id": "items[]id"}, "expected a path through one array"),
        ({"item_id": "items[]..id"}, "expected a path through one array"),
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


# Second choices


@pytest.mark.parametrize(
    ("record", "user"),
    [
        ({"user_id": "ann", "anonymous_id": "x1"}, "ann"),
        ({"anonymous_id": "x1"}, "x1"),
        ({"user_id": None, "anonymous_id": 17}, "17"),
        ({"user_id": "", "anonymous_id": "x1"}, "x1"),
        ({"user_id": 0, "anonymous_id": "x1"}, "0"),
        ({"user_id": " ", "anonymous_id": "x1"}, " "),
        ({"user_id": "ann", "anonymous_id": {"any": "form"}}, "ann"),
        ({"device": {"id": "d1"}, "user_id": ""}, "d1"),
        ({"device.id": "d2", "device": {"id": "d1"}}, "d2"),
        ({"device": "none", "anonymous_id": None}, "key"),
    ],
)
def test_the_first_name_that_holds_something_wins(record: dict[str, Any], user: str) -> None:
    fields = {"user_id": ["user_id", "anonymous_id", "device.id", "$key"]}
    assert only(decoded(json.dumps({"item_id": "tea"} | record).encode(), fields=fields)) == (user, "tea")


def test_the_key_may_be_the_first_choice() -> None:
    fields = {"user_id": ["$key", "uid"]}
    users = [only(decoded(keyed(key, uid="bob"), fields=fields))[0] for key in (b"ann", b"", None)]
    assert users == ["ann", "bob", "bob"]
    assert problem(decoded(keyed(None), fields=fields))[1] == "Object missing required field `$key` or `uid`"


def test_every_field_may_have_choices() -> None:
    fields = {"timestamp_ms": ["at", "sent.at"], "event_type": ["kind", "name"], "value": ["price", "amount"]}
    values = [
        event(at=NOW - 1, sent={"at": NOW - 2}, name="buy", price=1, amount=2),
        event(sent={"at": NOW - 2}, kind="", name="buy", price=None, amount=2),
    ]
    events = decoded(*values, fields=fields).events
    assert events.time_ms_B.tolist() == [NOW - 1, NOW - 2]
    assert events.types == ["buy", "buy"]
    assert events.value_B.tolist() == [1, 2]


# Event types to ignore


def test_ignored_types_need_no_user_and_no_item_and_are_counted() -> None:
    records = [
        b'{"event_type":"page_view"}',
        b'{"event_type":"page_view","user_id":[],"timestamp_ms":"soon"}',
        event(event_type=3),
        event(event_type="buy"),
        b'{"event_type":"Page_View"}',  # as the records spell it
        b"\0\0\0\0\7" + b'{"event_type":"page_view"}',
        b'{"event_type":"page_view"',
        b'{"event_type":["page_view"]}',
    ]
    batch = decoded(*records, roles={"page_view": "ignore", "3": "ignore"})
    assert batch.ignored == {"page_view": 3, "3": 1}
    assert batch.events.types == ["buy"]
    assert [reject.reason for reject in batch.rejects] == ["missing_field", "not_json", "wrong_type"]


def test_a_topic_of_an_ignored_type_gives_only_what_names_another() -> None:
    topics = TopicsConfig(events={"events": "look"})
    batch = decoded(b"{}", event(), event(event_type="buy"), topics=topics, roles={"look": "ignore"})
    assert (batch.events.types, batch.ignored, batch.rejects) == (["buy"], {"look": 2}, [])


def test_an_ignored_record_is_counted_once_whatever_its_array_holds() -> None:
    value = purchase(*[{}] * 1_500, event_type="view_item_list")
    batch = decoded(value, limit=100_000, fields=GA4, roles={"view_item_list": "ignore"})
    assert (batch.ignored, batch.rejects, len(batch.events)) == ({"view_item_list": 1}, [], 0)


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
    values = [
        change("r", None, row),
        change("c", None, row | {"id": 10, "sku": 5, "type": None, "created_at": None}),
        change("u", row, row),
        change("d", row, None),
        None,
        change("t", None, None),
    ]
    records = [MemoryRecord("events", 0, place, NOW, b"9", value) for place, value in enumerate(values)]
    batch = decoded(*records, **config)
    assert (batch.ignored, batch.rejects) == ({"d": 1, "tombstone": 1, "t": 1}, [])
    # the update has the same event_id, and is dropped later
    assert columns(batch, "user_ids", "item_ids", "types", "event_ids", "time_ms_B") == [
        ["4"] * 3, ["tea", "5", "tea"], ["buy", "c", "buy"], ["9", "10", "9"], [NOW - 7, NOW, NOW - 7],
    ]  # fmt: skip


def test_a_record_without_a_value_is_ignored_and_counted() -> None:
    batch = decoded(MemoryRecord("events", 0, 0, NOW, b"ann", None))
    assert (batch.ignored, batch.rejects, len(batch.events)) == ({"tombstone": 1}, [], 0)


# Quick and careful

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


def raise_unexpected(text: str) -> None:
    raise ValueError(text)


@given(st.lists(documents, max_size=3), st.sampled_from(MAPPINGS), st.booleans(), st.booleans())
def test_what_is_read_quickly_is_read_as_carefully(
    records: list[dict[str, Any]], fields: dict[str, str | list[str]], ignoring: bool, with_key: bool
) -> None:
    """The careful reader looks at one value after the other; the quick one must never differ from it."""
    config = EventsConfig(fields=fields, roles={"look": "ignore"} if ignoring else {})
    quick, careful = (Decoder(config, TopicsConfig(), 2_000) for _ in range(2))
    careful._parse = raise_unexpected if careful._parse else None
    key = b"key" if with_key else None
    given = [
        MemoryRecord("events", 0, n, NOW, key, json.dumps(each).encode()) for n, each in enumerate(records)
    ]
    polled = Polled((Span("events", 0, 0, len(given)),), list(given), np.zeros(len(given), np.int32))
    one, other = quick.decode(0, NOW, polled), careful.decode(0, NOW, polled)
    for column in ("user_ids", "item_ids", "types", "event_ids"):
        assert getattr(one.events, column) == getattr(other.events, column)
    np.testing.assert_array_equal(one.events.value_B, other.events.value_B)
    assert one.ignored == other.ignored
    assert [reject.record for reject in one.rejects] == [reject.record for reject in other.rejects]
    if fields:
        assert one.rejects == other.rejects

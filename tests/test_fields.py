"""Topics that exist already: names, nesting, whole numbers, keys, times and a schema registry's frame."""

import json
import re
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.memory import MemoryLog, MemoryRecord
from pipeline.errors import UsageError
from pipeline.events.batch import Polled, RawBatch, Span
from pipeline.events.checks import EARLIEST_MS, MAX_DEPTH, any_ms
from pipeline.events.decode import Decoder
from pipeline.events.fields import field_names, value_at
from pipeline.events.parse import Unexpected
from pipeline.settings import EventsConfig, TopicsConfig

NOW = 1_700_000_000_000
GUIDES = Path(__file__).parent.parent / "deploy" / "guides"
PATHS = {"user_id": "payload.user.id", "item_id": "payload.sku", "timestamp_ms": "payload.at.$date"}


def decoded(
    *records: MemoryRecord | bytes, topics: TopicsConfig | None = None, limit: int = 2_000, **config: Any
) -> RawBatch:
    given = [
        each if not isinstance(each, bytes) else MemoryRecord("events", 0, place, NOW, b"key", each)
        for place, each in enumerate(records)
    ]
    spans = tuple(Span(topic, 0, 0, len(given)) for topic in dict.fromkeys(each.topic for each in given))
    order = [[span.topic for span in spans].index(each.topic) for each in given]
    polled = Polled(spans, list(given), np.array(order, np.int32))
    return Decoder(EventsConfig(**config), topics or TopicsConfig(), limit).decode(0, NOW, polled)


def event(**fields: Any) -> bytes:
    return json.dumps({"user_id": "ann", "item_id": "tea", **fields}).encode()


def only(batch: RawBatch) -> tuple[str, str]:
    assert not batch.rejects
    assert len(batch.events) == 1
    return batch.events.user_ids[0], batch.events.item_ids[0]


def problem(batch: RawBatch) -> tuple[str, str]:
    assert not len(batch.events)
    (reject,) = batch.rejects
    return reject.reason, reject.detail


def test_each_topic_gives_its_default_type_and_a_record_may_name_its_own() -> None:
    log = MemoryLog({"shop.orders": 1, "shop.clicks": 1})
    for topic in ("shop.orders", "shop.clicks"):
        for fields in ({}, {"event_type": "gift"}, {"event_type": ""}, {"event_type": None}):
            log.append(event(**fields), topic=topic, timestamp=NOW)
    records = [each for source in log.partitions() for each in log.read(source, 0)]
    topics = TopicsConfig(events={"shop.orders": "purchase", "shop.clicks": "view"})
    types = decoded(*records, topics=topics).events.types
    assert types == ["view", "gift", "view", "view", "purchase", "gift", "purchase", "purchase"]


# Whole numbers


@pytest.mark.parametrize("number", [42, 0, -7, 2**63, 10**255])
def test_a_whole_number_is_the_text_of_its_digits(number: int) -> None:
    value = event(user_id=number, item_id=number, event_type=number, event_id=number, session_id=number)
    events = decoded(value).events
    assert events.user_ids == events.item_ids == events.types == events.event_ids == [str(number)]


def test_a_number_and_its_text_are_one_user_beside_texts_that_only_look_like_it() -> None:
    records = [event(user_id=user) for user in (42, "42", "042", " 42")]
    assert decoded(*records).events.user_ids == ["42", "42", "042", " 42"]


# Paths


def nested(user: object = "ann", item: object = "tea", at: object = NOW - 5) -> dict[str, Any]:
    return {"payload": {"user": {"id": user}, "sku": item, "at": {"$date": at}}, "event_type": "buy"}


def test_a_path_leads_into_nested_objects() -> None:
    events = decoded(json.dumps(nested(7)).encode(), fields=PATHS).events
    assert (events.user_ids, events.item_ids, events.types) == (["7"], ["tea"], ["buy"])
    assert events.time_ms_B.tolist() == [NOW - 5]


def test_a_top_level_field_of_the_very_name_wins_over_the_path() -> None:
    flat = {"payload.user.id": "bob", "payload.sku": "rum", "payload": "anything"}
    records = [json.dumps(each).encode() for each in (flat, nested() | flat, nested())]
    events = decoded(*records, fields=PATHS).events
    assert events.user_ids == ["bob", "bob", "ann"]
    assert events.item_ids == ["rum", "rum", "tea"]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"sku": "tea"}, "missing_field"),
        ({"sku": "tea", "user": "ann"}, "missing_field"),
        ({"sku": "tea", "user": [{"id": "ann"}]}, "missing_field"),
        ({"sku": "tea", "user": {"id": None}}, "missing_field"),
        ({"sku": "tea", "user": {"id": 5.5}}, "wrong_type"),
        ({"sku": "tea", "user": {"id": ""}}, "empty_id"),
        ({"sku": "", "user": {"id": "ann"}}, "empty_id"),
        ({"sku": "tea", "user": {"id": "ann"}, "at": {"$date": 12}}, "bad_time"),
        ({"sku": "tea", "user": {"id": "ann"}, "at": {"$date": 1e999}}, "not_finite"),
        (None, "missing_field"),
        ("text", "missing_field"),
    ],
)
def test_a_path_that_leads_to_no_id_is_refused_with_its_name(payload: object, reason: str) -> None:
    said = problem(decoded(json.dumps({"payload": payload}).encode(), fields=PATHS))
    assert said[0] == reason
    if reason == "missing_field":
        assert said[1] == "Object missing required field `payload.user.id`"
    else:
        assert "payload." in said[1] or reason == "not_finite"


def test_what_a_path_leaves_open_has_its_default() -> None:
    value = json.dumps({"payload": {"user": {"id": "ann"}, "sku": "tea"}}).encode()
    events = decoded(value, fields=PATHS | {"value": "payload.price", "event_type": "meta.kind"}).events
    assert (events.types, events.time_ms_B.tolist()) == (["click"], [NOW])
    assert np.isnan(events.value_B[0])


def test_an_object_that_a_path_leads_into_may_have_the_name_of_a_field_of_ours() -> None:
    value = json.dumps({"context": {"userId": "ann", "page": {"n": 1}}, "item_id": "tea"}).encode()
    assert only(decoded(value, fields={"user_id": "context.userId"})) == ("ann", "tea")


def test_a_field_inside_of_another_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match=r"item_id is read from 'thing', and user_id from 'thing\.user'"):
        field_names(EventsConfig(fields={"item_id": "thing", "user_id": "thing.user"}))
    with pytest.raises(UsageError, match=r"item_id is read from 'item_id', .* inside of it"):
        field_names(EventsConfig(fields={"user_id": "item_id.user"}))


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


# Times


@pytest.mark.parametrize(
    "time",
    [1_600_000_000.123, 1_600_000_000_123, 1_600_000_000_123.0, 1_600_000_000_123_456,
     1_600_000_000_123_456_789, "2020-09-13T12:26:40.123Z", "2020-09-13 14:26:40.123+02:00",
     "1600000000123", "1600000000.123"],
)  # fmt: skip
def test_auto_reads_a_time_in_whatever_unit(time: object) -> None:
    assert decoded(event(timestamp_ms=time), time_unit="auto").events.time_ms_B.tolist() == [
        1_600_000_000_123
    ]


@pytest.mark.parametrize("time", ["yesterday", "", "12", 0, 12.5, -1_600_000_000, 10**30, 1e300, "9" * 40])
def test_auto_refuses_what_is_no_time_since_2000(time: object) -> None:
    assert problem(decoded(event(timestamp_ms=time), time_unit="auto"))[0] == "bad_time"


@given(st.integers(EARLIEST_MS, NOW))
def test_no_unit_is_taken_for_another(time_ms: int) -> None:
    for time in (time_ms / 1000, time_ms, time_ms * 1000, time_ms * 1_000_000):
        assert any_ms(time) == time_ms


def test_units_are_not_guessed_unless_asked() -> None:
    assert problem(decoded(event(timestamp_ms=1_600_000_000)))[0] == "bad_time"


# A schema registry's frame

GUID = uuid.UUID("89791762-2336-186f-9674-180a8e2d0b33")


@dataclass(frozen=True)
class HeadedRecord:
    """A record as the Kafka client hands it over, with headers."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


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
        record = HeadedRecord("events", 0, 0, NOW, b"ann", value, headers)
        polled = Polled((Span("events", 0, 0, 1),), [record], np.zeros(1, np.int32))
        batch = Decoder(EventsConfig(), TopicsConfig(), 2_000).decode(0, NOW, polled)
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

GA4 = {"item_id": "items[].item_id", "value": "items[].price"}


def purchase(*items: Any, **fields: Any) -> bytes:
    return json.dumps({"user_id": "ann", "event_type": "purchase", "items": list(items), **fields}).encode()


def test_a_record_is_an_event_for_each_element_of_its_array() -> None:
    value = purchase(
        {"item_id": "tea", "price": 2.5}, {"item_id": 7, "price": None}, event_id="e1", timestamp_ms=NOW - 9
    )
    batch = decoded(event(item_id="rum"), value, purchase({"item_id": "tea"}), fields=GA4)
    events = batch.events
    assert events.user_ids == ["ann"] * 3
    assert events.item_ids == ["tea", "7", "tea"]
    assert events.types == ["purchase"] * 3
    assert events.event_ids == ["e1#0", "e1#1", None]
    assert events.time_ms_B.tolist() == [NOW - 9, NOW - 9, NOW]
    assert events.value_B[0] == 2.5
    assert np.isnan(events.value_B[1:]).all()
    assert batch.record_B is not None
    assert batch.record_B.tolist() == [1, 1, 2]
    (reject,) = batch.rejects  # without the array, item_id is not looked for elsewhere
    assert (reject.reason, reject.detail) == (
        "missing_field", "Object missing required field `items[].item_id`",
    )  # fmt: skip


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


BAD_ELEMENTS = [
    ({"price": 1}, "missing_field", "Object missing required field `items[1].item_id`"),
    ({"item_id": None}, "missing_field", "Object missing required field `items[1].item_id`"),
    ({"item_id": 5.5}, "wrong_type", "Expected `int | str`, got `float` - at `$.items[1].item_id`"),
    ({"item_id": ""}, "empty_id", "items[1].item_id is empty; expected 1 to 256 bytes"),
    ({"item_id": "x" * 257}, "long_id", "items[1].item_id has 257 bytes; expected 1 to 256 bytes"),
    (
        {"item_id": "a", "price": "2"}, "wrong_type",
        "Expected `float`, got `str` - at `$.items[1].price`",
    ),
    ("tea", "missing_field", "Object missing required field `items[1].item_id`"),
    (None, "missing_field", "Object missing required field `items[1].item_id`"),
    ([{"item_id": "a"}], "missing_field", "Object missing required field `items[1].item_id`"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD_ELEMENTS)
def test_a_bad_element_is_named_and_the_others_are_learned(bad: object, reason: str, detail: str) -> None:
    good = {"item_id": "tea"}
    batch = decoded(event(), purchase(good, bad, {"item_id": "rum"}, event_id="e"), fields=GA4)
    assert (batch.events.item_ids, batch.events.event_ids) == (["tea", "rum"], ["e#0", "e#2"])
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
def test_an_empty_array_or_what_is_none_is_a_missing_item(items: object) -> None:
    value = json.dumps({"user_id": "ann", "items": items}).encode()
    assert problem(decoded(value, fields=GA4))[0] == "missing_field"
    fallback = GA4 | {"item_id": ["items[].item_id", "sku"]}
    value = json.dumps({"user_id": "ann", "items": items, "sku": "rum", "event_id": "e"}).encode()
    batch = decoded(value, fields=fallback)
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


def test_choices_that_hold_nothing_or_something_wrong_are_refused_by_name() -> None:
    fields = {"user_id": ["uid", "device.id"]}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "missing_field", "Object missing required field `uid` or `device.id`"),
        ({"uid": ""}, "empty_id", "uid is empty; expected 1 to 256 bytes"),
        ({"device": {"id": "x" * 300}}, "long_id", "device.id has 300 bytes; expected 1 to 256 bytes"),
        ({"uid": 5.5, "device": {"id": "d"}}, "wrong_type", "Expected `int | str`, got `float` - at `$.uid`"),
    ]
    for record, reason, detail in cases:
        value = json.dumps({"item_id": "tea"} | record).encode()
        assert problem(decoded(value, fields=fields)) == (reason, detail)


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
    value = json.dumps({"user_id": "ann", "acts": acts}).encode()
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
    events = batch.events
    assert events.user_ids == ["4"] * 3
    assert events.item_ids == ["tea", "5", "tea"]
    assert events.types == ["buy", "c", "buy"]
    assert events.event_ids == ["9", "10", "9"]  # the update comes twice, and is dropped
    assert events.time_ms_B.tolist() == [NOW - 7, NOW, NOW - 7]


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
    raise Unexpected(text)


@given(st.lists(documents, max_size=3), st.sampled_from(MAPPINGS), st.booleans(), st.booleans())
def test_what_is_read_quickly_is_read_as_carefully(
    records: list[dict[str, Any]], fields: dict[str, str | list[str]], ignoring: bool, with_key: bool
) -> None:
    """The careful reader looks at one value after the other; the quick one must never differ from it."""
    config = EventsConfig(fields=fields, roles={"look": "ignore"} if ignoring else {})
    quick, careful = (Decoder(config, TopicsConfig(), 2_000) for _ in range(2))
    careful._plain, careful._parse = False, raise_unexpected
    key = b"key" if with_key else None
    given = [
        MemoryRecord("events", 0, place, NOW, key, json.dumps(record).encode())
        for place, record in enumerate(records)
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

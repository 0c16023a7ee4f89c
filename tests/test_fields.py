"""Topics that exist already: names, nesting, whole numbers, keys, times and a schema registry's frame."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.list_source import ListLog, ListRecord
from pipeline.errors import UsageError
from pipeline.event.batch import Polled, RawBatch, Span
from pipeline.event.checks import EARLIEST_MS, MAX_DEPTH, any_ms
from pipeline.event.decode import Decoder
from pipeline.event.fields import field_names, value_at
from pipeline.settings import EventsConfig, TopicsConfig

NOW = 1_700_000_000_000
PATHS = {"user_id": "payload.user.id", "item_id": "payload.sku", "timestamp_ms": "payload.at.$date"}


def decoded(
    *records: ListRecord | bytes, topics: TopicsConfig | None = None, limit: int = 2_000, **config: Any
) -> RawBatch:
    given = [
        each if not isinstance(each, bytes) else ListRecord("events", 0, place, NOW, b"key", each)
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
    log = ListLog({"shop.orders": 1, "shop.clicks": 1})
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


def keyed(key: bytes | None, **fields: Any) -> ListRecord:
    return ListRecord("events", 0, 0, NOW, key, json.dumps({"item_id": "tea", **fields}).encode())


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
    record = ListRecord("events", 0, 0, NOW, b"ann", value)
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

"""Topics that exist already: names, nesting, whole numbers, keys, times and a schema registry's frame."""

import json
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
from pipeline.events.batch import RawBatch
from pipeline.events.checks import MAX_DEPTH
from pipeline.events.fields import value_at
from pipeline.settings import TopicsConfig

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


def test_a_whole_number_is_the_text_of_its_digits() -> None:
    numbers = [42, 0, -7, 2**63, 10**255, "042", " 42"]
    events = decoded(*(event(user_id=n, item_id=n, event_type=n, event_id=n) for n in numbers)).events
    assert events.user_ids == events.item_ids == events.types == events.event_ids == [*map(str, numbers)]


def nested(user: object = "ann", at: object = NOW - 5) -> dict[str, Any]:
    return {"payload": {"user": {"id": user}, "sku": "tea", "at": {"$date": at}}, "event_type": "buy"}


def test_a_path_leads_into_nested_objects_and_what_it_leaves_open_has_its_default() -> None:
    fields = PATHS | {"value": "payload.price", "event_type": "meta.kind"}
    other = {"payload": {"user": {"id": "b"}, "sku": "t"}}
    batch = decoded(as_bytes(nested(7)), as_bytes(other), fields=fields)
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
        (PATHS, {"payload": {"sku": "tea", "user": [{"id": "ann"}]}}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": None}}}, "missing_field", NO_USER),
        (PATHS, {"payload": "text"}, "missing_field", NO_USER),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": 5.5}}}, "wrong_type", "`$.payload.user.id`"),
        (PATHS, {"payload": {"sku": "tea", "user": {"id": ""}}}, "empty_id", "payload.user.id is empty"),
        (PATHS, nested(at=12), "bad_time", "payload.at.$date is 12"),
        (PATHS, nested(at=1e999), "not_finite", "Inf"),
        (CHOICES, {"item_id": "tea"}, "missing_field", "missing required field `uid` or `device.id`"),
        (CHOICES, {"item_id": "tea", "uid": ""}, "empty_id", "uid is empty; expected 1 to 256 bytes"),
        (CHOICES, {"item_id": "tea", "device": {"id": "x" * 300}}, "long_id", "device.id has 300 bytes"),
        (CHOICES, {"item_id": "tea", "uid": 5.5, "device": {"id": "d"}}, "wrong_type", "at `$.uid`"),
        (GA4, {"user_id": "ann", "items": []}, "missing_field", "`items[].item_id`"),
        (GA4, {"user_id": "ann", "items": {"item_id": "tea"}}, "missing_field", "`items[].item_id`"),
        (GA4, {"user_id": "ann", "item_id": "tea"}, "missing_field", "`items[].item_id`"),
    ],
)  # fmt: skip
def test_an_error_has_the_name_in_the_record(fields: Any, record: Any, reason: str, detail: str) -> None:
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
    batch = decoded(as_bytes({"item_id": "tea"} | record), fields={"user_id": path})
    found = value_at(record, path)
    good = isinstance(found, str | int) and str(found) != ""
    assert batch.events.user_ids == ([str(found)] if good else [])


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
        fields = MemoryRecord("events", 0, 0, NOW, b"ann", value)._asdict()
        batch = decoded(SimpleNamespace(**fields | {"headers": headers}))
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


@pytest.mark.parametrize(
    ("record", "user"),
    [
        ({"user_id": "ann", "anonymous_id": "x1"}, "ann"),
        ({"user_id": None, "anonymous_id": 17}, "17"),
        ({"user_id": "", "anonymous_id": "x1"}, "x1"),
        ({"user_id": 0, "anonymous_id": "x1"}, "0"),
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

"""Decoding against a slow oracle (json and plain checks): good events keep their order, nothing raises."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.memory import MemoryRecord
from pipeline.events.batch import Polled, RawBatch, Record, Span
from pipeline.events.checks import AHEAD_MS, EARLIEST_MS, MAX_DEPTH, REASONS, any_ms, iso_ms, too_deep
from pipeline.events.decode import Decoder
from pipeline.settings import EventsConfig, TopicsConfig

NOW = 1_700_000_000_000
LIMIT = 2_000


def decoded(
    *given: Record | bytes | None, timestamp: int = NOW, topics: TopicsConfig | None = None,
    limit: int = LIMIT, **config: Any,
) -> RawBatch:  # fmt: skip
    """Decode records, or values of records with the key `key`."""
    records = [
        MemoryRecord("events", 0, offset, timestamp, b"key", each) if isinstance(each, bytes | None) else each
        for offset, each in enumerate(given)
    ]
    names = list(dict.fromkeys(each.topic for each in records)) or ["events"]
    order = np.array([names.index(each.topic) for each in records], np.int32)
    polled = Polled(tuple(Span(name, 0, 0, len(given)) for name in names), list(records), order)
    return Decoder(EventsConfig(**config), topics or TopicsConfig(), limit).decode(3, NOW, polled)


def event(**fields: Any) -> bytes:
    return json.dumps({"user_id": "ann", "item_id": "tea", **fields}).encode()


def refused(value: bytes | None, **config: Any) -> tuple[str, str]:
    """Reason and detail of one bad record, which good ones around it must survive."""
    batch = decoded(event(item_id="before"), value, event(item_id="after"), **config)
    assert batch.events.item_ids == ["before", "after"]
    (reject,) = batch.rejects
    assert reject.record.value is value
    assert reject.reason in REASONS
    assert "\n" not in reject.detail
    return reject.reason, reject.detail


def test_a_full_event_fills_every_column() -> None:
    more = {"session_id": "s", "ranking_id": "r", "context": {"page": "home"}, "unknown": [1, {"deep": None}]}
    full = event(event_type="buy", timestamp_ms=NOW - 5, value=2.5, event_id="e1", **more)
    batch = decoded(full, timestamp=NOW - 1)
    events = batch.events
    assert (batch.seq, batch.now_ms, batch.spans, batch.rejects) == (3, NOW, (Span("events", 0, 0, 1),), [])
    assert (events.user_ids, events.item_ids) == (["ann"], ["tea"])
    assert (events.types, events.event_ids) == (["buy"], ["e1"])
    assert (events.time_ms_B.tolist(), events.append_ms_B.tolist()) == ([NOW - 5], [NOW - 1])
    assert (events.value_B.tolist(), events.source_B.tolist()) == ([2.5], [0])


def test_what_an_event_leaves_out_has_its_default() -> None:
    empty = event(event_type=None, timestamp_ms=None, value=None, event_id=None)
    events = decoded(event(), empty, timestamp=NOW - 7).events
    assert (events.types, events.event_ids) == (["click"] * 2, [None] * 2)
    assert events.time_ms_B.tolist() == [NOW - 7] * 2
    assert np.isnan(events.value_B).all()


def test_events_know_the_span_that_they_came_from() -> None:
    topics = TopicsConfig(events=["one", "two"])
    records = [MemoryRecord(topic, 0, 0, NOW, None, event()) for topic in ("one", "two", "one")]
    assert decoded(*records, topics=topics).events.source_B.tolist() == [0, 1, 0]


GOOD_TIMES = {
    "ms": [1_600_000_000_123, 1_600_000_000_123.0],
    "s": [1_600_000_000.123],
    "iso": ["2020-09-13T12:26:40.123Z", "2020-09-13 14:26:40.123+02:00", "2020-09-13T12:26:40.123"],
    "auto": [
        1_600_000_000.123, 1_600_000_000_123, 1_600_000_000_123.0, 1_600_000_000_123_456,
        1_600_000_000_123_456_789, "2020-09-13T12:26:40.123Z", "2020-09-13 14:26:40.123+02:00",
        "1600000000123", "1600000000.123",
    ],
}  # fmt: skip
BAD_TIMES = {
    "ms": [1_600_000_000],  # a unit is not guessed unless asked
    "s": [1e306, -1e306, 10**30],
    "iso": ["yesterday", "", "0001-01-01T00:00:00+14:00", "1979-12-31T23:59:59Z"],
    "auto": ["yesterday", "", "12", 0, 12.5, -1_600_000_000, 10**30, 1e300, "9" * 40],
}  # fmt: skip


def by_unit(times: Mapping[str, Sequence[object]]) -> list[tuple[str, object]]:
    return [(unit, time) for unit, each in times.items() for time in each]


@pytest.mark.parametrize(("unit", "time"), by_unit(GOOD_TIMES))
def test_times_are_read_in_their_unit(unit: str, time: object) -> None:
    assert decoded(event(timestamp_ms=time), time_unit=unit).events.time_ms_B.tolist() == [1_600_000_000_123]


@pytest.mark.parametrize(("unit", "time"), by_unit(BAD_TIMES))
def test_what_is_no_time_since_1980_is_refused(unit: str, time: object) -> None:
    batch = decoded(event(timestamp_ms=time), time_unit=unit)
    assert [reject.reason for reject in batch.rejects] == ["bad_time"]


def test_times_at_the_borders_are_good() -> None:
    times = [EARLIEST_MS, NOW + AHEAD_MS]
    assert decoded(*(event(timestamp_ms=time) for time in times)).events.time_ms_B.tolist() == times


@given(st.integers(EARLIEST_MS, NOW))
def test_no_unit_is_mistaken_for_another(time_ms: int) -> None:
    for time in (time_ms / 1000, time_ms, time_ms * 1000, time_ms * 1_000_000):
        assert any_ms(time) == time_ms


@pytest.mark.parametrize("timestamp", [-1, 0, EARLIEST_MS - 1, NOW + AHEAD_MS + 1])
def test_an_append_time_that_cannot_be_is_zero(timestamp: int) -> None:
    batch = decoded(event(timestamp_ms=NOW), timestamp=timestamp)
    assert batch.events.append_ms_B.tolist() == [0]
    assert decoded(event(), timestamp=timestamp).rejects[0].reason == "bad_time"


BAD = [
    ("too_large", event(note="x" * LIMIT)),
    ("not_utf8", b'{"user_id":"ann","item_id":"tea","ignored":"\xff"}'),
    ("not_utf8", b'{"user_id":"ann","item_id":"\xed\xa0\x80"}'),
    ("not_json", b""),
    ("not_json", b'{"user_id":"ann","item_id":"tea"} {}'),
    ("not_json", b'\xef\xbb\xbf{"user_id":"ann","item_id":"tea"}'),
    ("not_json", b'{"user_id":"ann","item_id":"tea","ignored":"\\ud800"}'),
    ("too_deep", b'{"user_id":"ann","item_id":"tea","ignored":' + b"[" * 150 + b"]" * 150 + b"}"),
    ("not_object", b'[{"user_id":"ann","item_id":"tea"}]'),
    ("missing_field", b'{"item_id":"tea"}'),
    ("reserved_id", event(user_id="__default__")),
    ("wrong_type", event(item_id=["tea"])),
    ("wrong_type", event(value="5")),
    ("empty_id", event(user_id="")),
    ("long_id", event(item_id="ü" * 129)),
    ("long_id", event(user_id=int("9" * 257))),
    ("not_finite", b'{"user_id":' + b"9" * 1900 + b'9e999,"item_id":"tea"}'),
    ("long_id", event(event_type="x" * 257)),
    ("not_finite", b'{"user_id":"ann","item_id":"tea","value":1' + b"0" * 400 + b"}"),
    ("bad_time", event(timestamp_ms=EARLIEST_MS - 1)),
    ("bad_time", event(timestamp_ms=NOW + AHEAD_MS + 1)),
    ("bad_time", b'{"user_id":"ann","item_id":"tea","timestamp_ms":1e999}'),
]


@pytest.mark.parametrize(("reason", "value"), BAD, ids=[f"{index}-{bad[0]}" for index, bad in enumerate(BAD)])
def test_a_bad_record_is_refused_with_its_reason(reason: str, value: bytes | None) -> None:
    assert refused(value)[0] == reason


def test_details_name_the_users_field_and_the_value() -> None:
    config = {"fields": {"user_id": "uid", "timestamp_ms": "at"}}
    value = b'{"uid":"ann","item_id":"tea","at":12}'
    detail = decoded(value, **config).rejects[0].detail
    assert detail == "at is 12 in ms: expected 1980-01-01 to 2023-11-15T22:13:20Z (a day ahead)"
    assert "`uid`" in decoded(b'{"item_id":"tea"}', **config).rejects[0].detail
    assert refused(event(item_id="x" * 300))[1] == "item_id has 300 bytes; expected 1 to 256 bytes"
    assert refused(event(note="x" * LIMIT))[1].endswith("expected at most limits.record_bytes = 2000")


def test_ids_are_text_byte_for_byte() -> None:
    texts = ["0444778", "nan", "1e5", " a ", "ü" * 128, "x" * 256, "\u0000", "null"]
    assert decoded(*(event(user_id=text, item_id=text) for text in texts)).events.user_ids == texts


def test_depth_is_judged_alike_however_little_stack_is_left() -> None:
    near = b'{"user_id":"ann","item_id":"tea","x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"

    def at_depth(frames: int) -> RawBatch:
        return decoded(near) if not frames else at_depth(frames - 1)

    assert not decoded(near).rejects
    assert not at_depth(500).rejects


@given(st.text('[]{}"\\:,a', max_size=40), st.integers(0, 140), st.integers(0, 140))
def test_depth_counts_brackets_outside_of_strings(noise: str, arrays: int, objects: int) -> None:
    document: object = noise
    for _ in range(arrays):
        document = [document, noise]
    for _ in range(objects):
        document = {noise: document}
    assert too_deep(json.dumps(document).encode()) == (arrays + objects > MAX_DEPTH)


def test_strings_that_never_end_are_scanned_in_linear_time() -> None:
    assert not too_deep(b"[" * 100 + b"]" * 100 + b"{" * 20 + b'"' + b'\\"[' * 300_000)


def refuse(text: str) -> None:
    raise ValueError(text)


def finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def right_type(name: str, got: object) -> bool:
    text = isinstance(got, str | int) and not isinstance(got, bool)
    if name in ("user_id", "item_id"):
        return text
    if name in ("event_type", "event_id"):
        return got is None or text
    if name in ("value", "timestamp_ms"):
        return got is None or (isinstance(got, int | float) and not isinstance(got, bool) and finite(got))
    return True


def acceptable(value: bytes) -> dict[str, Any] | None:
    """The oracle: the event if the bytes are a good one, by `json` and one check after the other."""
    try:
        pairs = json.loads(value.decode(), object_pairs_hook=list, parse_constant=refuse)
        json.dumps(pairs, ensure_ascii=False).encode()  # lone surrogates can't be written
    except ValueError:
        return None
    is_object = value.decode().lstrip(" \t\r\n").startswith("{")
    last = dict(pairs) if is_object else {}  # of a name's occurrences
    if not is_object or not all(right_type(name, got) for name, got in last.items()):
        return None
    texts = ("user_id", "item_id", "event_type", "event_id")
    fields = {name: str(got) if name in texts and got is not None else got for name, got in last.items()}
    if not all(1 <= len(fields.get(name, "").encode()) <= 256 for name in ("user_id", "item_id")):
        return None
    if any(len((fields.get(name) or "").encode()) > 256 for name in ("event_type", "event_id")):
        return None
    time = fields.get("timestamp_ms")
    return fields if time is None or EARLIEST_MS <= round(time) <= NOW + AHEAD_MS else None


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["", "ann", "tea", "x" * 257, NOW, NOW - 5.5, 0])
)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
names = st.sampled_from(["user_id", "item_id", "event_type", "timestamp_ms", "value", "event_id", "other"])
ids = st.text(min_size=1, max_size=70) | st.integers()
likely = st.fixed_dictionaries(
    {"user_id": ids, "item_id": st.just("tea") | ids},
    optional={
        "timestamp_ms": st.integers(NOW - 9, NOW) | scalars,
        "value": st.floats(allow_nan=False) | scalars,
        "event_id": st.text(max_size=70) | st.integers(),
        "event_type": st.sampled_from(["buy", ""]) | scalars,
        "other": anything,
    },
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Mostly events, some with a wrong field, some any JSON, some cut off, some any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=40))
    document = draw(likely | likely | st.dictionaries(names, scalars) | anything)
    text = json.dumps(document, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


@given(st.lists(payloads(), max_size=6))
@example([b'{"user_id":"a","item_id":"b","value":1e400}', b'{"user_id":"a","item_id":"b","other":1e400}'])
@example([b'{"user_id":"a","item_id":"b","event_type":"\\ud83d\\ude00"}'])
@example([b'{"user_id":null,"user_id":"a","item_id":"b"}', b'{"user_id":"c","user_id":"a","item_id":"b"}'])
def test_exactly_the_good_events_pass_in_their_order(values: list[bytes]) -> None:
    batch = decoded(*values)
    expected = [acceptable(value) for value in values]
    good = [fields for fields in expected if fields is not None]
    events = batch.events
    assert events.user_ids == [fields["user_id"] for fields in good]
    assert events.item_ids == [fields["item_id"] for fields in good]
    assert events.types == [fields.get("event_type") or "click" for fields in good]
    assert events.event_ids == [fields.get("event_id") or None for fields in good]
    times = [fields.get("timestamp_ms") for fields in good]
    assert events.time_ms_B.tolist() == [NOW if time is None else round(time) for time in times]
    got = [None if math.isnan(value) else value for value in events.value_B]
    assert got == [None if fields.get("value") is None else float(fields["value"]) for fields in good]
    refused_at = [index for index, fields in enumerate(expected) if fields is None]
    assert [reject.record.offset for reject in batch.rejects] == refused_at
    assert all(reject.reason in REASONS and "\n" not in reject.detail for reject in batch.rejects)


@given(st.datetimes(min_value=datetime(2000, 1, 2), timezones=st.timezones()))
def test_iso_times_come_back(moment: datetime) -> None:
    assert abs(iso_ms(moment.isoformat()) - moment.timestamp() * 1000) <= 1

"""From bytes to columns: every record of a poll becomes an event or a reject, in one pass, and none can
stop it."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.event.batch import Events, Polled, RawBatch, Record, Reject
from pipeline.event.checks import (
    AHEAD_MS,
    EARLIEST_MS,
    MAX_DEPTH,
    SHORT,
    Problem,
    any_ms,
    id_problem,
    iso_ms,
    plausible,
    shown,
    time_problem,
    too_deep,
    unreadable,
    user_problem,
)
from pipeline.event.fields import Refused, as_text, event_parser, field_names, key_text
from pipeline.event.framing import ADVICE, is_object, schema_of, unframed
from pipeline.event.records import DEFAULT_USER
from pipeline.settings import KEY_FIELD, EventsConfig, TopicsConfig

_FAR_S = 1e15  # beyond all clocks


class Decoder:
    """Decode records by the configured field names, unit of time and default event types.

    Raise `UsageError` when two fields are to be read from one name. Holds no state between batches.
    """

    def __init__(self, settings: EventsConfig, topics: TopicsConfig, record_bytes: int) -> None:
        self._names = field_names(settings)
        self._record_bytes = record_bytes
        self._default_types = topics.event_topics()
        self._to_ms = _TO_MS[settings.time_unit]
        self._whole_is_ms = settings.time_unit == "ms"
        self._user_is_key = self._names["user_id"] == KEY_FIELD
        self._parse = event_parser(self._names, settings.time_unit)

    def decode(self, seq: int, now_ms: int, polled: Polled) -> RawBatch:
        """Turn what was polled into columns of good events beside the rejects, each in the records' order.

        `now_ms` is the wall-clock time that times are judged by. No record whatever raises.
        """
        longest, parse, to_ms, whole_is_ms = self._record_bytes, self._parse, self._to_ms, self._whole_is_ms
        user_is_key = self._user_is_key
        latest_ms = now_ms + AHEAD_MS
        good: list[tuple[Any, int, int, int]] = []  # event, its time, the record's, index of its span
        rejects: list[Reject] = []
        for record, source in zip(polled.records, polled.order_R.tolist(), strict=True):
            value = record.value
            if value is None or len(value) > longest or (len(value) > 2 * MAX_DEPTH and too_deep(value)):
                rejects.append(Reject(record, *self._unread(record)))
                continue
            try:
                event = parse(value.decode())  # all of it must be UTF-8; the parser skips over unknown fields
                time_ms = event.timestamp_ms
                if time_ms is None:
                    time_ms = record.timestamp
                elif time_ms.__class__ is not int or not whole_is_ms:
                    time_ms = to_ms(time_ms)
                if user_is_key:
                    event.user_id = key_text(record.key)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                again = self._read_again(record, value, error)
                if isinstance(again, Problem):
                    rejects.append(Reject(record, *again))
                    continue
                event, time_ms = again
            # Nearly every event passes here; only one that doesn't is looked at field by field.
            try:
                if (
                    0 < len(event.user_id) <= SHORT
                    and event.user_id != DEFAULT_USER
                    and 0 < len(event.item_id) <= SHORT
                    and EARLIEST_MS <= time_ms <= latest_ms
                    and (event.event_id is None or len(event.event_id) <= SHORT)
                    and (event.event_type is None or len(event.event_type) <= SHORT)
                ):
                    good.append((event, time_ms, record.timestamp, source))
                    continue
            except TypeError:  # a whole number has no length
                pass
            problem = self._problem(event, time_ms, now_ms)
            if problem:
                rejects.append(Reject(record, *problem))
            else:
                good.append((event, time_ms, record.timestamp, source))
        return RawBatch(seq, now_ms, polled.spans, self._columns(polled, good, now_ms), rejects)

    def _columns(self, polled: Polled, good: Sequence[tuple[Any, int, int, int]], now_ms: int) -> Events:
        default_types = [self._default_types.get(span.topic, "click") for span in polled.spans]
        append_ms_B = np.array([appended for _, _, appended, _ in good], np.int64)
        append_ms_B[(append_ms_B < EARLIEST_MS) | (append_ms_B > now_ms + AHEAD_MS)] = 0
        return Events(
            user_ids=[event.user_id for event, _, _, _ in good],
            item_ids=[event.item_id for event, _, _, _ in good],
            types=[event.event_type or default_types[source] for event, _, _, source in good],
            event_ids=[event.event_id or None for event, _, _, _ in good],
            time_ms_B=np.array([time_ms for _, time_ms, _, _ in good], np.int64),
            append_ms_B=append_ms_B,
            value_B=np.array([event.value for event, _, _, _ in good], np.float64),  # None becomes NaN
            source_B=np.array([source for _, _, _, source in good], np.int32),
        )

    def _read_again(self, record: Record, value: bytes, error: Exception) -> tuple[Any, int] | Problem:
        """Read a record that didn't parse as what it may be: JSON behind a schema registry's frame."""
        framed = unframed(value)
        if framed is None or not is_object(framed.payload):
            return self._malformed(record, value, error)
        try:
            event = self._parse(framed.payload.decode())
            time_ms = record.timestamp if event.timestamp_ms is None else self._to_ms(event.timestamp_ms)
            if self._user_is_key:
                event.user_id = key_text(record.key)
        except (msgspec.MsgspecError, ValueError, RecursionError) as inner:
            return self._malformed(record, framed.payload, inner)
        return event, time_ms

    def _unread(self, record: Record) -> Problem:
        """Say why a record was not even parsed."""
        value = record.value
        if value is None:
            return unreadable(record) or Problem(
                "tombstone", "the record has no value; expected a JSON object"
            )
        if len(value) > self._record_bytes:
            expected = f"expected at most limits.record_bytes = {self._record_bytes}"
            return Problem("too_large", f"{len(value)} bytes; {expected}")
        framed = unframed(value)
        if framed and not is_object(framed.payload):  # brackets among binary numbers
            return framed_problem(framed.schema)
        return Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; expected a JSON object")

    def _malformed(self, record: Record, payload: bytes, error: Exception) -> Problem:
        """Say why a record's payload could not be parsed as an event."""
        if isinstance(error, Refused):
            return error.problem
        if isinstance(error, msgspec.MsgspecError | UnicodeDecodeError | RecursionError):
            problem = json_problem(payload, error, time_field=self._names["timestamp_ms"])
            schema = schema_of(record) if problem.reason in ("not_json", "not_utf8") else None
            return framed_problem(schema) if schema else problem
        return Problem("bad_time", f"{self._names['timestamp_ms']}: {shown(str(error))}; expected ISO 8601")

    def _problem(self, event: Any, time_ms: int, now_ms: int) -> Problem | None:
        """Look at one parsed event field by field, once its whole numbers are text."""
        as_text(event)
        names = self._names
        problem = user_problem(names["user_id"], event.user_id) or id_problem(names["item_id"], event.item_id)
        for field, text in (("event_type", event.event_type), ("event_id", event.event_id)):
            if text and not problem:  # an empty one is as good as none
                problem = id_problem(names[field], text)
        if problem or plausible(time_ms, now_ms):
            return problem
        if event.timestamp_ms is None:
            return time_problem(f"{names['timestamp_ms']} is absent, the record's own time", time_ms, now_ms)
        return time_problem(names["timestamp_ms"], time_ms, now_ms)


def framed_problem(schema: str) -> Problem:
    """Say that what a schema registry's serializer wrote is no JSON."""
    return Problem(
        "schema_framed", f"written by a schema registry's serializer ({schema}), no JSON: {ADVICE}"
    )


def json_problem(value: bytes, error: Exception, time_field: str) -> Problem:
    """Say why bytes could not be parsed into a struct, from the parser's error and the bytes themselves.

    `time_field` is the name of the field whose number is a time: out of range it is no time, rather than
    infinite.
    """
    said = str(error)
    match error:
        case RecursionError():
            return Problem("too_deep", f"nested too deeply; expected at most {MAX_DEPTH} levels")
        case UnicodeDecodeError():
            return Problem("not_utf8", f"byte {error.start} is not UTF-8; expected JSON in UTF-8")
        case msgspec.ValidationError() if said.startswith("Object missing required field"):
            return Problem("missing_field", said)
        case msgspec.ValidationError() if said.startswith(("Number out", "Integer value out")):
            reason = "bad_time" if said.endswith(f"`$.{time_field}`") else "not_finite"
            return Problem(reason, said)
        case msgspec.ValidationError() if "`$" not in said:
            return Problem("not_object", said)
        case msgspec.ValidationError():
            return Problem("wrong_type", said)
    constant = _constant_in(value)
    if constant:
        return Problem("not_finite", f"holds {constant}, which is not JSON; expected finite numbers")
    return Problem("not_json", said)


def _constant_in(value: bytes) -> str:
    """Return NaN, Infinity or -Infinity when the bytes are JSON but for that, as many a writer makes it."""
    found: list[str] = []
    try:
        json.loads(value.decode(), parse_constant=found.append)
    except (ValueError, RecursionError):
        return ""
    return found[0] if found else ""


def _seconds_to_ms(seconds: float) -> int:
    return round(max(-_FAR_S, min(seconds, _FAR_S)) * 1000)  # a product that overflows has no integer


_TO_MS: dict[str, Callable[[Any], int]] = {"ms": round, "s": _seconds_to_ms, "iso": iso_ms, "auto": any_ms}

"""Why a record cannot be read as an event, and the frames of schema registries around a payload.

Confluent's serializers write a byte 0 and the schema's id in four bytes, big-endian, or a byte 1 and the
schema's GUID in sixteen, before the payload, or all of this into a header.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from pipeline.events.batch import Record
from pipeline.events.checks import (
    MAX_DEPTH,
    Problem,
    RecordError,
    id_problem,
    plausible,
    time_problem,
    user_problem,
)

ID_FRAME_BYTES, GUID_FRAME_BYTES = 5, 17
VALUE_HEADER = "__value_schema_id"
ADVICE = (
    "Avro and Protobuf are not read; expected JSON or JSON Schema. Choose another serializer in the producer "
    "or convert the records into another topic"
)


class Framed(NamedTuple):
    """A schema's name, for messages, and the payload behind the frame."""

    schema: str
    payload: bytes


def unframed(data: bytes) -> Framed | None:
    """Return the frame's schema and the payload behind it; None without a frame.

    >>> unframed(bytes([0, 0, 0, 1, 2]) + b'{"user_id":"ann"}')
    Framed(schema='schema id 258', payload=b'{"user_id":"ann"}')
    >>> unframed(b'{"user_id":"ann"}') is None
    True
    """
    if data[:1] == b"\x00" and len(data) >= ID_FRAME_BYTES:
        number = int.from_bytes(data[1:ID_FRAME_BYTES], "big")
        return Framed(f"schema id {number}", data[ID_FRAME_BYTES:])
    if data[:1] == b"\x01" and len(data) >= GUID_FRAME_BYTES:
        return Framed(f"schema {UUID(bytes=data[1:GUID_FRAME_BYTES])}", data[GUID_FRAME_BYTES:])
    return None


def is_object(payload: bytes) -> bool:
    """Return whether a payload can be a JSON object; Avro and Protobuf seldom begin like one."""
    return payload.lstrip(b" \t\r\n").startswith(b"{")


def payload_of(value: bytes) -> bytes:
    """Return the JSON object behind a frame; a value without one as it is."""
    framed = unframed(value) if value[:1] in (b"\x00", b"\x01") else None
    return framed.payload if framed and is_object(framed.payload) else value


def schema_of(record: Record) -> str | None:
    """Return the name of the schema that a record was written with, by its frame or its headers."""
    framed = unframed(record.value or b"")
    if framed:
        return framed.schema
    for name, content in getattr(record, "headers", None) or ():
        if name == VALUE_HEADER:
            named = unframed(content or b"")
            return named.schema if named else "a schema named in its headers"
    return None


def unparsed_problem(value: bytes, record_bytes: int) -> Problem:
    """Return why a value was not even parsed."""
    if len(value) > record_bytes:
        expected = f"expected at most limits.record_bytes = {record_bytes}"
        return Problem("too_large", f"{len(value)} bytes; {expected}")
    framed = unframed(value)
    if framed and not is_object(framed.payload):  # brackets among binary numbers
        return framed_problem(framed.schema)
    return Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; expected a JSON object")


def malformed_problem(record: Record, error: Exception) -> Problem:
    """Return why a record's payload could not be parsed."""
    if isinstance(error, RecordError):
        return error.problem
    problem = json_problem(payload_of(record.value or b""), error)
    schema = schema_of(record) if problem.reason in ("not_json", "not_utf8") else None
    return framed_problem(schema) if schema else problem


def event_problem(event: Any, time_ms: int, now_ms: int, name: Callable[[str], str]) -> Problem | None:
    """Return what is wrong with a parsed event. `name` gives the name of a field of ours in the record."""
    problem = user_problem(name("user_id"), event.user_id) or id_problem(name("item_id"), event.item_id)
    for field, text in (("event_type", event.event_type), ("event_id", event.event_id)):
        if text and not problem:  # an empty one counts as absent
            problem = id_problem(name(field), text)
    if problem or plausible(time_ms, now_ms):
        return problem
    absent = " is absent, the record's own time" if event.timestamp_ms is None else ""
    return time_problem(name("timestamp_ms") + absent, time_ms, now_ms)


def framed_problem(schema: str) -> Problem:
    """Return the problem of a record that a schema registry's serializer wrote, not as JSON."""
    return Problem(
        "schema_framed", f"written by a schema registry's serializer ({schema}), no JSON: {ADVICE}"
    )


def json_problem(value: bytes, error: Exception) -> Problem:
    """Return why bytes could not be parsed as a JSON object, from the parser's error and the bytes."""
    said = str(error)
    match error:
        case RecursionError():
            return Problem("too_deep", f"nested too deeply; expected at most {MAX_DEPTH} levels")
        case UnicodeDecodeError():
            return Problem("not_utf8", f"byte {error.start} is not UTF-8; expected JSON in UTF-8")
        case msgspec.ValidationError():
            return Problem("not_finite" if said.startswith(OUT_OF_RANGE) else "not_object", said)
    constant = _constant_in(value)
    if constant:
        return Problem("not_finite", f"holds {constant}, which is not JSON; expected finite numbers")
    return Problem("not_json", said)


OUT_OF_RANGE = ("Number out", "Integer value out")  # msgspec's words


def _constant_in(value: bytes) -> str:
    """Return NaN, Infinity or -Infinity when the bytes are JSON but for that, as many writers produce it."""
    found: list[str] = []
    try:
        json.loads(value.decode(), parse_constant=found.append)
    except (ValueError, RecursionError):
        return ""
    return found[0] if found else ""

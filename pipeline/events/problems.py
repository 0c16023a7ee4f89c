"""Why a record can't be read as an event, from the parser's error and the record itself."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from pipeline.events.batch import Record
from pipeline.events.checks import (
    MAX_DEPTH,
    Problem,
    id_problem,
    plausible,
    shown,
    time_problem,
    user_problem,
)
from pipeline.events.fields import Refused
from pipeline.events.framing import ADVICE, is_object, schema_of, unframed


def unread_problem(record: Record, value: bytes, record_bytes: int) -> Problem:
    """Say why a record was not even parsed."""
    if len(value) > record_bytes:
        expected = f"expected at most limits.record_bytes = {record_bytes}"
        return Problem("too_large", f"{len(value)} bytes; {expected}")
    framed = unframed(value)
    if framed and not is_object(framed.payload):  # brackets among binary numbers
        return framed_problem(framed.schema)
    return Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; expected a JSON object")


def malformed_problem(record: Record, payload: bytes, error: Exception, time_field: str) -> Problem:
    """Say why a record's payload could not be parsed as an event. `time_field` as in `json_problem`."""
    if isinstance(error, Refused):
        return error.problem
    if isinstance(error, msgspec.MsgspecError | UnicodeDecodeError | RecursionError):
        problem = json_problem(payload, error, time_field)
        schema = schema_of(record) if problem.reason in ("not_json", "not_utf8") else None
        return framed_problem(schema) if schema else problem
    return Problem("bad_time", f"{time_field}: {shown(str(error))}; expected ISO 8601")


def event_problem(event: Any, time_ms: int, now_ms: int, name: Callable[[str], str]) -> Problem | None:
    """Look at one parsed event field by field. `name` gives the name of a field of ours in the record."""
    problem = user_problem(name("user_id"), event.user_id) or id_problem(name("item_id"), event.item_id)
    for field, text in (("event_type", event.event_type), ("event_id", event.event_id)):
        if text and not problem:  # an empty one is as good as none
            problem = id_problem(name(field), text)
    if problem or plausible(time_ms, now_ms):
        return problem
    if event.timestamp_ms is None:
        return time_problem(f"{name('timestamp_ms')} is absent, the record's own time", time_ms, now_ms)
    return time_problem(name("timestamp_ms"), time_ms, now_ms)


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

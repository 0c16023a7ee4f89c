"""The careful parser of events, correct for all records. A value that is not used may be of any kind."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from pipeline.events.batch import Record
from pipeline.events.checks import (
    AHEAD_MS,
    MAX_ELEMENTS,
    Problem,
    RecordError,
    passes,
    shown,
    too_many,
)
from pipeline.events.fields import (
    ARRAY,
    READ_FIELDS,
    REQUIRED_FIELDS,
    TEXT_FIELDS,
    TO_MS,
    Names,
    array_in,
    is_path,
    key_text,
    kind_of,
)
from pipeline.events.problems import OUT_OF_RANGE, event_problem, malformed_problem, payload_of
from pipeline.settings import KEY_FIELD, EventsConfig

MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
Object = dict[str, msgspec.Raw]
Result = tuple["Event", int] | Problem | str
EMPTY = b'""'
_decode_object = msgspec.json.Decoder(Object).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Event(msgspec.Struct, gc=False):
    """One parsed event, its time still in its unit."""

    user_id: Any
    item_id: Any
    event_type: Any
    event_id: Any
    timestamp_ms: Any
    value: float | None


class Parsed(NamedTuple):
    """What a record holds under our names, or with a number, from 0, one element of its array.

    `found` has the JSON under each name; for the key, whether it is empty. Null and nothing are left out.
    """

    found: dict[str, bytes]
    key: bytes | None
    number: int | None = None


class CarefulParser:
    """Parse one record after the other, wherever the fields lie: the names in `choices`, see fields.py."""

    def __init__(self, choices: Mapping[str, Names], settings: EventsConfig) -> None:
        names = [name for each in choices.values() for name in each]
        # the default name of a field may be that of an object here: then the field is absent
        objects = {name.partition(ARRAY)[0].split(".")[0] for name in names if is_path(name)}
        self._choices = {
            field: [name for name in each if name not in objects] for field, each in choices.items()
        }
        self._array = array_in(names)
        self._inside = [name for name in names if ARRAY in name]
        self._outside = [name for name in names if ARRAY not in name and name not in (KEY_FIELD, *objects)]
        self._type_is_inside = any(ARRAY in name for name in choices["event_type"])
        self._decode = {
            field: msgspec.json.Decoder(kind_of(field, settings.time_unit)).decode for field in READ_FIELDS
        }
        self._ignored = settings.ignored()
        self._to_ms = TO_MS[settings.time_unit]

    def read(self, record: Record, default_type: str, now_ms: int) -> list[Result]:
        """Read a record that is neither too long nor too deep.

        Return for each element an event and its time in ms, or why it is none, or its type if that is to be
        ignored.
        """
        try:
            elements = self._elements(record, default_type)
        except MALFORMED as error:
            return [malformed_problem(record, error)]
        return [self._read_element(parsed, record, default_type, now_ms) for parsed in elements]

    def count(self, record: Record, default_type: str) -> int:
        """Return how many events a record is at most."""
        try:
            (first, *others) = self._elements(record, default_type)
            return 1 + len(others) if others or not self._is_ignored(first, default_type) else 0
        except MALFORMED:
            return 0

    def _elements(self, record: Record, default_type: str) -> list[Parsed]:
        """Return the elements that are events; the record itself where it is one event, or to be ignored."""
        payload = payload_of(record.value or b"")
        payload.decode()  # all of it must be UTF-8; the parser skips over unknown fields
        root = _decode_object(payload)
        parsed = Parsed({name: raw for name in self._outside if (raw := _under(root, name))}, record.key)
        if record.key is not None:
            parsed.found[KEY_FIELD] = b"1" if record.key else EMPTY
        raw = _at(root, self._array) if self._array else b""
        if (
            not raw.startswith(b"[")
            or not self._item_is_inside(parsed)
            or (not self._type_is_inside and self._is_ignored(parsed, default_type))
        ):
            return [parsed]
        elements = _decode_array(raw)
        if len(elements) > MAX_ELEMENTS:
            raise RecordError(*too_many(len(elements)))
        # an element without an item does not have the record's own item
        shared = {name: raw for name, raw in parsed.found.items() if name not in self._choices["item_id"]}
        return [
            Parsed(shared | self._found_inside(each), record.key, number)
            for number, each in enumerate(elements)
        ] or [parsed]

    def _found_inside(self, element: msgspec.Raw) -> dict[str, bytes]:
        """Return the JSON under the names that lead into the array."""
        afters = {name: name.partition(ARRAY)[2].removeprefix(".") for name in self._inside}
        return {name: raw for name, after in afters.items() if (raw := _at(element, after))}

    def _read_element(self, parsed: Parsed, record: Record, default_type: str, now_ms: int) -> Result:
        try:
            if self._ignored:
                kind: str = self._take("event_type", parsed) or default_type
                if kind in self._ignored:
                    return kind
            event = Event(**{field: self._take(field, parsed) for field in READ_FIELDS})
            time_ms = self._time_ms(event, record, parsed)
        except MALFORMED as error:
            return malformed_problem(record, error)
        if not passes(event, time_ms, now_ms + AHEAD_MS):
            problem = event_problem(event, time_ms, now_ms, partial(self._shown, parsed))
            if problem:
                return problem
        if parsed.number is not None and event.event_id and ARRAY not in self._chosen("event_id", parsed):
            event.event_id += f"#{parsed.number}"
        return event, time_ms

    def _is_ignored(self, parsed: Parsed, default_type: str) -> bool:
        return bool(self._ignored) and (self._take("event_type", parsed) or default_type) in self._ignored

    def _item_is_inside(self, parsed: Parsed) -> bool:
        """Return whether the item lies in the array: no name before it leads to a value."""
        names = self._choices["item_id"]
        before = names[: next((place for place, name in enumerate(names) if ARRAY in name), 0)]
        return all(parsed.found.get(name, EMPTY) == EMPTY for name in before)

    def _take(self, field: str, parsed: Parsed) -> Any:
        """Return a field's value, None without one.

        Raise `RecordError` where it is of the wrong type, or missing and required.
        """
        name = self._chosen(field, parsed)
        if name == KEY_FIELD or (not name and self._choices[field] == [KEY_FIELD]):
            return key_text(parsed.key)
        if not name:
            if field in REQUIRED_FIELDS:
                raise RecordError(
                    "missing_field", f"Object missing required field `{self._shown(parsed, field)}`"
                )
            return None
        try:
            value = self._decode[field](parsed.found[name])
        except msgspec.ValidationError as error:
            reason = "wrong_type"
            if str(error).startswith(OUT_OF_RANGE):
                reason = "bad_time" if field == "timestamp_ms" else "not_finite"
            raise RecordError(reason, f"{error} - at `$.{_numbered(name, parsed)}`") from None
        return str(value) if value.__class__ is int and field in TEXT_FIELDS else value

    def _shown(self, parsed: Parsed, field: str) -> str:
        """Return the name of a field for a message: the one where it was found, else all its names."""
        names = [self._chosen(field, parsed)]
        if not names[0]:
            of_element = field == "item_id" and parsed.number is not None
            names = [name for name in self._choices[field] if ARRAY in name or not of_element]
        return "` or `".join(_numbered(name, parsed) for name in names)

    def _chosen(self, field: str, parsed: Parsed) -> str:
        """Return the first name of a field with a value that is not empty text, else with empty text."""
        held = [name for name in self._choices[field] if name in parsed.found]
        return next((name for name in held if parsed.found[name] != EMPTY), held[0] if held else "")

    def _time_ms(self, event: Event, record: Record, parsed: Parsed) -> int:
        if event.timestamp_ms is None:
            return record.timestamp
        try:
            return self._to_ms(event.timestamp_ms)
        except ValueError as error:
            name = self._shown(parsed, "timestamp_ms")
            raise RecordError("bad_time", f"{name}: {shown(str(error))}; expected ISO 8601") from None


def _numbered(name: str, parsed: Parsed) -> str:
    """Return a name for a message, with the number of the element."""
    return name if parsed.number is None else name.replace(ARRAY, f"[{parsed.number}]")


def _under(root: Object, name: str) -> bytes:
    """Return the JSON under a field's very name or at the end of its path; empty for nothing, or null."""
    found = _known(root.get(name))
    return found or (_at(root, name) if is_path(name) else b"")


def _at(holder: Object | msgspec.Raw, path: str) -> bytes:
    """Return the JSON at the end of a path; empty for nothing, or null."""
    found: Any = holder
    for step in path.split(".") if path else ():
        if not isinstance(found, dict):
            found = _decode_object(found) if found and bytes(found).startswith(b"{") else {}
        found = found.get(step)
    return _known(found)


def _known(found: msgspec.Raw | None) -> bytes:
    raw = b"" if found is None else bytes(found)
    return b"" if raw == b"null" else raw

"""The careful parser of events, correct for all records. A value that is not used may be of any kind."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from pipeline.events.batch import Record
from pipeline.events.checks import (
    AHEAD_MS,
    MAX_ELEMENTS,
    Problem,
    RecordError,
    any_ms,
    iso_ms,
    passes,
    shown,
    too_many,
)
from pipeline.events.fields import READ_FIELDS, REQUIRED_FIELDS, TEXT_FIELDS, key_text
from pipeline.events.plan import NO_OBJECT, FieldPath, Plan, Steps, kind_of, struct_of
from pipeline.events.problems import OUT_OF_RANGE, event_problem, malformed_problem, payload_of
from pipeline.settings import KEY_FIELD, EventsConfig

_FAR_S = 1e15  # beyond all clocks
MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _seconds_to_ms(seconds: float) -> int:
    return round(max(-_FAR_S, min(seconds, _FAR_S)) * 1000)  # a product that overflows has no integer


TO_MS: dict[str, Callable[[Any], int]] = {"ms": round, "s": _seconds_to_ms, "iso": iso_ms, "auto": any_ms}


class Event(msgspec.Struct, gc=False):
    """One parsed event, its time still in its unit. `own_id`: its `event_id` lies in the array's element."""

    user_id: Any
    item_id: Any
    event_type: Any
    event_id: Any
    timestamp_ms: Any
    value: float | None
    own_id: bool


class Found(NamedTuple):
    """The content of a record: good events with their times in ms, why others are bad, ignored types."""

    events: list[tuple[Event, int]]
    problem: Problem | None
    ignored: list[str]


class Parsed(NamedTuple):
    """A record in its parts, and one element of its array. Without a number the record is one event."""

    root: Any
    key: bytes | None
    number: int | None = None  # from 0
    element: Any = None


Values = dict[str, tuple[Any, FieldPath | None]]  # by field, each with the path that led to it


class CarefulParser:
    """Parse one record after the other, wherever the fields lie."""

    def __init__(self, plan: Plan, settings: EventsConfig) -> None:
        self._paths, self._array = plan.paths, plan.array
        self._parse = msgspec.json.Decoder(struct_of(plan.record, _raw)).decode
        self._parse_element: Callable[[msgspec.Raw], Any] = (
            msgspec.json.Decoder(struct_of(plan.element, _raw) | NO_OBJECT).decode
            if plan.element
            else lambda raw: raw
        )
        self._decode = {
            field: msgspec.json.Decoder(kind_of(field, settings.time_unit)).decode for field in READ_FIELDS
        }
        self._inside = {field for field in READ_FIELDS if plan.inside(field)}
        self._ignored = settings.ignored()
        self._to_ms = TO_MS[settings.time_unit]

    def read(self, record: Record, value: bytes, default_type: str, now_ms: int) -> Found:
        """Read a record that is neither too long nor too deep. `value` is its own."""
        payload = payload_of(value)
        events: list[tuple[Event, int]] = []
        problems: list[Problem] = []
        ignored: list[str] = []
        try:
            payload.decode()  # all of it must be UTF-8; the parser skips over unknown fields
            elements = self._elements(Parsed(self._parse(payload), record.key), default_type)
        except MALFORMED as error:
            return Found([], malformed_problem(record, payload, error), [])
        shared: Values = {}
        for parsed in elements:
            found = self._read_element(parsed, shared, record, default_type, now_ms)
            if isinstance(found, Problem):
                problems.append(found)
            elif isinstance(found, str):
                ignored.append(found)
            else:
                events.append(found)
        return Found(events, _as_one(problems, len(elements)), ignored)

    def _read_element(
        self, parsed: Parsed, shared: Values, record: Record, default_type: str, now_ms: int
    ) -> tuple[Event, int] | Problem | str:
        """Return an event and its time in ms, or why it is none, or its type if that is to be ignored.

        `shared` collects the values that a record's elements have in common.
        """
        try:
            if self._ignored:
                kind: str = self._take("event_type", parsed)[0] or default_type
                if kind in self._ignored:
                    return kind
            event = self._event(parsed, shared)
            time_ms = self._time_ms(event, record, parsed)
        except MALFORMED as error:
            return malformed_problem(record, payload_of(record.value or b""), error)
        if not passes(event, time_ms, now_ms + AHEAD_MS):
            problem = event_problem(event, time_ms, now_ms, partial(self._shown, parsed))
            if problem:
                return problem
        if parsed.number is not None and event.event_id and not event.own_id:
            event.event_id += f"#{parsed.number}"
        return event, time_ms

    def count(self, record: Record, default_type: str) -> int:
        """Return how many events a record is at most."""
        try:
            parsed = Parsed(self._parse(payload_of(record.value or b"")), record.key)
            return 0 if self._is_ignored(parsed, default_type) else len(self._elements(parsed, default_type))
        except MALFORMED:
            return 0

    def _elements(self, parsed: Parsed, default_type: str) -> list[Parsed]:
        """Return the elements that are events; the record itself where it is one event, or to be ignored."""
        if self._is_ignored(parsed, default_type):
            return [parsed]
        raw = _at(parsed.root, self._array) if self._array else b""
        if not raw.startswith(b"[") or not self._item_is_inside(parsed):
            return [parsed]
        found = _decode_array(raw)
        if len(found) > MAX_ELEMENTS:
            raise RecordError(*too_many(len(found)))
        return [
            parsed._replace(number=number, element=self._parse_element(each))
            for number, each in enumerate(found)
        ] or [parsed]

    def _is_ignored(self, parsed: Parsed, default_type: str) -> bool:
        """Return whether a record is to be ignored as a whole, by its own type."""
        if "event_type" in self._inside or not self._ignored:
            return False
        return (self._take("event_type", parsed)[0] or default_type) in self._ignored

    def _item_is_inside(self, parsed: Parsed) -> bool:
        """Return whether the item lies in the array: no name before it leads to a value."""
        for path in self._paths["item_id"]:
            if path.inside:
                return True
            if _found(path, parsed) not in (None, b'""'):
                return False
        return False

    def _event(self, parsed: Parsed, shared: Values) -> Event:
        """Return an event. Raise `RecordError` for what is missing or of the wrong type."""
        values = dict(shared)
        for field in READ_FIELDS:
            if field not in values:
                values[field] = self._take(field, parsed)
                if field not in self._inside:
                    shared[field] = values[field]
        id_path = values["event_id"][1]
        own_id = id_path is not None and id_path.inside
        return Event(**{field: value for field, (value, _) in values.items()}, own_id=own_id)

    def _take(self, field: str, parsed: Parsed) -> tuple[Any, FieldPath | None]:
        """Return a field's value, None without one, and the path that led to it.

        Raise `RecordError` where it is of the wrong type, or missing and required.
        """
        path, raw = self._chosen(field, parsed)
        if path is None:
            if field in REQUIRED_FIELDS:
                if all(each.name == KEY_FIELD for each in self._paths[field]):
                    key_text(parsed.key)  # raises
                raise RecordError(
                    "missing_field", f"Object missing required field `{self._shown(parsed, field)}`"
                )
            return None, None
        if path.name == KEY_FIELD:
            return key_text(parsed.key), path
        try:
            value = self._decode[field](raw)
        except msgspec.ValidationError as error:
            reason = "wrong_type"
            if str(error).startswith(OUT_OF_RANGE):
                reason = "bad_time" if field == "timestamp_ms" else "not_finite"
            raise RecordError(reason, f"{error} - at `$.{path.shown(parsed.number)}`") from None
        return str(value) if value.__class__ is int and field in TEXT_FIELDS else value, path

    def _shown(self, parsed: Parsed, field: str) -> str:
        """Return the name of a field for a message: of the place where it was found, else all its names."""
        path, _ = self._chosen(field, parsed)
        paths = [path] if path else self._candidates(field, parsed)
        return "` or `".join(each.shown(parsed.number) for each in paths)

    def _chosen(self, field: str, parsed: Parsed) -> tuple[FieldPath | None, bytes]:
        """Return the first path of a field to a value that is not empty text, else to empty text, and the
        JSON.
        """
        empty: FieldPath | None = None
        for path in self._candidates(field, parsed):
            raw = _found(path, parsed)
            if raw and raw != b'""':
                return path, raw
            if raw is not None and empty is None:
                empty = path
        return empty, b'""'

    def _candidates(self, field: str, parsed: Parsed) -> Sequence[FieldPath]:
        """Return the paths of a field; an element without an item does not have the record's own item."""
        paths = self._paths[field]
        if field == "item_id" and parsed.number is not None:
            return [path for path in paths if path.inside]
        return paths

    def _time_ms(self, event: Event, record: Record, parsed: Parsed) -> int:
        if event.timestamp_ms is None:
            return record.timestamp
        try:
            return self._to_ms(event.timestamp_ms)
        except ValueError as error:
            name = self._shown(parsed, "timestamp_ms")
            raise RecordError("bad_time", f"{name}: {shown(str(error))}; expected ISO 8601") from None


def _as_one(problems: Sequence[Problem], elements: int) -> Problem | None:
    """Return the first of the problems, with the number of other ones; None for none."""
    if not problems:
        return None
    first, more = problems[0], sum(problem != problems[0] for problem in problems)
    detail = f"{first.detail} (and {more} more of {elements} elements)"
    return first._replace(detail=detail) if more else first


def _found(path: FieldPath, parsed: Parsed) -> bytes | None:
    """Return the JSON at the end of a path; None for nothing, or null. For the key: whether it is empty."""
    if path.name == KEY_FIELD:
        return None if parsed.key is None else b"1" if parsed.key else b'""'
    holder = parsed.element if path.inside else parsed.root
    for steps in path.places:
        raw = _at(holder, steps)
        if raw and raw != b"null":
            return raw
    return None


def _at(holder: Any, steps: Steps) -> bytes:
    """Return the JSON at the end of some steps, empty for nothing: what is no object has no attribute."""
    for step in steps:
        holder = getattr(holder, step, None)
    return bytes(holder) if holder.__class__ is msgspec.Raw else b""


def _raw(field: str) -> tuple[Any, msgspec.Raw]:
    return msgspec.Raw, msgspec.Raw()

"""The careful reader of a record's fields, one value after the other."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from pipeline.events.checks import MAX_ELEMENTS, too_many
from pipeline.events.fields import NEEDED, Refused, key_text
from pipeline.events.parse import TEXTS, Event
from pipeline.events.ways import NO_GROUP, Plan, Steps, Way, kind_of, struct_of
from pipeline.settings import KEY_FIELD

_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Parsed(NamedTuple):
    """A record in its parts, no value read yet."""

    root: Any
    key: bytes | None


class Element(NamedTuple):
    """An element of a record's array; without a number: the record is one event, or none."""

    number: int | None  # from 0
    content: Any


NO_ELEMENT = Element(None, None)


class Lookup:
    """Finds our fields wherever they lie.

    A value is read when it is asked for, so that one that is not taken may be of any kind.
    """

    def __init__(self, plan: Plan, time_unit: str) -> None:
        # nothing reads the context yet, so that any form of it will do
        self._ways = {field: ways for field, ways in plan.ways.items() if field != "context"}
        self._array = plan.array
        self._parse = msgspec.json.Decoder(struct_of(plan.record, _raw)).decode
        self._open: Callable[[msgspec.Raw], Any] = (
            msgspec.json.Decoder(struct_of(plan.element, _raw) | NO_GROUP).decode
            if plan.element
            else lambda raw: raw
        )
        self._read = {field: msgspec.json.Decoder(kind_of(field, time_unit)).decode for field in self._ways}
        self.types_inside = plan.inside("event_type")

    def parse(self, payload: bytes, key: bytes | None) -> Parsed:
        """Take a record apart. Raise msgspec's errors where it is no JSON object."""
        return Parsed(self._parse(payload), key)

    def elements(self, parsed: Parsed) -> list[Element]:
        """Return the elements that are events; one without content where the record is one event itself.

        Raise `Refused` for more than `MAX_ELEMENTS`.
        """
        raw = _at(parsed.root, self._array) if self._array else b""
        if not raw.startswith(b"[") or not self._leads_inside(parsed):
            return [NO_ELEMENT]
        found = _decode_array(raw)
        if len(found) > MAX_ELEMENTS:
            raise Refused(*too_many(len(found)))
        return [Element(number, self._open(each)) for number, each in enumerate(found)] or [NO_ELEMENT]

    def event(self, parsed: Parsed, element: Element) -> Event:
        """Return an event of a record. Raise `Refused` for what is missing or of the wrong type."""
        user_id, _ = self.take("user_id", parsed, element)
        item_id, _ = self.take("item_id", parsed, element)
        event_id, id_way = self.take("event_id", parsed, element)
        event_type, _ = self.take("event_type", parsed, element)
        time, _ = self.take("timestamp_ms", parsed, element)
        value, _ = self.take("value", parsed, element)
        for field in ("session_id", "ranking_id"):
            self.take(field, parsed, element)
        own_id = id_way is not None and id_way.inside
        return Event(user_id, item_id, event_type, event_id, time, value, own_id)

    def take(self, field: str, parsed: Parsed, element: Element) -> tuple[Any, Way | None]:
        """Return a field's value, None for none, and the way that led to it.

        Raise `Refused` where it is of the wrong type, or missing and needed.
        """
        way, raw = self._chosen(field, parsed, element)
        if way is None:
            if field in NEEDED:
                self._refuse(field, parsed, element)
            return None, None
        if way.name == KEY_FIELD:
            return key_text(parsed.key), way
        try:
            value = self._read[field](raw)
        except msgspec.ValidationError as error:
            name = way.shown(element.number)
            raise Refused(_reason(field, str(error)), f"{error} - at `$.{name}`") from None
        return str(value) if value.__class__ is int and field in TEXTS else value, way

    def shown(self, parsed: Parsed, element: Element, field: str) -> str:
        """Return the name of a field for a message: of the place where it was found, else all that it has."""
        way, _ = self._chosen(field, parsed, element)
        return way.shown(element.number) if way else self._all_names(field, element)

    def _chosen(self, field: str, parsed: Parsed, element: Element) -> tuple[Way | None, bytes]:
        """Return the first way of a field that leads to something, and the JSON found; of those that lead to
        empty text alone the first. An element that names no item is none of the record's own item."""
        empty: Way | None = None
        for way in self._ways_in(field, element):
            raw = _found(way, parsed, element)
            if raw and raw != b'""':
                return way, raw
            if raw is not None and empty is None:
                empty = way
        return empty, b'""'

    def _ways_in(self, field: str, element: Element) -> Sequence[Way]:
        ways = self._ways[field]
        if field == "item_id" and element is not NO_ELEMENT:
            return [way for way in ways if way.inside]
        return ways

    def _leads_inside(self, parsed: Parsed) -> bool:
        """Return whether the item is to be looked for in the array: no name before it leads to something."""
        for way in self._ways["item_id"]:
            if way.inside:
                return True
            if _found(way, parsed, NO_ELEMENT) not in (None, b'""'):
                return False
        return False

    def _all_names(self, field: str, element: Element) -> str:
        return "` or `".join(way.shown(element.number) for way in self._ways_in(field, element))

    def _refuse(self, field: str, parsed: Parsed, element: Element) -> NoReturn:
        """Raise `Refused` for a field that no way leads to."""
        if all(way.name == KEY_FIELD for way in self._ways[field]):
            key_text(parsed.key)
        names = self._all_names(field, element)
        raise Refused("missing_field", f"Object missing required field `{names}`")


def _reason(field: str, said: str) -> str:
    """Return why a value is refused, from msgspec's words: a number beyond all clocks is no time."""
    if not said.startswith(("Number out", "Integer value out")):
        return "wrong_type"
    return "bad_time" if field == "timestamp_ms" else "not_finite"


def _found(way: Way, parsed: Parsed, element: Element) -> bytes | None:
    """Return the JSON that a way leads to; None for nothing, or null. For the key: whether it is empty."""
    if way.name == KEY_FIELD:
        return None if parsed.key is None else b"1" if parsed.key else b'""'
    holder = element.content if way.inside else parsed.root
    for steps in way.places:
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

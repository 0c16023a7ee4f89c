"""Parsers of an event's JSON: one for records whose fields all lie at the top under one name each, and one
for paths, second choices, arrays and event types to ignore.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from pipeline.event.checks import MAX_ELEMENTS
from pipeline.event.fields import ARRAY, NEEDED, TEXTS, Names, Refused, array_in, is_path, key_text
from pipeline.settings import KEY_FIELD, EventsConfig

Parse = Callable[[str], Any]
Steps = tuple[str, ...]  # attributes from a parsed object to a value
Tree = dict[str, "Tree | None"]  # names in records -> what lies below; None: a value

_TIMES: dict[str, Any] = {"iso": str, "auto": int | float | str}
# what a record may hold where a path looks for an object: then it lacks the field, and is no worse than that
_NO_GROUP = str | int | float | bool | list[Any] | None
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Event(msgspec.Struct, gc=False):
    """One event as it was parsed: texts are text, a time is in its unit still. `own_id`: its `event_id` is
    the element's own, not the record's."""

    user_id: str
    item_id: str
    event_type: str | None
    event_id: str | None
    timestamp_ms: Any
    value: float | None
    own_id: bool


class Parsed(NamedTuple):
    """A record in its parts, no value read yet."""

    root: Any
    key: bytes | None


class Element(NamedTuple):
    """An element of a record's array; without a number: the record is one event, or none."""

    number: int | None  # from 0
    content: Any


NO_ELEMENT = Element(None, None)


class Way(NamedTuple):
    """One name of a field, the places where that may lie, the first to be looked at first, and whether they
    are in an element of the array."""

    name: str
    places: tuple[Steps, ...]
    inside: bool

    def find(self, parsed: Parsed, element: Element) -> bytes | None:
        """Return the JSON that lies there; None for nothing, or null. For the key: whether it is empty."""
        if self.name == KEY_FIELD:
            return None if parsed.key is None else b"1" if parsed.key else b'""'
        holder = element.content if self.inside else parsed.root
        for steps in self.places:
            raw = _at(holder, steps)
            if raw and raw != b"null":
                return raw
        return None

    def shown(self, number: int | None) -> str:
        """Return the name for a message, with the number of the element."""
        return self.name if number is None else self.name.replace(ARRAY, f"[{number}]")


def plain_parser(choices: Mapping[str, Names], settings: EventsConfig) -> Parse | None:
    """Return a parser of an event's JSON text: its result has an attribute for each of our fields.

    Texts come as `str | int` (see `as_text`), `null` is as good as an absent field, and what is not ours is
    skipped. It raises msgspec's errors. None where a field has a path or several names, or there are types to
    ignore.
    """
    if settings.ignored() or any(len(names) > 1 or is_path(names[0]) for names in choices.values()):
        return None
    needed: list[Any] = []
    optional: list[Any] = []
    for field, (name,) in choices.items():
        kind = _kind(field, settings.time_unit)
        if field in NEEDED and name != KEY_FIELD:
            needed.append((field, kind))
        else:
            optional.append((field, kind | None, None))
    rename = {field: name for field, (name,) in choices.items()}
    event = msgspec.defstruct("Event", needed + optional, gc=False, rename=rename)
    parse: Parse = msgspec.json.Decoder(event).decode
    return parse


def as_text(event: Any) -> None:
    """Turn ids and types that came as whole numbers into their decimal digits."""
    for field in TEXTS:
        text = getattr(event, field)
        if isinstance(text, int):
            setattr(event, field, str(text))


class MappedParser:
    """Finds our fields wherever they lie.

    A value is read when it is asked for, so that one that is not taken may be of any kind.
    """

    def __init__(self, choices: Mapping[str, Names], time_unit: str) -> None:
        names = [name for each in choices.values() for name in each]
        roots = {name.partition(ARRAY)[0].split(".")[0] for name in names if is_path(name)}
        record: Tree = {}
        element: Tree = {}
        self._ways = {
            # a name of ours that no mapping asks for may be that of an object here: then the field is absent
            field: tuple(_way(name, record, element) for name in each if name not in roots)
            for field, each in choices.items()
            if field != "context"  # nothing reads it yet, so that any form will do
        }
        array = array_in(names)
        self._array = _plant(record, array.split(".")) if array else None
        self._parse = msgspec.json.Decoder(_struct(record)).decode
        self._open: Callable[[msgspec.Raw], Any] = (
            msgspec.json.Decoder(_struct(element) | _NO_GROUP).decode if element else lambda raw: raw
        )
        self._read = {field: msgspec.json.Decoder(_kind(field, time_unit)).decode for field in self._ways}
        self.fans_out = self._array is not None
        self.types_inside = any(way.inside for way in self._ways["event_type"])

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
            (array,) = {way.name.partition(ARRAY)[0] for way in self._ways["item_id"] if way.inside}
            detail = f"{array} has {len(found)} elements; expected at most {MAX_ELEMENTS}"
            raise Refused("too_many", detail)
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
        return way.shown(element.number) if way else self._all_names(field, element.number)

    def _chosen(self, field: str, parsed: Parsed, element: Element) -> tuple[Way | None, bytes]:
        """Return the first way of a field that leads to something, and the JSON found; of those that lead to
        empty text alone the first."""
        empty: Way | None = None
        for way in self._ways[field]:
            raw = way.find(parsed, element)
            if raw and raw != b'""':
                return way, raw
            if raw is not None and empty is None:
                empty = way
        return empty, b'""'

    def _leads_inside(self, parsed: Parsed) -> bool:
        """Say whether the item is to be looked for in the array: no name before it leads to something."""
        for way in self._ways["item_id"]:
            if way.inside:
                return True
            if way.find(parsed, NO_ELEMENT) not in (None, b'""'):
                return False
        return False

    def _all_names(self, field: str, number: int | None) -> str:
        return "` or `".join(way.shown(number) for way in self._ways[field])

    def _refuse(self, field: str, parsed: Parsed, element: Element) -> NoReturn:
        """Raise `Refused` for a field that no way leads to."""
        if all(way.name == KEY_FIELD for way in self._ways[field]):
            key_text(parsed.key)
        names = self._all_names(field, element.number)
        raise Refused("missing_field", f"Object missing required field `{names}`")


def _kind(field: str, time_unit: str) -> Any:
    """Return the type of a field; the time's follows its unit, all others are text or a whole number."""
    if field == "timestamp_ms":
        return _TIMES.get(time_unit, int | float)
    # nothing reads the context yet, so that its form is no reason to refuse an event
    return {"value": float, "context": Any}.get(field, str | int)


def _reason(field: str, said: str) -> str:
    """Return why a value is refused, from msgspec's words: a number beyond all clocks is no time."""
    if not said.startswith(("Number out", "Integer value out")):
        return "wrong_type"
    return "bad_time" if field == "timestamp_ms" else "not_finite"


def _way(name: str, record: Tree, element: Tree) -> Way:
    """Plant a name in the tree of records or of elements."""
    _, array, after = name.partition(ARRAY)
    if array:
        path = after.removeprefix(".").split(".") if after else []
        return Way(name, (_plant(element, path),), True)
    if name == KEY_FIELD:
        return Way(name, (), False)
    places = [[name], name.split(".")] if is_path(name) else [[name]]  # a field of the very name wins
    return Way(name, tuple(_plant(record, path) for path in places), False)


def _plant(tree: Tree, path: Sequence[str]) -> Steps:
    """Add a path to a tree, and return the attributes that lead along it; see `_struct`."""
    steps = []
    for place, name in enumerate(path, 1):
        below = tree.setdefault(name, None if place == len(path) else {})
        steps.append(f"at_{list(tree).index(name)}")
        if place < len(path):
            assert below is not None, f"{name}: field_choices lets no field lie inside of another"
            tree = below
    return tuple(steps)


def _struct(tree: Tree) -> Any:
    """Return a struct for a tree: an attribute `at_0`, `at_1` ... for each name, in their order."""
    members: list[Any] = []
    for number, below in enumerate(tree.values()):
        if below is None:
            members.append((f"at_{number}", msgspec.Raw, msgspec.Raw()))
        else:
            members.append((f"at_{number}", _struct(below) | _NO_GROUP, None))
    rename = {f"at_{number}": name for number, name in enumerate(tree)}
    return msgspec.defstruct("Group", members, rename=rename, gc=False)


def _at(holder: Any, steps: Steps) -> bytes:
    """Return the JSON at the end of some steps, empty for nothing: what is no object has no attribute."""
    for step in steps:
        holder = getattr(holder, step, None)
    return bytes(holder) if holder.__class__ is msgspec.Raw else b""

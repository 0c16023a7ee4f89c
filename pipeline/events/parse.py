"""The quick parser of events: right about records that hold what is expected.

Whatever differs raises, and is left to `pipeline.events.careful`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeline.events.checks import MAX_ELEMENTS
from pipeline.events.fields import ARRAY, NEEDED
from pipeline.events.ways import Plan, Steps, Way, kind_of, struct_of
from pipeline.settings import EVENT_FIELDS, KEY_FIELD, EventsConfig

Parse = Callable[[str], Any]
TEXTS = ("user_id", "item_id", "event_type", "event_id")  # of those that are used


class Event(msgspec.Struct, gc=False):
    """One event as it was parsed, its time in its unit still. `own_id`: its `event_id` is the element's own,
    not the record's."""

    user_id: Any
    item_id: Any
    event_type: Any
    event_id: Any
    timestamp_ms: Any
    value: float | None
    own_id: bool


class Unexpected(ValueError):
    """A record that the quick parser can't be right about."""


class Track(NamedTuple):
    """A field, and where it is looked for, place by place. `choice`: empty text is as good as none, and
    `needed`: another parser must look when nothing is found."""

    field: str
    places: tuple[Steps, ...]
    choice: bool
    needed: bool

    def follow(self, holder: Any) -> Any:
        """Return what is found first. Raise `Unexpected` where that can't be said."""
        for steps in self.places:
            found = holder
            for step in steps:
                found = getattr(found, step, None)  # what is no object has no such attribute
            if found is not None:
                if self.choice and found == "":
                    break
                return found
        else:
            if not self.needed:
                return None
        raise Unexpected(self.field)


def quick_parser(plan: Plan, settings: EventsConfig) -> Parse:
    """Return a parser of an event's JSON text: its result has an attribute for each of our fields.

    Texts come as `str | int` (see `as_text`), `null` is as good as an absent field, and what is not ours is
    skipped. It raises msgspec's errors and `Unexpected`.
    """
    lenient = bool(settings.ignored() or plan.array)  # what is missing may not be needed, or in an element
    tracks = [
        Track(field, places[1:], len(ways) > 1, field in NEEDED and not lenient)
        for field, ways in plan.ways.items()
        if len(places := _outer(ways)) > 1 and ways[0].name != KEY_FIELD
    ]
    tracked = {track.field for track in tracks}

    def leaf(field: str) -> tuple[Any, ...]:
        if field == ARRAY:
            return _elements_type(plan, settings) | None, None
        kind = kind_of(field, settings.time_unit)
        is_key = plan.ways[field][0].name == KEY_FIELD
        if field in NEEDED and field not in tracked and not lenient and not is_key:
            return (kind,)
        return kind | None, None

    there = {node.attribute for node in plan.record.values()}
    absent = dict.fromkeys(field for field in EVENT_FIELDS if field not in there)
    parse: Parse = msgspec.json.Decoder(struct_of(plan.record, leaf, absent)).decode
    if not tracks:
        return parse

    paths = [
        (track.field, track.places[0]) for track in tracks if len(track.places) == 1 and not track.choice
    ]
    choices = [track for track in tracks if (track.field, track.places[0]) not in paths]

    def parse_and_follow(text: str) -> Any:
        event = parse(text)
        for field, steps in paths:
            if getattr(event, field) is None:  # no top-level field has the very name
                found = event
                for step in steps:
                    found = getattr(found, step, None)  # what is no object has no such attribute
                setattr(event, field, found)
        for track in choices:
            found = getattr(event, track.field)
            if found is None:
                setattr(event, track.field, track.follow(event))
            elif track.choice and found == "":
                raise Unexpected(track.field)
        return event

    return parse_and_follow


def as_text(event: Any) -> None:
    """Turn ids and types that came as whole numbers into their decimal digits."""
    for field in TEXTS:
        text = getattr(event, field)
        if isinstance(text, int):
            setattr(event, field, str(text))


class Fan:
    """Makes the events of a record's array, from what `quick_parser` returns."""

    def __init__(self, plan: Plan) -> None:
        self._array = plan.array
        inner = {field: ways for field, ways in plan.ways.items() if plan.inside(field)}
        self._tracks = [
            Track(field, _inner(ways), len(ways) > 1, len(ways) > 1)
            for field, ways in inner.items()
            if field in Event.__struct_fields__
        ]
        self._own_id = plan.inside("event_id")
        # a name outside of the array that comes before one inside: it may be that no element counts
        self._mixed = any(not ways[0].inside for ways in inner.values())

    def elements(self, event: Any) -> Sequence[Any]:
        """Return the elements of a record's array; none where there is no such array."""
        for step in self._array:
            event = getattr(event, step, None)
        return event if event.__class__ is list else ()

    def events(self, event: Any, elements: Sequence[Any]) -> list[Event]:
        """Return an event for each element. Raise `Unexpected` where that can't be done quickly."""
        if self._mixed or len(elements) > MAX_ELEMENTS:
            raise Unexpected("array")
        made = []
        for element in elements:
            new = Event(
                event.user_id, event.item_id, event.event_type, event.event_id, event.timestamp_ms,
                event.value, self._own_id,
            )  # fmt: skip
            for track in self._tracks:
                setattr(new, track.field, track.follow(element))
            made.append(new)
        return made


def _elements_type(plan: Plan, settings: EventsConfig) -> Any:
    """Return the type of the array: of objects, or of item ids themselves."""
    if not plan.element:
        return list[str | int]
    element = struct_of(plan.element, lambda field: (kind_of(field, settings.time_unit) | None, None))
    return list[element]  # type: ignore[valid-type]


def _outer(ways: Sequence[Way]) -> tuple[Steps, ...]:
    """Return the places outside of the array, in their order, up to the key, which is read elsewhere."""
    places: list[Steps] = []
    for way in ways:
        if way.name == KEY_FIELD:
            break
        places += () if way.inside else way.places
    return tuple(places)


def _inner(ways: Sequence[Way]) -> tuple[Steps, ...]:
    return tuple(steps for way in ways if way.inside for steps in way.places)

"""The quick parser of events, correct for records that hold what is expected.

Any other record raises, and is left to `pipeline.events.careful`.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import msgspec

from pipeline.events.fields import READ_FIELDS, REQUIRED_FIELDS, TEXT_FIELDS
from pipeline.events.plan import FieldPath, Plan, Steps, kind_of, struct_of
from pipeline.settings import KEY_FIELD, EventsConfig

Parse = Callable[[str], Any]


class Unexpected(ValueError):
    """A record that the quick parser cannot read."""


class Search(NamedTuple):
    """A field and its places, in order. `choice`: empty text counts as absent; `required`: finding nothing is
    unexpected.
    """

    field: str
    places: tuple[Steps, ...]
    choice: bool
    required: bool

    def find(self, holder: Any) -> Any:
        """Return the first value found. Raise `Unexpected` where the careful parser must decide."""
        for steps in self.places:
            found = holder
            for step in steps:
                found = getattr(found, step, None)  # what is no object has no such attribute
            if found is not None:
                if self.choice and found == "":
                    break
                return found
        else:
            if not self.required:
                return None
        raise Unexpected(self.field)


def quick_parser(plan: Plan, settings: EventsConfig) -> Parse:
    """Return a parser of an event's JSON text: its result has an attribute for each field that is read.

    Texts come as `str | int` (see `as_text`), `null` counts as absent, and other fields are skipped. It
    raises msgspec's errors and `Unexpected`. The plan has no array.
    """
    optional = bool(settings.ignored())  # an ignored event may lack what others need
    searches = [
        Search(field, places[1:], len(paths) > 1, field in REQUIRED_FIELDS and not optional)
        for field, paths in plan.paths.items()
        if len(places := _places_of(paths)) > 1 and paths[0].name != KEY_FIELD
    ]
    searched = {search.field for search in searches}

    def leaf(field: str) -> tuple[Any, ...]:
        kind = kind_of(field, settings.time_unit)
        is_key = plan.paths[field][0].name == KEY_FIELD
        if field in REQUIRED_FIELDS and field not in searched and not optional and not is_key:
            return (kind,)
        return kind | None, None

    present = {node.attribute for node in plan.record.values()}
    absent = dict.fromkeys(field for field in READ_FIELDS if field not in present)
    parse: Parse = msgspec.json.Decoder(struct_of(plan.record, leaf, absent)).decode
    if not searches:
        return parse

    def parse_and_search(text: str) -> Any:
        event = parse(text)
        for search in searches:
            found = getattr(event, search.field)
            if found is None:  # no top-level field has the first name
                setattr(event, search.field, search.find(event))
            elif search.choice and found == "":
                raise Unexpected(search.field)
        return event

    return parse_and_search


def as_text(event: Any) -> None:
    """Turn ids and types that came as whole numbers into their decimal digits."""
    for field in TEXT_FIELDS:
        text = getattr(event, field)
        if text.__class__ is int:
            setattr(event, field, str(text))


def _places_of(paths: Sequence[FieldPath]) -> tuple[Steps, ...]:
    """Return the places of a field, in order, up to the key, which is read elsewhere."""
    before_key = takewhile(lambda path: path.name != KEY_FIELD, paths)
    return tuple(steps for path in before_key for steps in path.places)

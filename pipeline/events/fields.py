"""The names of our fields in the user's records.

A name with dots is a path into nested objects, though a top-level field of the very name comes first. A step
that ends in `[]` is an array: `items[].sku` is the `sku` of each element of `items`, each an event. `$key` as
a name of `user_id` stands for the record's key. Of several names, the first with a value in the record is
used; null and empty text are none.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.events.checks import RecordError, any_ms, iso_ms
from pipeline.events.problems import ADVICE, unframed
from pipeline.settings import KEY_FIELD, EventsConfig, names_of

# the only fields of `EVENT_FIELDS` that are read; the others may have any form
READ_FIELDS = ("user_id", "item_id", "event_type", "event_id", "timestamp_ms", "value")
TEXT_FIELDS = READ_FIELDS[:4]
REQUIRED_FIELDS = READ_FIELDS[:2]
ARRAY = "[]"  # ends the step of a path that leads through an array
Names = tuple[str, ...]  # of one field, the first choice first
_FAR_S = 1e15  # beyond all clocks


def _seconds_to_ms(seconds: float) -> int:
    return round(max(-_FAR_S, min(seconds, _FAR_S)) * 1000)  # a product that overflows has no integer


TO_MS: dict[str, Callable[[Any], int]] = {"ms": round, "s": _seconds_to_ms, "iso": iso_ms, "auto": any_ms}
_TIMES: dict[str, Any] = {"iso": str, "auto": int | float | str}


def kind_of(field: str, time_unit: str) -> Any:
    """Return the type of a field; the time's follows its unit, all others are text or a whole number."""
    if field == "timestamp_ms":
        return _TIMES.get(time_unit, int | float)
    return float if field == "value" else str | int


def field_choices(settings: EventsConfig) -> dict[str, Names]:
    """Return the names of each field that is read in the user's records, the first choice first.

    Raise `UsageError` when two fields share a name, one lies inside of another, or arrays don't agree.

    >>> field_choices(EventsConfig(fields={"user_id": ["uid", "$key"]}))["user_id"]
    ('uid', '$key')
    """
    choices = {field: names_of(settings.fields.get(field, field)) for field in READ_FIELDS}
    pairs = [(field, name) for field, names in choices.items() for name in names]
    _check_arrays(pairs)
    for (field, name), (other, path) in product(pairs, pairs):
        if name == path and field != other:
            raise UsageError(
                f"events.fields: {field} and {other} are both read from {name!r}; expected a name for each. "
                "Map the one that your records don't have to a name that doesn't occur in them"
            )
        chosen = field in settings.fields or field in REQUIRED_FIELDS
        if chosen and path.startswith((f"{name}.", f"{name}{ARRAY}")):
            raise UsageError(
                f"events.fields: {field} is read from {name!r}, and {other} from {path!r}, inside of it; "
                f"expected a field or an object. Map {field} to another name"
            )
    return choices


def field_names(settings: EventsConfig) -> dict[str, str]:
    """Return the first name of each field that is read. Raise `UsageError` as `field_choices` does.

    >>> field_names(EventsConfig(fields={"item_id": "sku"}))["item_id"]
    'sku'
    """
    return {field: names[0] for field, names in field_choices(settings).items()}


def is_path(name: str) -> bool:
    """Return whether a field's name leads into nested objects, or through an array."""
    return ("." in name and all(name.split("."))) or ARRAY in name


def array_in(names: Sequence[str]) -> str:
    """Return the path of the array that some of the names lead through; "" where none does.

    >>> array_in(["user_id", "ecommerce.items[].id"]), array_in(["ids[]"]), array_in(["items"])
    ('ecommerce.items', 'ids', '')
    """
    return next((name.partition(ARRAY)[0] for name in names if ARRAY in name), "")


def value_at(record: Mapping[str, Any], name: str) -> Any:
    """Return what a parsed record holds under a field's name, or at the end of its path; None for nothing.

    >>> [value_at({"a": {"b": 1}, "a.c": 2}, name) for name in ("a.b", "a.c", "a.d", "b")]
    [1, 2, None, None]
    """
    found: Any = record.get(name)
    if found is not None or not is_path(name):
        return found
    found = record
    for step in name.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def spread(record: Mapping[str, Any], choices: Mapping[str, Names], item: str) -> list[dict[str, Any]]:
    """Return what a parsed record holds under names, one object for each event, as `Decoder` reads it.

    `item` is the field that makes events of an array's elements.

    >>> spread({"u": "", "v": 1, "a": [{"b": 2}, {"b": 3}]}, {"user": ("u", "v"), "item": ("a[].b",)}, "item")
    [{'user': 1, 'item': 2}, {'user': 1, 'item': 3}]
    """
    array = array_in([name for names in choices.values() for name in names])
    elements = value_at(record, array) if array else None
    for name in choices[item]:
        if ARRAY in name and isinstance(elements, list) and elements:
            inside = {**choices, item: tuple(each for each in choices[item] if ARRAY in each)}
            return [
                {field: _first(record, element, names) for field, names in inside.items()}
                for element in elements
            ]
        if ARRAY not in name and value_at(record, name) not in (None, ""):
            break
    return [{field: _first(record, None, names) for field, names in choices.items()}]


def put_at(record: dict[str, Any], name: str, value: object) -> None:
    """Put a value where `value_at` or a path through an array finds it; nothing for the key.

    >>> record = {"user_id": "ann"}
    >>> put_at(record, "order.items[].sku", "tea")
    >>> put_at(record, "order.items[].price", 2.5)
    >>> record
    {'user_id': 'ann', 'order': {'items': [{'sku': 'tea', 'price': 2.5}]}}
    """
    if name == KEY_FIELD:
        return
    *path, last = name.split(".") if is_path(name) else [name]
    place: dict[str, Any] = record
    for step in path:
        if step.endswith(ARRAY):
            (place,) = place.setdefault(step.removesuffix(ARRAY), [{}])
        else:
            place = place.setdefault(step, {})
    if last.endswith(ARRAY):
        place[last.removesuffix(ARRAY)] = [value]
    else:
        place[last] = value


def key_text(key: bytes | None) -> str:
    """Return the id that a record's key holds: its text, or the JSON behind a schema registry's frame.

    Raise `RecordError` without a key, UnicodeDecodeError when it isn't UTF-8.

    >>> key_text(b"ann"), key_text(bytes(5) + b'"ann"'), key_text(bytes(5) + b"42")
    ('ann', 'ann', '42')
    """
    if key is None:
        raise RecordError("missing_field", f"the record has no key; expected user_id there, see {KEY_FIELD}")
    framed = unframed(key)
    if framed is None:
        return key.decode()
    try:
        return str(msgspec.json.decode(framed.payload, type=str | int))
    except msgspec.MsgspecError:
        detail = f"the key is framed ({framed.schema}) and holds no JSON text or whole number; {ADVICE}"
        raise RecordError("schema_framed", detail) from None


def _first(record: Mapping[str, Any], element: Any, names: Names) -> Any:
    """Return the first value that is not null or empty text, else what is found of these."""
    found = None
    for name in names:
        _, array, after = name.partition(ARRAY)
        if not array:
            value = value_at(record, name)
        elif after:
            value = value_at(element, after[1:]) if isinstance(element, dict) else None
        else:
            value = element
        if value is not None and value != "":
            return value
        found = value if found is None else found
    return found


def _check_arrays(pairs: Sequence[tuple[str, str]]) -> None:
    """Raise `UsageError` unless all arrays are one, `item_id` lies in it, and no other path ends or goes on
    there as in an object."""
    inside = [(field, name) for field, name in pairs if ARRAY in name]
    if not inside:
        return
    first, path = inside[0]
    array, where = path.partition(ARRAY)[0], f"events.fields: {first} is read from {path!r}"
    why = "a record becomes an event for each of its elements"
    for field, name in inside:
        before, _, after = name.partition(ARRAY)
        steps = [*before.split("."), *after.removeprefix(".").split(".")][: None if after else -1]
        if not all(steps) or ARRAY in after or (after and after[0] != "."):
            raise UsageError(
                f"events.fields: {field} is read from {name!r}; expected a path through one array, such as "
                f"items{ARRAY}.id or order.items{ARRAY}.product.id"
            )
        if before != array:
            raise UsageError(f"{where}, and {field} from {name!r}; expected one array for all: {why}")
    if all(field != "item_id" for field, _ in inside):
        raise UsageError(
            f"{where}, in an array that item_id is not read from; expected item_id in the same array: {why}"
        )
    for field, name in pairs:
        if name.startswith(f"{array}."):
            raise UsageError(
                f"{where}, of an array, and {field} from {name!r}, of an object; expected one of the two"
            )

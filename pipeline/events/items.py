"""The items topic: which items may be shown. A record changes lists, never what is learned.

Two fields are read, under the names of `items.fields`: the item's id, from the value or else from the key,
and whether the item is available. A record without a value withdraws the item under its key; so does a change
record (Debezium's) of a deleted row. A record with neither field is a dead letter, never an available item.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from pipeline.events.batch import BadItem, CatalogUpdate, ItemChange, Record, TopicPartition
from pipeline.events.checks import MAX_DEPTH, Problem, RecordError, id_problem, shown, too_deep, unreadable
from pipeline.events.fields import is_path, value_at
from pipeline.events.problems import framed_problem, is_object, malformed_problem, unframed
from pipeline.settings import ITEM_FIELDS, KEY_FIELD, ItemsConfig, names_of

Names = Mapping[str, tuple[str, ...]]  # our field -> its names in records, the first choice first
Object = dict[str, Any]

WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off"), False),
}
EXAMPLE = 'expected JSON such as {"item_id": "lamp", "available": false}'
OUR_NAMES = ItemsConfig()
_NUMBER = re.compile(r"-?\d{1,18}(\.\d{1,18})?", re.ASCII)
_parse = msgspec.json.Decoder(dict[str, Any]).decode
_parse_key = msgspec.json.Decoder(Any).decode


class Row(NamedTuple):
    """The objects of a record's value that may hold our fields, the innermost last."""

    places: tuple[Object, ...]
    deleted: bool


def item_names(settings: ItemsConfig) -> dict[str, tuple[str, ...]]:
    """Return the names of each of our fields in the records, the first choice first.

    >>> item_names(ItemsConfig(fields={"item_id": ["sku", "id"]}))
    {'item_id': ('sku', 'id'), 'available': ('available',)}
    """
    return {field: names_of(settings.fields.get(field, field)) for field in ITEM_FIELDS}


def item_news(records: Iterable[Record], settings: ItemsConfig = OUR_NAMES) -> CatalogUpdate:
    """Decode records in order; the last record of an item counts.

    >>> from pipeline.events.batch import TopicPartition
    >>> class Row(msgspec.Struct):
    ...     topic: str; partition: int; offset: int; timestamp: int; key: bytes | None; value: bytes | None
    >>> item_news([Row("items", 0, 7, 0, b"lamp", None)]).changes
    (ItemChange(item_id='lamp', available=False),)
    """
    names = item_names(settings)
    # with the key as the only field, a value without our fields still announces its item
    key_announces = KEY_FIELD in names["item_id"] and "available" not in settings.fields
    changes: dict[str, ItemChange] = {}
    bad: list[BadItem] = []
    offsets: dict[TopicPartition, int] = {}
    for record in records:
        offsets[TopicPartition(record.topic, record.partition)] = record.offset + 1
        read = unreadable(record) or _read(record, names, key_announces)
        if isinstance(read, ItemChange):
            changes.pop(read.item_id, None)
            changes[read.item_id] = read
        else:
            raw = (record.topic, record.partition, record.offset, record.timestamp, record.key, record.value)
            bad.append(BadItem(*raw, *read))
    next_offsets = tuple((*at, offset) for at, offset in offsets.items())
    return CatalogUpdate(tuple(changes.values()), tuple(bad), next_offsets)


def item_row(record: Record) -> Row:
    """Return where a record holds an item's fields, in an envelope (`schema`, `payload`) or a change record
    too. Raise `RecordError` for what is no JSON object.
    """
    parsed = _parsed(record)
    if parsed is None:
        return Row((), True)
    places: tuple[Object, ...] = (parsed,)
    if parsed.keys() == {"schema", "payload"}:
        if parsed["payload"] is None:
            return Row(places, True)
        if isinstance(parsed["payload"], dict):
            places = (*places, parsed["payload"])
    deleted, row = _changed_row(places[-1])
    if row is not None:
        places = (*places, row)
    return Row(places, deleted or places[-1].get("__deleted") in (True, "true"))  # Debezium, flattened


def _read(record: Record, names: Names, key_announces: bool) -> ItemChange | Problem:
    """Return the change of an item that a record states, or what is wrong with it."""
    try:
        row = item_row(record)
        in_value, item_id = _item_id(record, row, names["item_id"])
        problem = id_problem("item_id", item_id)
        if problem or row.deleted:
            return problem or ItemChange(item_id, False)
        found, stated = _lookup(row.places, names["available"])
        if not (found or in_value or key_announces):
            wanted = " or ".join(f"`{name}`" for each in names.values() for name in each)
            has = _keys_of(row.places[-1])
            detail = f"no {wanted} in the record, which has {has}; expected one of them: see items.fields"
            return Problem("missing_field", detail)
        return ItemChange(item_id, _availability(stated, names["available"]) if found else True)
    except RecordError as refused:
        return refused.problem
    except UnicodeDecodeError as error:
        return Problem("not_utf8", f"byte {error.start} is not UTF-8; expected an id and JSON in UTF-8")


def _parsed(record: Record) -> Object | None:
    """Return a value's JSON object without its schema registry's frame; None for no value, empty or null."""
    value = record.value
    if not value or value.strip() == b"null":
        return None
    framed = unframed(value)
    if framed:
        if not is_object(framed.payload):
            raise RecordError(*framed_problem(framed.schema))
        value = framed.payload
    if too_deep(value):
        raise RecordError("too_deep", f"nested deeper than {MAX_DEPTH} levels; {EXAMPLE}")
    try:
        return _parse(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason, detail = malformed_problem(record, error)
        if reason != "schema_framed":
            detail = f"{shown(detail, 200)}; {EXAMPLE}"
        raise RecordError(reason, detail) from None


def _changed_row(record: Object) -> tuple[bool, Object | None]:
    """Return whether a change record deletes its row, and the row; (False, None) for any other record.

    Debezium's `op` is c, u or r with the row `after`, d with the row `before`. Without `op` a record counts
    that has both sides.
    """
    before, after, op = record.get("before"), record.get("after"), record.get("op")
    sides = record.keys() & {"before", "after"}
    are_rows = isinstance(before, dict | None) and isinstance(after, dict | None)
    if not are_rows or len(sides) < (1 if isinstance(op, str) else 2):
        return False, None
    if op not in (None, "c", "u", "r", "d"):
        raise RecordError("wrong_type", f"op = {shown(str(op))}: expected c, u, r or d in a change record")
    deleted = op == "d" or (op is None and after is None)
    return deleted, before if deleted else after


def _item_id(record: Record, row: Row, names: tuple[str, ...]) -> tuple[bool, str]:
    """Return whether the value states the item's id, and the id: from the value, or else from the key."""
    for name in names:
        if name == KEY_FIELD and record.key is not None:
            break
        found, value = _lookup(row.places, (name,))
        if found and value is not None:
            return True, _id_text(value, name)
    return False, _key_id(record.key, names)


def _lookup(places: tuple[Object, ...], names: tuple[str, ...]) -> tuple[bool, Any]:
    """Return whether a field exists under any of its names, and the first value that is not null."""
    found = False
    for name in names:
        for place in places:
            value = value_at(place, name)
            if value is not None:
                return True, value
            found = found or _holds(place, name)
    return found, None


def _holds(place: Object, name: str) -> bool:
    """Return whether a field exists, be it null."""
    if name in place or not is_path(name):
        return name in place
    above, _, last = name.rpartition(".")
    group = value_at(place, above)
    return isinstance(group, dict) and last in group


def _availability(value: Any, names: tuple[str, ...]) -> bool:
    """Return whether a value means available: true, a yes or a number above 0; null means no.

    >>> [_availability(value, ("stock",)) for value in (True, 3, "0", "Yes", None)]
    [True, True, False, True, False]
    """
    match value:
        case None | bool():
            return bool(value)
        case int() | float():
            return value > 0
        case str():
            word = value.strip().lower()
            if word in WORDS:
                return WORDS[word]
            if _NUMBER.fullmatch(word):
                return float(word) > 0
    expected = "expected true or false, yes or no, or a number in stock"
    raise RecordError("wrong_type", f"{' or '.join(names)} is {shown(str(value))}; {expected}")


def _key_id(key: bytes | None, names: tuple[str, ...]) -> str:
    """Return the item's id in a record's key, text or JSON. Raise `RecordError` where there is none."""
    if key is None:
        raise RecordError("missing_field", f"no item_id in the value, and no key; {EXAMPLE}")
    framed = unframed(key)
    try:
        text = (framed.payload if framed else key).decode()
        if not framed and text.lstrip()[:1] not in ('"', "{", "["):  # plain text is an id as it is
            if "\0" in text:
                raise RecordError("wrong_type", f"the key is binary: {shown(text)}; expected text or JSON")
            return text
        found = _parse_key(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if framed:
            raise RecordError(*framed_problem(f"the key, {framed.schema}")) from None
        return key.decode()  # not JSON, such as "[new] lamp"
    if isinstance(found, dict):
        found = _id_in(found, names)
    return _id_text(found, "the key")


def _id_in(key: Object, names: tuple[str, ...]) -> Any:
    """Return the id in a key's JSON object: under one of its names or the last step of a path, or its only
    field.
    """
    if key.keys() == {"schema", "payload"}:
        if not isinstance(key["payload"], dict):
            return key["payload"]
        key = key["payload"]
    _, found = _lookup((key,), (*names, *(name.rpartition(".")[2] for name in names), "item_id"))
    if found is not None:
        return found
    found = key
    while isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if isinstance(found, dict):
        detail = f"no item_id in the key, which has {_keys_of(found)}; map it with items.fields"
        raise RecordError("missing_field", detail)
    return found


def _keys_of(found: Object) -> str:
    return ", ".join(shown(name) for name in list(found)[:12]) or "nothing"


def _id_text(value: Any, where: str) -> str:
    """Return an id as text; a whole number is its digits."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    got = shown(str(value))
    raise RecordError("wrong_type", f"item_id in {where} is {got}; expected text or a whole number")

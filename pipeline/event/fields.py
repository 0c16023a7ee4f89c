"""Our fields in the user's records: under which names they lie, and the parser that finds them there.

A name with dots is a path into nested objects: `payload.user.id` is the `id` of the `user` of the `payload`.
A top-level field that is literally so called wins. `$key` as the name of `user_id` stands for the record's
key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.event.checks import Problem
from pipeline.event.framing import ADVICE, unframed
from pipeline.settings import EVENT_FIELDS, KEY_FIELD, EventsConfig

Parse = Callable[[str], Any]
Steps = tuple[str, ...]  # attributes from the parsed record to a value
Tree = dict[str, "Tree | str"]  # names in records -> what lies below, or our field

NEEDED = ("user_id", "item_id")
TEXTS = ("user_id", "item_id", "event_type", "event_id", "session_id", "ranking_id")
_TIMES: dict[str, Any] = {"iso": str | None, "auto": int | float | str | None}
_KINDS: dict[str, Any] = {  # the time's follows its unit; all others are text or a whole number
    "value": float | None,
    "context": Any,  # nothing reads it yet, so that its form is no reason to refuse an event
}
# what a record may hold where a path looks for an object: then it lacks the field, and is no worse than that
_NO_GROUP = str | int | float | bool | list[Any] | None


class Refused(ValueError):
    """A record that parses but lacks what an event needs; carries the `Problem`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def field_names(settings: EventsConfig) -> dict[str, str]:
    """Return the name of each of our fields in the user's records. Raise `UsageError` when two share a name,
    or one lies inside of another.

    >>> field_names(EventsConfig(fields={"item_id": "sku"}))["item_id"]
    'sku'
    """
    names = {field: settings.fields.get(field, field) for field in EVENT_FIELDS}
    owners: dict[str, str] = {}
    for field, name in names.items():
        owner = owners.setdefault(name, field)
        if owner != field:
            raise UsageError(
                f"events.fields: {owner} and {field} are both read from {name!r}; expected a name for each. "
                f"Map the one that your records don't have to a name that doesn't occur in them"
            )
    for field, name in names.items():
        for other, path in names.items():
            if path.startswith(f"{name}.") and (field in settings.fields or field in NEEDED):
                raise UsageError(
                    f"events.fields: {field} is read from {name!r}, and {other} from {path!r}, inside of it; "
                    f"expected a field or an object. Map {field} to another name"
                )
    return names


def event_parser(names: Mapping[str, str], time_unit: str) -> Parse:
    """Return a parser of an event's JSON text: its result has an attribute for each of our fields.

    Texts come as `str | int` (see `as_text`), `null` is as good as an absent field, and what is not ours is
    skipped. It raises msgspec's errors, and `Refused` when a path doesn't lead to what an event needs.
    """
    kinds = {field: _KINDS.get(field, str | int | None) for field in EVENT_FIELDS}
    kinds["timestamp_ms"] = _TIMES.get(time_unit, int | float | None)
    paths = {field: name.split(".") for field, name in names.items() if is_path(name)}
    roots = {path[0] for path in paths.values()}
    needed: list[Any] = []
    optional: list[Any] = []
    absent: dict[str, Any] = {}  # their own names are those of objects that paths lead into
    for field, name in names.items():
        if name in roots:
            absent[field] = None
        elif field in NEEDED and field not in paths and name != KEY_FIELD:
            needed.append((field, str | int))
        else:
            optional.append((field, kinds[field], None))
    steps: dict[str, Steps] = {}
    groups, rename = _branches(_tree(paths), kinds, (), steps)
    event = msgspec.defstruct(
        "Event", needed + optional + groups, namespace=absent, gc=False,
        rename={**rename, **{field: name for field, name in names.items() if field not in absent}},
    )  # fmt: skip
    parse: Parse = msgspec.json.Decoder(event).decode
    return _following(parse, names, steps) if steps else parse


def is_path(name: str) -> bool:
    """Say whether a field's name leads into nested objects."""
    return "." in name and all(name.split("."))


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


def as_text(event: Any) -> None:
    """Turn ids and types that came as whole numbers into their decimal digits."""
    for field in TEXTS:
        text = getattr(event, field)
        if isinstance(text, int):
            setattr(event, field, str(text))


def key_text(key: bytes | None) -> str:
    """Return the id that a record's key holds: its text, or the JSON behind a schema registry's frame.

    Raise `Refused` without a key, UnicodeDecodeError when it isn't UTF-8.

    >>> key_text(b"ann"), key_text(bytes(5) + b'"ann"'), key_text(bytes(5) + b"42")
    ('ann', 'ann', '42')
    """
    if key is None:
        raise Refused("missing_field", f"the record has no key; expected user_id there, see {KEY_FIELD}")
    framed = unframed(key)
    if framed is None:
        return key.decode()
    try:
        return str(msgspec.json.decode(framed.payload, type=str | int))
    except msgspec.MsgspecError:
        detail = f"the key is framed ({framed.schema}) and holds no JSON text or whole number; {ADVICE}"
        raise Refused("schema_framed", detail) from None


def _tree(paths: Mapping[str, list[str]]) -> Tree:
    tree: Tree = {}
    for field, path in paths.items():
        branch = tree
        for name in path[:-1]:
            below = branch.setdefault(name, {})
            assert isinstance(below, dict), f"{field}: field_names lets no field lie inside of another"
            branch = below
        branch[path[-1]] = field
    return tree


def _branches(
    tree: Tree, kinds: Mapping[str, Any], before: Steps, steps: dict[str, Steps]
) -> tuple[list[Any], dict[str, str]]:
    """Return the members of a struct for a level of the tree, and their names in records; note in `steps` the
    attributes that lead to each field.
    """
    members: list[Any] = []
    rename: dict[str, str] = {}
    for number, (name, below) in enumerate(tree.items()):
        attribute = f"at_{number}"
        here = (*before, attribute)
        if isinstance(below, str):
            steps[below], kind = here, kinds[below]
        else:
            inner, names = _branches(below, kinds, here, steps)
            kind = msgspec.defstruct("Group", inner, rename=names, gc=False) | _NO_GROUP
        members.append((attribute, kind, None))
        rename[attribute] = name
    return members, rename


def _following(parse: Parse, names: Mapping[str, str], steps: Mapping[str, Steps]) -> Parse:
    """Return a parser that fills in what lies at the ends of paths."""
    ways = [(field, way, field in NEEDED) for field, way in steps.items()]
    paths = [names[field] for field in steps]

    def parse_and_follow(text: str) -> Any:
        try:
            event = parse(text)
        except msgspec.ValidationError:
            rest = _without_shadowed(text, paths)
            if rest is None:
                raise
            event = parse(rest)
        for field, way, needed in ways:
            if getattr(event, field) is not None:  # a top-level field has the very name
                continue
            found = event
            for step in way:
                found = getattr(found, step, None)  # what is no object has no such attribute
            if found is None:
                if needed:
                    raise Refused("missing_field", f"Object missing required field `{names[field]}`")
                continue
            setattr(event, field, found)
        return event

    return parse_and_follow


def _without_shadowed(text: str, paths: Sequence[str]) -> str | None:
    """Return the record without what lies at the end of a path whose very name a top-level field has.

    That field wins, so that the other may be of any kind. None where there is no such thing.
    """
    try:
        record = msgspec.json.decode(text)
    except msgspec.DecodeError:  # further on than where the first fault was
        return None
    found = False
    for path in paths if isinstance(record, dict) else ():
        if record.get(path) is None:
            continue
        *above, last = path.split(".")
        group: Any = record
        for step in above:
            group = group.get(step) if isinstance(group, dict) else None
        if isinstance(group, dict):
            found = group.pop(last, None) is not None or found
    return msgspec.json.encode(record).decode() if found else None

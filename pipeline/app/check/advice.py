"""Propose settings under which more of a sample is read; each is tried on the sample with the decoder.

Candidates for a field are the paths in the records that have one of the usual names of the field. A path into
an array is written `items[].item_id`. The side `before` of a change record is never proposed: it holds values
that were replaced or deleted.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.events.problems import payload_of
from pipeline.settings import KEY_FIELD, Settings, names_of

Changes = dict[str, Any]  # setting -> proposed value
Paths = Mapping[str, object]  # path in a record -> its value
Option = tuple[float, str | list[str] | None]  # cost, the lower the likelier; the value, None: unchanged

MAX_OPTIONS = 4  # values that are tried for one setting
MIN_SIMILARITY = 0.75  # of another name to the most usual one, 0 to 1
UNUSUAL_COST = 1_000.0  # of a path without a usual name
UNCHANGED: Option = (0.0, None)
_ITEM_NAMES = """item_id item sku product_id product article_id article content_id asin movie_id movie
    track_id track song_id song video_id video news_id story_id post_id offer_id listing_id variant_id isbn
    gtin ean"""
USUAL_NAMES = {  # of each field, the likeliest first
    "events.fields.user_id": """user_id user uid customer_id customer visitor_id visitor client_id member_id
        account_id profile_id subscriber_id shopper_id person_id user_uuid user_pseudo_id distinct_id
        anonymous_id device_id cookie_id""",
    "events.fields.item_id": _ITEM_NAMES,
    "events.fields.event_type": "event_type event event_name type action activity behavior verb op",
    "items.fields.item_id": f"{_ITEM_NAMES} id code",
    "items.fields.available": """available is_available availability in_stock is_in_stock instock active
        is_active enabled is_enabled published is_published sellable purchasable for_sale visible is_visible
        stock stock_level stock_quantity quantity qty inventory inventory_quantity""",
}


def paths_of(value: bytes | None) -> Paths:
    """Return the paths in a record's JSON object, with or without a registry's frame; {} for other values."""
    try:
        found = json.loads(payload_of(value or b""))
    except (ValueError, RecursionError):
        return {}
    return dict(flatten(found)) if isinstance(found, dict) else {}


def flatten(value: Mapping[str, object], prefix: str = "", depth: int = 4) -> Iterator[tuple[str, object]]:
    """Yield every field that is no object with its path, as `events.fields` names it.

    >>> dict(flatten({"user": {"id": "ann"}, "sku": "i1", "items": [{"id": 1}], "tags": ["a"]}))
    {'user.id': 'ann', 'sku': 'i1', 'items[].id': 1, 'tags[]': 'a'}
    """
    for name, inner in value.items():
        if name == "schema" and "payload" in value:  # Kafka Connect: it describes the payload
            continue
        path = f"{prefix}{name}"
        if isinstance(inner, list) and inner:
            path, inner = f"{path}[]", inner[0]
        if isinstance(inner, dict) and depth:
            yield from flatten(inner, f"{path}.", depth - 1)
        else:
            yield path, inner


def options(
    setting: str, current: str | Sequence[str], sample: Sequence[Paths], keys: Sequence[str] = ()
) -> list[Option]:
    """Return the values to try for a field's name: unchanged, the likeliest others, these as second choice.

    `keys` are the keys of the sample's records, where the field may be read from the key.
    """
    paths = [path for path in all_paths(sample) if "before" not in path.split(".")]
    ranks = {path: rank for path in paths if (rank := _rank(setting, path)) is not None}
    if not ranks and keys:
        equal = [path for path in paths if [str(each.get(path)) for each in sample] == list(keys)]
        ranks = dict.fromkeys(equal or [KEY_FIELD], UNUSUAL_COST)
    present = [name for name in names_of(current) if any(holds(record, name) for record in sample)]
    new = sorted((1 + rank, path) for path, rank in ranks.items() if path not in present)[:MAX_OPTIONS]
    if present:
        also = [(cost + 0.5, [*present, path]) for cost, path in new]
    else:
        also = [(cost + 0.5, [one, two]) for (cost, one), (_, two) in itertools.combinations(new, 2)]
    return [UNCHANGED, *new, *also]


def best(
    settings: Settings,
    per_setting: Mapping[str, Sequence[Option]],
    count: Callable[[Settings], int],
    wanted: int,
) -> Changes:
    """Return the changes under which most is read, the likeliest of equals; {} where none helps.

    `count` returns what is read under settings; the search ends at `wanted`.
    """
    found: Changes = {}
    most = count(settings)
    combinations = itertools.product(*per_setting.values())
    for chosen in sorted(combinations, key=lambda each: sum(cost for cost, _ in each)):
        if most >= wanted:
            break
        pairs = zip(per_setting, chosen, strict=True)
        changes = {setting: value for setting, (_, value) in pairs if value is not None}
        if (read := reads(settings, changes, count)) > most:
            found, most = changes, read
    return found


def reads(settings: Settings, changes: Changes, count: Callable[[Settings], int]) -> int:
    """Return what is read under changes; 0 where they are not valid."""
    try:
        return count(with_changes(settings, changes))
    except UsageError:  # also for two fields under one name
        return 0


def with_changes(settings: Settings, changes: Changes) -> Settings:
    """Return the changed settings. Raise `UsageError` where a value has the wrong type."""
    plain = msgspec.to_builtins(settings)
    for name, value in changes.items():
        *tables, last = name.split(".", 2)
        holder = plain
        for table in tables:
            holder = holder[table]
        holder[last] = value
    try:
        return msgspec.convert(plain, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None


def as_toml(changes: Changes) -> str:
    """Return changes as lines of the configuration.

    >>> as_toml({"events.fields.item_id": "sku", "events.roles.Page Viewed": "ignore"})
    'events.fields.item_id = "sku" and events.roles."Page Viewed" = "ignore"'
    """
    lines = []
    for name, value in changes.items():
        *table, key = name.split(".", 2)
        quoted = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
        lines.append(f"{'.'.join([*table, quoted])} = {json.dumps(value, ensure_ascii=False)}")
    return " and ".join(lines)


def holds(record: Paths, *names: str) -> bool:
    """Return whether a record has a value under any of the names; null and "" are none."""
    return any(record.get(name) not in (None, "") for name in names)


def all_paths(sample: Iterable[Paths]) -> list[str]:
    """Return the paths of all records, each once."""
    return list(dict.fromkeys(itertools.chain(*sample)))


def _rank(setting: str, path: str) -> float | None:
    """Return the place of a path's last steps among the usual names, 0 for the first; None: not usual."""
    *above, last = path.replace("[]", "").split(".")
    parent = above[-1] if above else ""
    named = (last, parent + last, parent.removesuffix("s") + last, "".join([*above, last]))
    forms = [_normal(name) for name in named]
    usual = [_normal(name) for name in USUAL_NAMES[setting].split()]
    places = [usual.index(form) for form in forms if form in usual]
    if places:
        return min(places)
    fuzzy = setting.endswith("_id")  # "unavailable" is similar to "available"
    similar = fuzzy and difflib.get_close_matches(usual[0], forms[:1], 1, MIN_SIMILARITY)
    return float(len(usual)) if similar else None


def _normal(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())

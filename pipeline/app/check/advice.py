"""Settings that let more of a sample be read. Each is tried on the sample with the decoder of the service
before it is proposed.

Candidates for a field come from the names that records use, by a table of usual names. A path into an array
is written `items[].item_id`; it is proposed where the decoder reads it. The side `before` of a change record
is never proposed: it would learn what was deleted.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeline.errors import UsageError
from pipeline.events.checks import shown
from pipeline.events.problems import unframed
from pipeline.settings import KEY_FIELD, Settings

Changes = dict[str, Any]  # a setting's name -> its proposed value
Flat = dict[str, object]  # paths of a record -> what lies there

FIELDS_SHOWN = 12
OPTIONS = 4  # values that are tried for one setting
CLOSE = 0.75  # how like a usual name another must be, 0 to 1
AFTER_ALL = 1_000.0  # the cost of what no name speaks for
_ITEMS = """item_id item sku product_id product article_id article content_id asin movie_id movie
    track_id track song_id song video_id video news_id story_id post_id offer_id listing_id variant_id isbn
    gtin ean"""
USUAL = {  # names of each field, the likeliest first
    "events.fields.user_id": """user_id user uid customer_id customer visitor_id visitor client_id member_id
        account_id profile_id subscriber_id shopper_id person_id user_uuid user_pseudo_id distinct_id
        anonymous_id device_id cookie_id""",
    "events.fields.item_id": _ITEMS,
    "events.fields.event_type": "event_type event event_name type action activity behavior verb op",
    "items.fields.item_id": f"{_ITEMS} id code",
    "items.fields.available": """available is_available availability in_stock is_in_stock instock active
        is_active enabled is_enabled published is_published sellable purchasable for_sale visible is_visible
        stock stock_level stock_quantity quantity qty inventory inventory_quantity""",
}


class Option(NamedTuple):
    """A value for one setting, None for the one that it has; the lower the cost, the likelier it is meant."""

    value: str | list[str] | None
    cost: float


UNCHANGED = Option(None, 0.0)


def as_object(value: bytes | None) -> dict[str, object]:
    """Return a record's JSON object, without its schema registry's frame; else an empty one."""
    framed = unframed(value or b"")
    try:
        found = json.loads(value or b"" if framed is None else framed.payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def flat(value: Mapping[str, object], before: str = "", depth: int = 4) -> Iterator[tuple[str, object]]:
    """Yield every field that is no object with its path, as a mapping names it.

    >>> dict(flat({"user": {"id": "ann"}, "sku": "i1", "items": [{"id": 1}], "tags": ["a"]}))
    {'user.id': 'ann', 'sku': 'i1', 'items[].id': 1, 'tags[]': 'a'}
    """
    for name, inner in value.items():
        path, first = f"{before}{name}", inner[0] if isinstance(inner, list) and inner else None
        if name == "schema" and "payload" in value:  # of Kafka Connect: it describes, and holds no value
            continue
        if isinstance(inner, dict) and depth:
            yield from flat(inner, f"{path}.", depth - 1)
        elif isinstance(first, dict) and depth:
            yield from flat(first, f"{path}[].", depth - 1)
        else:
            yield (path, inner) if first is None else (f"{path}[]", first)


def choices(name: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names under which a field is looked for, the first choice first."""
    return (name,) if isinstance(name, str) else tuple(name)


def options(
    setting: str, current: Sequence[str], flats: Sequence[Flat], keys: Sequence[str] = ()
) -> list[Option]:
    """Return values worth a try for a field's name, the best first, "as it is" at its head.

    `flats` are records; `keys` their keys' texts where the field may be read from the key.
    """
    paths = list(dict.fromkeys(path for each in flats for path in each if _is_id_path(path)))
    ranked = {path: rank for path in paths if (rank := _rank(setting, path)) is not None}
    if not ranked and keys:
        same = [
            path
            for path in paths
            if all(_is_key(each, path, key) for each, key in zip(flats, keys, strict=True))
        ]
        ranked = dict.fromkeys(same, AFTER_ALL) or {KEY_FIELD: AFTER_ALL}
    there = [name for name in current if any(held(each, (name,)) for each in flats)]
    new = [path for path in sorted(ranked, key=lambda path: ranked[path]) if path not in there][: 2 * OPTIONS]
    found = [Option(path, 1 + ranked[path]) for path in new]
    found += [Option([*there, path], 1.5 + ranked[path]) for path in new if there]
    found += [Option([one, two], 1.5 + ranked[one]) for one, two in itertools.combinations(new, 2)]
    covered = {id(option): _coverage(flats, option, bool(keys)) for option in found}
    found.sort(key=lambda option: (-covered[id(option)], option.cost))
    return [UNCHANGED, *found[:OPTIONS]]


def best(
    per_setting: Mapping[str, Sequence[Option]], reads: Callable[[Changes], int], wanted: int
) -> Changes:
    """Return the changes that let most be read, of equals the likeliest; {} where none helps.

    `reads` tries changes and counts; `wanted` is as many as there are.
    """
    combinations = sorted(
        itertools.product(*per_setting.values()), key=lambda some: sum(option.cost for option in some)
    )
    found: Changes = {}
    most = reads({})
    for some in combinations:
        changes = {
            name: option.value
            for name, option in zip(per_setting, some, strict=True)
            if option.value is not None
        }
        if most >= wanted:
            break
        if changes and (count := reads(changes)) > most:
            found, most = changes, count
    return found


def with_changes(settings: Settings, changes: Changes) -> Settings | None:
    """Return the settings with these changes; None where they are no settings."""
    plain = msgspec.to_builtins(settings)
    for name, value in changes.items():
        table, key, *entry = name.split(".", 2)
        if entry:
            plain[table][key][entry[0]] = value
        else:
            plain[table][key] = value
    try:
        return msgspec.convert(plain, Settings)
    except msgspec.ValidationError:
        return None


def tried(settings: Settings, count: Callable[[Settings], int]) -> Callable[[Changes], int]:
    """Return a function that counts what is read under changes; 0 where they are refused."""

    def reads(changes: Changes) -> int:
        changed = with_changes(settings, changes)
        try:
            return 0 if changed is None else count(changed)
        except UsageError:  # two fields under one name
            return 0

    return reads


def in_words(changes: Changes) -> str:
    """Return changes as lines of the configuration.

    >>> in_words({"events.fields.item_id": "sku", "events.roles.Page Viewed": "ignore"})
    'events.fields.item_id = "sku" and events.roles."Page Viewed" = "ignore"'
    """
    lines = []
    for name, value in changes.items():
        *table, key = name.split(".", 2)
        bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
        lines.append(f"{'.'.join([*table, bare])} = {json.dumps(value, ensure_ascii=False)}")
    return " and ".join(lines)


def held(record: Flat, names: Iterable[str]) -> bool:
    """Return whether a record holds a value under any of the names, null and empty text apart."""
    return any(record.get(name) not in (None, "") for name in names)


def names_in(flats: Iterable[Flat]) -> str:
    """Return the paths of records for a message."""
    names = dict.fromkeys(path for each in flats for path in each)
    return ", ".join(shown(name)[1:-1] for name in list(names)[:FIELDS_SHOWN])


def _is_id_path(path: str) -> bool:
    return "before" not in path.split(".")


def _rank(setting: str, path: str) -> float | None:
    """Return how likely a path is meant, 0 first; None for not at all. Its last steps count."""
    *above, last = path.replace("[]", "").split(".")
    forms = [_plain(last), _plain("".join([*above[-1:], last])), _plain("".join([*above, last]))]
    forms += [_plain("".join([above[-1].removesuffix("s"), last]))] if above else []
    usual = [_plain(name) for name in USUAL[setting].split()]
    places = [usual.index(form) for form in forms if form in usual]
    if places:
        return min(places)
    fuzzy = setting.endswith("_id")  # "unavailable" is like "available"
    return float(len(usual)) if fuzzy and difflib.get_close_matches(usual[0], forms[:1], 1, CLOSE) else None


def _is_key(record: Flat, path: str, key: str) -> bool:
    value = record.get(path)
    return isinstance(value, str | int) and str(value) == key


def _coverage(flats: Sequence[Flat], option: Option, has_keys: bool) -> int:
    """Return how many records hold a value under an option's names."""
    names = choices(option.value or ())
    if has_keys and KEY_FIELD in names:
        return len(flats)
    return sum(held(each, names) for each in flats)


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())

"""Propose settings under which more of a sample is read; each is tried on the sample with the decoder.

Candidates for a field are the paths in the records that have one of the usual names of the field. A path into
an array is written `items[].item_id`. The side `before` of a change record is never proposed: it holds values
that were replaced or deleted.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.app.check.findings import numbered
from pipeline.errors import UsageError
from pipeline.events.problems import payload_of
from pipeline.settings import Settings

Paths = Mapping[str, object]  # path in a record -> its value

MAX_OPTIONS = 3  # values that are tried for one setting
_ITEM_NAMES = """item_id item sku product_id product article_id article content_id asin movie_id movie
    track_id track song_id song video_id video news_id story_id post_id offer_id listing_id variant_id isbn
    gtin ean"""
USUAL_NAMES = {  # of each field, the likeliest first
    "events.fields.user_id": """user_id user uid customer_id customer visitor_id visitor client_id member_id
        account_id profile_id subscriber_id shopper_id person_id user_uuid user_pseudo_id distinct_id
        anonymous_id device_id cookie_id""",
    "events.fields.item_id": _ITEM_NAMES,
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


def options(setting: str, current: Sequence[str], sample: Iterable[Paths]) -> list[str]:
    """Return the paths with a usual name of the field, the likeliest first, without the `current` ones."""
    paths = [path for path in all_paths(sample) if "before" not in path.split(".") and path not in current]
    ranks = {path: rank for path in paths if (rank := _rank(setting, path)) is not None}
    return sorted(ranks, key=lambda path: (ranks[path], path))[:MAX_OPTIONS]


def proposal(
    settings: Settings,
    per_setting: Mapping[str, Sequence[str]],
    count: Callable[[Settings], int],
    wanted: int,
) -> str:
    """Return the settings under which most is read, the likeliest of equals, in words; "" where none helps.

    `count` returns what is read under settings; the search ends at `wanted`, the number of records.
    """
    found, most = "", count(settings)
    ranges = (range(len(values) + 1) for values in per_setting.values())  # 0: unchanged
    for places in sorted(itertools.product(*ranges), key=sum):
        if most >= wanted:
            break
        pairs = zip(per_setting.items(), places, strict=True)
        changes = {setting: values[place - 1] for (setting, values), place in pairs if place}
        try:
            read = count(_changed(settings, changes))
        except UsageError:  # two fields under one name
            continue
        if read > most:
            lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in changes.items())
            found, most = f"set {' and '.join(lines)}", read
    return f"{found}: then {most:,} of the newest {numbered(wanted, 'record')} can be read" if found else ""


def _changed(settings: Settings, changes: Mapping[str, str]) -> Settings:
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for name, value in changes.items():
        *tables, last = name.split(".")
        holder = plain
        for table in tables:
            holder = holder[table]
        holder[last] = value
    return msgspec.convert(plain, Settings)


def all_paths(sample: Iterable[Paths]) -> list[str]:
    """Return the paths of all records, each once."""
    return list(dict.fromkeys(itertools.chain(*sample)))


def _rank(setting: str, path: str) -> int | None:
    """Return the place of a path's last steps among the usual names, 0 for the first; None: not usual."""
    *above, last = path.replace("[]", "").split(".")
    parent = above[-1] if above else ""
    named = (last, parent + last, parent.removesuffix("s") + last)
    usual = [_normal(name) for name in USUAL_NAMES[setting].split()]
    return min((usual.index(form) for form in map(_normal, named) if form in usual), default=None)


def _normal(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())

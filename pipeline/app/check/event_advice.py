"""Settings under which more of an events topic's records decode, each tried on a sample of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np

from pipeline.app.check.advice import (
    UNCHANGED,
    Changes,
    Flat,
    Option,
    as_object,
    best,
    choices,
    flat,
    held,
    in_words,
    names_in,
    options,
    tried,
    with_changes,
)
from pipeline.app.check.findings import numbered
from pipeline.events.batch import Polled, RawBatch, Record, Span
from pipeline.events.decode import Decoder
from pipeline.events.fields import key_text
from pipeline.roles import Role
from pipeline.settings import Settings

TRIED_ON = 60  # records of each kind, those that decode and those that don't
MOST_TYPES = 50  # of a field that names event types; ids and texts have more
MENDABLE = ("missing_field", "wrong_type", "empty_id", "bad_time")  # reasons that settings can do away with


def decoded(records: Sequence[Record], settings: Settings, now_ms: int) -> RawBatch:
    """Decode records as the service does."""
    return decoder_of(settings).decode(0, now_ms, polled(records))


def decoder_of(settings: Settings) -> Decoder:
    return Decoder(settings.events, settings.topics, settings.limits.record_bytes)


def polled(records: Sequence[Record]) -> Polled:
    sources = sorted({(record.topic, record.partition) for record in records})
    place = {source: number for number, source in enumerate(sources)}
    spans = tuple(Span(topic, partition, 0, 0) for topic, partition in sources)
    order_R = np.array([place[record.topic, record.partition] for record in records], np.int32)
    return Polled(spans, list(records), order_R)


def rejected(raw: RawBatch) -> set[int]:
    """Return the identities of the records of which something was refused."""
    return {id(reject.record) for reject in raw.rejects}


class Advice(NamedTuple):
    """Settings under which more records decode, in words, and the reasons that they do away with."""

    text: str
    reasons: frozenset[str]


def advice(records: Sequence[Record], raw: RawBatch, settings: Settings) -> Advice:
    """Return settings under which more of the records decode, tried on them.

    `raw` is what the records decode to under `settings`.
    """
    mendable = [reject for reject in raw.rejects if reject.reason in MENDABLE]
    bad = _sample([reject.record for reject in mendable])
    flats = [dict(flat(as_object(record.value))) for record in bad]
    if not any(flats):
        return Advice("", frozenset())
    refused = rejected(raw)
    sample = [*bad, *_sample([record for record in records if id(record) not in refused])]

    def read(some: Sequence[Record], changed: Settings) -> int:
        return len(some) - len(rejected(decoded(some, changed, raw.now_ms)))

    reads = tried(settings, lambda changed: read(sample, changed))
    changes = best(_options(bad, flats, settings), reads, len(sample))
    wider = tried(settings, lambda changed: read(records, changed))
    ignoring = [changes | more for more in _ignored(records, changes, settings, raw.now_ms)]
    changes = max([changes, *ignoring], key=wider)  # the first of equals
    has = f"they have {names_in(flats)}"
    if not changes:
        named = frozenset(("missing_field", "wrong_type", "empty_id"))
        return Advice(f"no setting of events.fields was found under which more decode: {has}", named)
    after = decoded(records, with_changes(settings, changes) or settings, raw.now_ms)
    still = rejected(after)
    count = f"{len(records) - len(still):,} of the newest {numbered(len(records), 'record')}"
    helped = frozenset(reject.reason for reject in mendable if id(reject.record) not in still)
    return Advice(f"set {in_words(changes)}: then {count} decode; {has}", helped)


def _options(bad: Sequence[Record], flats: Sequence[Flat], settings: Settings) -> dict[str, Sequence[Option]]:
    """Return what is tried: names of the two ids, and units of time."""
    keys = [key_said(record.key) for record in bad if record.key is not None]
    found: dict[str, Sequence[Option]] = {
        "events.fields.user_id": options(
            "events.fields.user_id", _names(settings, "user_id"), flats, keys if len(keys) == len(bad) else ()
        ),
        "events.fields.item_id": options("events.fields.item_id", _names(settings, "item_id"), flats),
    }
    units = [Option(unit, 1.0) for unit in ("s", "ms", "auto") if unit != settings.events.time_unit]
    return {**found, "events.time_unit": [UNCHANGED, *units]}


def _ignored(
    records: Sequence[Record], changes: Changes, settings: Settings, now_ms: int
) -> Iterator[Changes]:
    """Yield roles "ignore" for event types of which most records lack an item id, where others have one, by
    the field of today or by others that may name the type."""
    changed = with_changes(settings, changes)
    if "ignore" not in get_args(Role) or changed is None:
        return
    refused = rejected(decoded(records, changed, now_ms))
    flats = [dict(flat(as_object(record.value))) for record in records]
    items, setting = _names(changed, "item_id"), "events.fields.event_type"
    lacking = [
        id(record) in refused and not held(each, items) for record, each in zip(records, flats, strict=True)
    ]
    for option in options(setting, names := _names(changed, "event_type"), flats):
        kinds = [_first_text(each, choices(option.value or names)) for each in flats]
        seen = Counter(kinds)
        without = Counter(kind for kind, lacks in zip(kinds, lacking, strict=True) if lacks)
        most = [kind for kind, count in without.items() if kind and 2 * count > seen[kind]]
        if 0 < len(most) < len(seen) <= MOST_TYPES:
            named = {} if option.value is None else {setting: option.value}
            yield named | {f"events.roles.{kind}": "ignore" for kind in most}


def _names(settings: Settings, field: str) -> tuple[str, ...]:
    return choices(settings.events.fields.get(field, field))


def _first_text(record: Flat, names: Sequence[str]) -> str:
    values = (record.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), "")


def _sample(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: -(-len(records) // TRIED_ON) or 1]


def key_said(key: bytes) -> str:
    """Return a key's text, as the service would read a user id out of it."""
    try:
        return key_text(key)
    except ValueError:  # not UTF-8, or a frame around something else
        return key.decode(errors="replace")

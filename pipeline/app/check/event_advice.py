"""Settings under which more of an events topic's records decode, each tried on a sample of them."""

from collections import Counter
from collections.abc import Sequence
from typing import get_args

import numpy as np

from pipeline.app.check.advice import (
    Changes,
    Option,
    as_object,
    best,
    choices,
    flat,
    in_words,
    names_in,
    options,
    tried,
    with_changes,
)
from pipeline.app.check.findings import numbered
from pipeline.event.batch import Polled, RawBatch, Record, Span
from pipeline.event.decode import Decoder
from pipeline.event.fields import key_text, value_at
from pipeline.roles import Role
from pipeline.settings import Settings

TRIED_ON = 60  # records of each kind, those that decode and those that don't
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


def hint(reason: str, records: Sequence[Record], raw: RawBatch, settings: Settings) -> str:
    """Return settings under which more of the records decode, tried on them; "" where none was found.

    `raw` is what the records decode to under `settings`.
    """
    if reason not in MENDABLE:
        return ""
    refused = rejected(raw)
    bad = _sample([reject.record for reject in raw.rejects if reject.reason == reason])
    sample = [*bad, *_sample([record for record in records if id(record) not in refused])]
    objects = [as_object(record.value) for record in bad]
    if not any(objects):
        return ""

    def read(some: Sequence[Record], changed: Settings) -> int:
        return len(some) - len(rejected(decoded(some, changed, raw.now_ms)))

    reads = tried(settings, lambda changed: read(sample, changed))
    changes = best(_options(bad, settings), reads, len(sample))
    changed = with_changes(settings, changes) or settings
    ignored = _ignored(records, changed, raw.now_ms)
    if ignored and tried(changed, lambda those: read(records, those))(ignored) > read(records, changed):
        changes = changes | ignored
    flats = [dict(flat(each)) for each in objects]
    if not changes:
        if reason == "bad_time":
            return ""
        return f"no setting of events.fields was found under which more decode: they have {names_in(flats)}"
    count = tried(settings, lambda those: read(records, those))(changes)
    return (
        f"set {in_words(changes)}: then {count:,} of the newest {numbered(len(records), 'record')} decode; "
        f"they have {names_in(flats)}"
    )


def _options(bad: Sequence[Record], settings: Settings) -> dict[str, Sequence[Option]]:
    """Return what is tried: names of the two ids, and units of time."""
    fields = settings.events.fields
    flats = [dict(flat(as_object(record.value))) for record in bad]
    keys = [key_said(record.key) for record in bad if record.key is not None]
    names = {
        "events.fields.user_id": keys if len(keys) == len(bad) else [],
        "events.fields.item_id": [],
    }
    found: dict[str, Sequence[Option]] = {
        name: options(name, choices(fields.get(ours := name.rpartition(".")[2], ours)), flats, keyed)
        for name, keyed in names.items()
    }
    units = [Option(None, 0.0)]
    units += [Option(unit, 1.0) for unit in ("s", "ms", "auto") if unit != settings.events.time_unit]
    return {**found, "events.time_unit": units}


def _ignored(records: Sequence[Record], settings: Settings, now_ms: int) -> Changes:
    """Return the role "ignore" for event types of which most records lack an item id, if others have one."""
    if "ignore" not in get_args(Role):
        return {}
    refused = rejected(decoded(records, settings, now_ms))
    fields, lacking, seen = settings.events.fields, Counter[str](), Counter[str]()
    items, kinds = (choices(fields.get(ours, ours)) for ours in ("item_id", "event_type"))
    for record in records:
        found = as_object(record.value)
        kind = next(
            (value for name in kinds if isinstance(value := value_at(found, name), str) and value), ""
        )
        paths = dict(flat(found))
        lacking[kind] += id(record) in refused and not any(paths.get(name) for name in items)
        seen[kind] += 1
    without = [kind for kind in seen if 2 * lacking[kind] > seen[kind]]
    if len(without) == len(seen):
        return {}
    return {f"events.roles.{kind}": "ignore" for kind in without if kind}


def _sample(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: -(-len(records) // TRIED_ON) or 1]


def key_said(key: bytes) -> str:
    """Return a key's text, as the service would read a user id out of it."""
    try:
        return key_text(key)
    except ValueError:  # not UTF-8, or a frame around something else
        return key.decode(errors="replace")

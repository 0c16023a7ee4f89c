"""Check the newest records of a topic: how they decode, and the partitions of their keys."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.app.check import advice
from pipeline.app.check.advice import Paths, all_paths, paths_of
from pipeline.app.check.findings import Finding, by_reason, fault, fields_finding, numbered, ok, quoted, warn
from pipeline.app.text import event_types_text
from pipeline.events.batch import Polled, RawBatch, Record, Reject, Span, TopicPartition
from pipeline.events.checks import RecordError, shown
from pipeline.events.decode import Decoder
from pipeline.events.fields import key_text
from pipeline.events.items import item_names, item_news, item_row
from pipeline.settings import EVENT_FIELDS, KEY_FIELD, Settings, names_of
from pipeline.state.positions import DAY_MS
from producers.kafka.records import key_hash

LISTED_RECORDS = 100  # of which the fields are listed
LISTED_FIELDS = 12
FIXABLE = ("missing_field", "wrong_type", "empty_id", "bad_time")  # reasons that settings may fix
FIX_PRODUCER = "fix the producer, or accept the loss: see deploy/guides/troubleshooting.md"
Keyed = tuple[Record, str]  # a record, and the user of all its events


def check_offsets(
    topic: str, ends: Mapping[int, int], learned: Mapping[TopicPartition, int]
) -> Iterator[Finding]:
    """Yield a fault where the checkpoint has `learned` beyond the ends of the topic: a start would fail."""
    for source, offset in learned.items():
        end = ends.get(source.partition, offset)
        if source.topic == topic and offset > end:
            found = (
                f"the checkpoint resumes from offset {offset} of partition {source.partition}, which ends at "
                f"{end}: the topic was created again"
            )
            fix = "restore the topic, or start over with another checkpoint.path and kafka.group_id"
            yield fault(f"offsets of {topic}", found, fix)
            return


def check_records(
    topic: str, partitions: int, records: Sequence[Record], settings: Settings, now_ms: int
) -> Iterator[Finding]:
    """Yield the findings about a topic's newest records; `now_ms` is the wall clock.

    Raise `UsageError` where two fields are read under one name.
    """
    if not records:
        fix = "publish some (afresh replay FILE), and check again"
        yield warn(f"records of {topic}", "no record yet: nothing to check", fix)
        return
    raw = _decode(records, settings, now_ms)
    yield from _decoding(topic, records, raw, settings)
    paths = all_paths(paths_of(record.value) for record in records[-LISTED_RECORDS:])
    if paths := [path for path in paths if not path.startswith("context.")]:
        yield fields_finding(topic, "events", _names(settings), paths)
    if raw.events.types:
        yield ok(f"event types of {topic}", event_types_text(Counter(raw.events.types), settings.events))
    yield from _ages(topic, raw, settings)
    users = ((record, _decode([record], settings, now_ms).events.user_ids) for record in records)
    yield from _keys(f"keys of {topic}", partitions, [(record, ids[0]) for record, ids in users if ids])


def _names(settings: Settings) -> dict[str, tuple[str, ...]]:
    return {field: names_of(settings.events.fields.get(field, field)) for field in EVENT_FIELDS}


def _decode(records: Sequence[Record], settings: Settings, now_ms: int) -> RawBatch:
    """Decode records of one topic as the service does."""
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    spans = (Span(records[0].topic, 0, 0, 0),) if records else ()
    return decoder.decode(0, now_ms, Polled(spans, list(records), np.zeros(len(records), np.int32)))


def _rejected(raw: RawBatch) -> set[int]:
    """Return the identities of the records that are rejected, in whole or in part."""
    return {id(reject.record) for reject in raw.rejects}


def _decoding(topic: str, records: Sequence[Record], raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield how many records would be dead letters, then each reason with an example."""
    about, total, bad = f"records of {topic}", numbered(len(records), "record"), len(_rejected(raw))
    if not bad:
        ignored = sum(raw.ignored.values())
        yield ok(about, f"the newest {total} decode{f', {ignored} of them are ignored' if ignored else ''}")
        return
    limit, make = settings.limits.max_dead_letter_ratio, warn
    found = f"{bad} of the newest {total} would be dead letters"
    if bad / len(records) > limit:
        make = fault
        found += f", more than limits.max_dead_letter_ratio = {limit:g}"
    yield make(about, found, "fix what is named below, in the producer or in [events]")
    yield from by_reason(make, about, raw.rejects, _fixes(records, raw, settings), FIX_PRODUCER)


def _fixes(records: Sequence[Record], raw: RawBatch, settings: Settings) -> dict[str, str]:
    """Return the fix of each reason that other settings remove, tried on the records, decoded as `raw`."""
    bad = [reject.record for reject in raw.rejects if reject.reason in FIXABLE]
    paths = [paths_of(record.value) for record in bad]
    if not any(paths):
        return {}
    user, item, names = "events.fields.user_id", "events.fields.item_id", _names(settings)
    per_setting = {
        user: advice.options(user, names["user_id"], paths),
        item: advice.options(item, names["item_id"], paths),
        "events.time_unit": ["s", "ms", "auto"],
    }
    if not per_setting[user] and all(record.key is not None for record in bad):
        per_setting[user] = [KEY_FIELD]

    def read(changed: Settings) -> int:
        return len(records) - len(_rejected(_decode(records, changed, raw.now_ms)))

    has = ", ".join(map(quoted, all_paths(paths)[:LISTED_FIELDS]))
    if text := advice.proposal(settings, per_setting, read, len(records)):
        return dict.fromkeys(FIXABLE, f"{text}; they have {has}")
    text = f"no events.fields were found under which more can be read: they have {has}"
    return {reason: text for reason in FIXABLE if reason != "bad_time"}


def _ages(topic: str, raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield a warning where most events are so old that their users or items expire at once."""
    for what, days in (("user", settings.limits.user_ttl_days), ("item", settings.limits.item_ttl_days)):
        old = int((raw.events.time_ms_B < raw.now_ms - days * DAY_MS).sum()) if days else 0
        if 2 * old > len(raw.events):
            found = (
                f"{old} of the newest {numbered(len(raw.events), 'event')} are older than "
                f"limits.{what}_ttl_days = {days:g}: their {what}s expire as soon as they are learned"
            )
            fix = f"for a trial with an old recording, --set limits.{what}_ttl_days=0"
            yield warn(f"times of {topic}", found, fix)


def _keys(about: str, partitions: int, pairs: Sequence[Keyed]) -> Iterator[Finding]:
    """Yield whether all events of a user are in one partition."""
    if pairs and partitions < 2:
        yield ok(about, "one partition: every user's events are together")
    elif pairs:
        problems = [
            *_scattered(about, pairs),
            *_unkeyed(about, pairs),
            *_partitioner(about, partitions, pairs),
        ]
        fine = f"the keys of the newest {numbered(len(pairs), 'event')} are user ids, partitioned by murmur2"
        yield from problems or [ok(about, fine)]


def _scattered(about: str, pairs: Sequence[Keyed]) -> Iterator[Finding]:
    places: dict[str, set[int]] = defaultdict(set)
    for record, user in pairs:
        places[user].add(record.partition)
    several = {user: sorted(found) for user, found in places.items() if len(found) > 1}
    for user, partitions in list(several.items())[:1]:
        found = (
            f"{numbered(len(several), 'user')} of {len(places):,} in more than one partition, such as "
            f"{shown(user)} in {', '.join(map(str, partitions))}: several workers would each know a part"
        )
        yield fault(about, found, "key every event by user id, with the same partitioner in all producers")


def _unkeyed(about: str, pairs: Sequence[Keyed]) -> Iterator[Finding]:
    """Yield warnings about keys that are missing, or that are not the user id."""
    total = numbered(len(pairs), "event")
    missing = [record for record, _ in pairs if record.key is None]
    if missing:
        place = f"partition {missing[0].partition} offset {missing[0].offset}"
        found = f"{len(missing)} of {total} without a key, such as {place}: they may be in any partition"
        yield warn(about, found, "let the producers set the user id as key")
    keyed = [(_key_text(record.key), user) for record, user in pairs if record.key is not None]
    other = [(key, user) for key, user in keyed if key != user]
    if other:
        example = f"key {shown(other[0][0])} of user {shown(other[0][1])}"
        found = f"{len(other)} of {total} with a key that is not the user id, such as {example}"
        fix = "key events by user id; another key works only where it keeps each user in one partition"
        yield warn(about, found, fix)


def _partitioner(about: str, partitions: int, pairs: Sequence[Keyed]) -> Iterator[Finding]:
    """Compare each key's partition with murmur2, the default of Java's client, and crc32, librdkafka's."""
    keys = [(record.key, record.partition) for record, _ in pairs if record.key is not None]
    misplaced = [(key, partition) for key, partition in keys if key_hash(key) % partitions != partition]
    if misplaced and all(zlib.crc32(key) % partitions == partition for key, partition in keys):
        found = "partitioned by crc32 (librdkafka's default), not by murmur2 (Java's default)"
        fix = "use one in all producers: partitioner=murmur2_random in librdkafka, where others are Java"
        yield warn(about, found, fix)
    elif misplaced:
        key, partition = misplaced[0]
        found = (
            f"{len(misplaced)} of {numbered(len(keys), 'key')} are not in the partition of murmur2, such as "
            f"{shown(key.decode(errors='replace'))} in partition {partition}, expected "
            f"{key_hash(key) % partitions}"
        )
        fix = "use murmur2 in all producers; records from before a change of the partitions are in others too"
        yield warn(about, found, fix)


def _key_text(key: bytes) -> str:
    """Return a key's text as the service would read a user id from it."""
    try:
        return key_text(key)
    except ValueError:  # not UTF-8, or another value in a frame
        return key.decode(errors="replace")


def check_items(topic: str, records: Sequence[Record], settings: Settings) -> Iterator[Finding]:
    """Yield the findings about the newest records of the items topic."""
    about, total = f"records of {topic}", numbered(len(records), "record")
    if not records:
        yield ok(about, "no record yet: every item is available")
        return
    update = item_news(records, settings.items)
    withdrawn = sum(not change.available for change in update.changes)
    items, bad = f"{numbered(len(update.changes), 'item')}, {withdrawn:,} withdrawn", update.bad
    sample = [each for record in records if (each := _item_paths(record))]
    if not bad:
        yield ok(about, f"the newest {total} are read: {items}")
    else:
        found = f"{len(bad):,} of the newest {total} can't be read and change nothing; {items}"
        yield warn(about, found, "fix what is named below, in the producer or in [items]")
        rejects = [Reject(each, each.reason, each.detail) for each in bad]
        yield from by_reason(warn, about, rejects, _items_fixes(records, sample, settings), FIX_PRODUCER)
    if paths := all_paths(sample):
        yield fields_finding(topic, "items", item_names(settings.items), paths)


def _items_fixes(records: Sequence[Record], sample: Sequence[Paths], settings: Settings) -> dict[str, str]:
    """Return the fix of each reason that other field names remove, tried on the records."""
    fields = {f"items.fields.{field}": names for field, names in item_names(settings.items).items()}
    per_setting = {setting: advice.options(setting, names, sample) for setting, names in fields.items()}

    def read(changed: Settings) -> int:
        return len(records) - len(item_news(records, changed.items).bad)

    text = advice.proposal(settings, per_setting, read, len(records))
    return dict.fromkeys(("missing_field", "wrong_type"), text) if text else {}


def _item_paths(record: Record) -> Paths:
    """Return the paths of the object that holds an item's fields; {} for none."""
    try:
        places = item_row(record).places
    except RecordError:
        return {}
    return dict(advice.flatten(places[-1])) if places else {}

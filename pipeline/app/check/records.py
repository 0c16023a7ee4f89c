"""Judge a sample of an events topic's newest records: do they decode, do their keys lie where they should."""

import difflib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.app.check.findings import Finding, fault, numbered, ok, warn
from pipeline.app.event_types import told_types
from pipeline.event.batch import Polled, RawBatch, Record, Reject, Span, TopicPartition
from pipeline.event.checks import any_ms, plausible, shown
from pipeline.event.decode import Decoder
from pipeline.event.fields import NEEDED, field_names, key_text
from pipeline.event.framing import unframed
from pipeline.settings import KEY_FIELD, Settings
from producers.outgoing import key_hash

FIELDS_SHOWN = 12
LOOKED_AT = 100  # records whose fields are listed
DAY_MS = 86_400_000


def judge_places(
    topic: str, ends: Mapping[int, int], learned: Mapping[TopicPartition, int]
) -> Iterator[Finding]:
    """Yield a fault where the checkpoint has `learned` more of the topic than there is: its partitions end
    at `ends`. A start would end with it."""
    for source, offset in learned.items():
        if source.topic == topic and offset > ends.get(source.partition, offset):
            yield fault(
                f"offsets of {topic}",
                f"the checkpoint goes on from offset {offset} of partition {source.partition}, which ends at "
                f"{ends[source.partition]}: the topic was made anew",
                "restore the topic, or set another checkpoint.path and kafka.group_id to start anew",
            )
            return


def judge_records(
    topic: str, partitions: int, records: Sequence[Record], settings: Settings, now_ms: int
) -> list[Finding]:
    """Return the findings about a topic's newest records. `now_ms` is the wall clock that times are held
    against. Raise `UsageError` where the field names contradict each other."""
    if not records:
        text = "no record yet, so nothing could be looked at"
        return [warn(f"records of {topic}", text, "publish some (afresh replay FILE), and check again")]
    raw = decoded(records, settings, now_ms)
    return [
        *_decoding(topic, len(records), raw, settings),
        *_fields(topic, records, settings),
        *_types(topic, raw, settings),
        *_ages(topic, raw, settings),
        *_keys(topic, partitions, records, raw),
    ]


def decoded(records: Sequence[Record], settings: Settings, now_ms: int) -> RawBatch:
    """Decode records as the service does."""
    sources = sorted({(record.topic, record.partition) for record in records})
    place = {source: number for number, source in enumerate(sources)}
    spans = tuple(Span(topic, partition, 0, 0) for topic, partition in sources)
    order_R = np.array([place[record.topic, record.partition] for record in records], np.int32)
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    return decoder.decode(0, now_ms, Polled(spans, list(records), order_R))


def _decoding(topic: str, total: int, raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield how many of the records would be dead letters, by reason with an example."""
    about, bad = f"records of {topic}", len(raw.rejects)
    if not bad:
        ignored = sum(raw.ignored.values())
        aside = f", {ignored} of them to be ignored" if ignored else ""
        yield ok(about, f"the newest {numbered(total, 'record')} decode{aside}")
        return
    by_reason: dict[str, list[Reject]] = defaultdict(list)
    for reject in raw.rejects:
        by_reason[reject.reason].append(reject)
    stops = bad / total > settings.limits.dead_letter_ratio
    make = fault if stops else warn
    limit = f", more than limits.dead_letter_ratio = {settings.limits.dead_letter_ratio:g}" if stops else ""
    yield make(
        about,
        f"{bad} of the newest {numbered(total, 'record')} would be dead letters{limit}",
        "mend what is named below, in the producer or in [events]",
    )
    for reason, rejects in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        first = rejects[0]
        where = f"{first.record.topic}-{first.record.partition} offset {first.record.offset}"
        yield make(
            about,
            f"{reason}: {len(rejects)}, such as {where}: {first.detail}",
            hint(first, settings, raw.now_ms)
            or "mend the producer, or let them pass: see deploy/guides/troubleshooting.md",
        )


def hint(reject: Reject, settings: Settings, now_ms: int) -> str:
    """Return which setting may make a record readable; "" where none is known."""
    names = field_names(settings.events)
    fields = dict(_flat(_object(reject.record.value)))
    time = fields.get(names["timestamp_ms"])
    if reject.reason == "missing_field":
        return _mapping(fields, names, reject.record.key)
    if reject.reason == "bad_time" and isinstance(time, int | float):
        told = f"{names['timestamp_ms']} = {time}"
        if plausible(time * 1000, now_ms):
            return f'set events.time_unit = "s": {told} looks like seconds'
        if plausible(time / 1000, now_ms):
            return f'set events.time_unit = "ms" or "auto": {told} looks like milliseconds or finer'
    if reject.reason in ("wrong_type", "bad_time") and isinstance(time, str):
        try:
            any_ms(time)
        except ValueError:
            return ""
        return f'set events.time_unit = "auto": {names["timestamp_ms"]} = {shown(time)} is text'
    return ""


def _mapping(fields: dict[str, object], names: dict[str, str], key: bytes | None) -> str:
    """Name the fields that a record has, and which may be the ids."""
    plain = {_plain(name): name for name in fields} | {_plain(name.split(".")[-1]): name for name in fields}
    guesses = []
    for ours in NEEDED:
        if names[ours] in fields or names[ours] == KEY_FIELD:
            continue
        near = difflib.get_close_matches(_plain(ours), plain, 1, 0.6)
        guess = plain[near[0]] if near else _keyed(fields, key) if key and ours == "user_id" else ""
        guesses.append(f"events.fields.{ours} = {json.dumps(guess, ensure_ascii=False) if guess else '...'}")
    if not fields or not guesses:
        return ""
    listed = ", ".join(shown(name) for name in list(fields)[:FIELDS_SHOWN])
    return f"set {' and '.join(guesses)}: the record has {listed}"


def _keyed(fields: dict[str, object], key: bytes) -> str:
    """Return the field that says what the record's key says, as a user's id does; else the key."""
    texts = {name: str(value).encode() for name, value in fields.items() if isinstance(value, str | int)}
    return next((name for name, text in texts.items() if text == key), KEY_FIELD)


def _fields(topic: str, records: Sequence[Record], settings: Settings) -> Iterator[Finding]:
    """Yield which fields are read, and which of the records' and of ours go without the other."""
    there: dict[str, None] = {}
    for record in records[-LOOKED_AT:]:
        there |= dict.fromkeys(name for name, _ in _flat(_object(record.value)))
    names = field_names(settings.events)
    read = [name for name in names.values() if name in there]
    absent = [ours for ours, name in names.items() if name not in there and name != KEY_FIELD]
    unread = [shown(name)[1:-1] for name in there if name not in read and not name.startswith("context.")]
    if there:
        parts = [f"read: {', '.join(shown(name)[1:-1] for name in read) or 'none'}"]
        parts += [f"not there: {', '.join(absent)}"] * bool(absent)
        parts += [f"not read: {', '.join(unread[:FIELDS_SHOWN])} (events.fields can name them)"] * bool(
            unread
        )
        yield ok(f"fields of {topic}", "; ".join(parts))


def _types(topic: str, raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield which types of events there are, and what each is taken for."""
    types = Counter(raw.events.types)
    if not types:
        return
    yield ok(f"event types of {topic}", told_types(types, settings.events))


def _ages(topic: str, raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield whether most events are so old that what they tell of is forgotten as soon as it is learned."""
    for what, days in (("user", settings.limits.user_ttl_days), ("item", settings.limits.item_ttl_days)):
        old = int((raw.events.time_ms_B < raw.now_ms - days * DAY_MS).sum()) if days else 0
        if 2 * old > len(raw.events):
            yield warn(
                f"times of {topic}",
                f"{old} of the newest {numbered(len(raw.events), 'event')} are older than "
                f"limits.{what}_ttl_days = {days:g}: their {what}s are forgotten as soon as they are learned",
                f"for a trial with an old recording, --set limits.{what}_ttl_days=0",
            )


def _keys(topic: str, partitions: int, records: Sequence[Record], raw: RawBatch) -> Iterator[Finding]:
    """Yield whether a user's events stay together."""
    about = f"keys of {topic}"
    good = raw.records_of(records)
    pairs = list(zip(good, raw.events.user_ids, strict=True))
    if not pairs:
        return
    if partitions < 2:
        yield ok(about, "one partition: every user's events are together")
        return
    trouble = [*_scattered(about, pairs), *_keyless(about, pairs), *_foreign(about, pairs)]
    trouble += _partitioner(about, partitions, [record for record in good if record.key is not None])
    yield from trouble
    if not trouble:
        yield ok(
            about, f"the keys of the newest {numbered(len(pairs), 'event')} are user ids, placed by murmur2"
        )


def _scattered(about: str, pairs: Sequence[tuple[Record, str]]) -> Iterator[Finding]:
    places: dict[str, set[int]] = defaultdict(set)
    for record, user in pairs:
        places[user].add(record.partition)
    several = {user: sorted(found) for user, found in places.items() if len(found) > 1}
    if several:
        user, found = next(iter(several.items()))
        yield fault(
            about,
            f"{numbered(len(several), 'user')} of {len(places):,} in more than one partition, such as "
            f"{shown(user)} in {', '.join(map(str, found))}: several workers would each know a part of them",
            "key every event by its user id, with the same partitioner in all producers",
        )


def _keyless(about: str, pairs: Sequence[tuple[Record, str]]) -> Iterator[Finding]:
    missing = [record for record, _ in pairs if record.key is None]
    if missing:
        where = f"partition {missing[0].partition} offset {missing[0].offset}"
        yield warn(
            about,
            f"{len(missing)} of {numbered(len(pairs), 'event')} without a key, such as {where}: "
            "a user's events come in any partition",
            "let the producers set the user id as key",
        )


def _foreign(about: str, pairs: Sequence[tuple[Record, str]]) -> Iterator[Finding]:
    other = [(said, user) for r, user in pairs if r.key is not None and (said := _said(r.key)) != user]
    if other:
        said, user = other[0]
        yield warn(
            about,
            f"{len(other)} of {numbered(len(pairs), 'event')} with a key that is not the user id, such as "
            f"key {shown(said)} of user {shown(user)}",
            "key events by user id; another key will do only where it keeps each user in one partition",
        )


def _said(key: bytes) -> str:
    """Return a key's text, as the service would read a user id out of it."""
    try:
        return key_text(key)
    except ValueError:  # not UTF-8, or a frame around something else
        return key.decode(errors="replace")


def _partitioner(about: str, partitions: int, keyed: Sequence[Record]) -> Iterator[Finding]:
    """Hold each key's partition against murmur2, the default of Java's client, and crc32, librdkafka's."""
    keys = [(record.key, record.partition) for record in keyed if record.key is not None]
    elsewhere = [(key, found) for key, found in keys if key_hash(key) % partitions != found]
    if not elsewhere:
        return
    if all(zlib.crc32(key) % partitions == found for key, found in keys):
        yield warn(
            about,
            "placed by crc32 (librdkafka's default), not by murmur2 (Java's default)",
            "let all producers do the same: partitioner=murmur2_random in librdkafka, where others are Java",
        )
        return
    key, found = elsewhere[0]
    yield warn(
        about,
        f"{len(elsewhere)} of {numbered(len(keys), 'key')} lie where murmur2 doesn't put them, such as "
        f"{shown(key.decode(errors='replace'))} in partition {found}, expected {key_hash(key) % partitions}",
        "give all producers one partitioner (murmur2); records from before a change of the number of "
        "partitions lie elsewhere too",
    )


def _object(value: bytes | None) -> dict[str, object]:
    """Return a record's JSON object, without its schema registry's frame; else an empty one."""
    framed = unframed(value or b"")
    try:
        found = json.loads(value or b"" if framed is None else framed.payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(value: dict[str, object], before: str = "", depth: int = 4) -> Iterator[tuple[str, object]]:
    """Yield every field that is no object with its path, as `events.fields` names it.

    >>> dict(_flat({"user": {"id": "ann"}, "sku": "i1"}))
    {'user.id': 'ann', 'sku': 'i1'}
    """
    for name, inner in value.items():
        if isinstance(inner, dict) and depth:
            yield from _flat(inner, f"{before}{name}.", depth - 1)
        else:
            yield f"{before}{name}", inner


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())

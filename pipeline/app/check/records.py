"""Judge a sample of an events topic's newest records: do they decode, do their keys lie where they should."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pipeline.app.check.advice import (
    FIELDS_SHOWN,
    as_object,
    choices,
    flat,
)
from pipeline.app.check.event_advice import advice, decoded, decoder_of, key_said, polled, rejected
from pipeline.app.check.findings import Finding, fault, numbered, ok, warn
from pipeline.app.event_types import told_types
from pipeline.events.batch import RawBatch, Record, Reject, TopicPartition
from pipeline.events.checks import shown
from pipeline.settings import EVENT_FIELDS, KEY_FIELD, Settings
from producers.kafka.records import key_hash

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
        *_decoding(topic, records, raw, settings),
        *_fields(topic, records, settings),
        *_types(topic, raw, settings),
        *_ages(topic, raw, settings),
        *_keys(topic, partitions, _users(records, settings, now_ms)),
    ]


def _decoding(topic: str, records: Sequence[Record], raw: RawBatch, settings: Settings) -> Iterator[Finding]:
    """Yield how many records would be dead letters, by reason with an example."""
    about, total = f"records of {topic}", len(records)
    by_reason: dict[str, list[Reject]] = defaultdict(list)
    for reject in raw.rejects:
        by_reason[reject.reason].append(reject)
    bad = len(rejected(raw))
    if not bad:
        ignored = sum(raw.ignored.values())
        aside = f", {ignored} of them to be ignored" if ignored else ""
        yield ok(about, f"the newest {numbered(total, 'record')} decode{aside}")
        return
    stops = bad / total > settings.limits.max_dead_letter_ratio
    make = fault if stops else warn
    limit = (
        f", more than limits.max_dead_letter_ratio = {settings.limits.max_dead_letter_ratio:g}"
        if stops
        else ""
    )
    yield make(
        about,
        f"{bad} of the newest {numbered(total, 'record')} would be dead letters{limit}",
        "mend what is named below, in the producer or in [events]",
    )
    mend = advice(records, raw, settings)
    to_do = "mend the producer, or let them pass: see deploy/guides/troubleshooting.md"
    for reason, rejects in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        first = rejects[0]
        where = f"{first.record.topic}-{first.record.partition} offset {first.record.offset}"
        yield make(
            about,
            f"{reason}: {len(rejects)}, such as {where}: {first.detail}",
            mend.text if reason in mend.reasons else to_do,
        )


def _fields(topic: str, records: Sequence[Record], settings: Settings) -> Iterator[Finding]:
    """Yield which fields are read, and which of the records' and of ours go without the other."""
    there: dict[str, None] = {}
    for record in records[-LOOKED_AT:]:
        there |= dict.fromkeys(name for name, _ in flat(as_object(record.value)))
    names = {ours: choices(settings.events.fields.get(ours, ours)) for ours in EVENT_FIELDS}
    read = [name for several in names.values() for name in several if name in there]
    absent = [ours for ours, several in names.items() if not {*several} & {*there, KEY_FIELD}]
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


def _users(records: Sequence[Record], settings: Settings, now_ms: int) -> list[tuple[Record, str]]:
    """Return the records that hold an event, each with its user: of one record all events are of one user."""
    decoder = decoder_of(settings)
    alone = ((record, decoder.decode(0, now_ms, polled([record])).events.user_ids) for record in records)
    return [(record, users[0]) for record, users in alone if users]


def _keys(topic: str, partitions: int, pairs: Sequence[tuple[Record, str]]) -> Iterator[Finding]:
    """Yield whether a user's events stay together."""
    about = f"keys of {topic}"
    if not pairs:
        return
    if partitions < 2:
        yield ok(about, "one partition: every user's events are together")
        return
    trouble = [*_scattered(about, pairs), *_keyless(about, pairs), *_foreign(about, pairs)]
    trouble += _partitioner(about, partitions, [record for record, _ in pairs if record.key is not None])
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
    other = [(said, user) for r, user in pairs if r.key is not None and (said := key_said(r.key)) != user]
    if other:
        said, user = other[0]
        yield warn(
            about,
            f"{len(other)} of {numbered(len(pairs), 'event')} with a key that is not the user id, such as "
            f"key {shown(said)} of user {shown(user)}",
            "key events by user id; another key will do only where it keeps each user in one partition",
        )


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

"""Judge a sample of the items topic's newest records: which items they withdraw, and which can't be read."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.app.check.advice import (
    FIELDS_SHOWN,
    UNCHANGED,
    Changes,
    Flat,
    best,
    flat,
    in_words,
    options,
    tried,
    with_changes,
)
from pipeline.app.check.findings import Finding, numbered, ok, warn
from pipeline.events.batch import BadItem, CatalogUpdate, Record
from pipeline.events.checks import RecordError, shown
from pipeline.events.items import item_names, item_news, item_row
from pipeline.settings import KEY_FIELD, Settings


def judge_items(topic: str, records: Sequence[Record], settings: Settings) -> list[Finding]:
    """Return the findings about the newest records of the items topic."""
    about = f"records of {topic}"
    if not records:
        return [ok(about, "no record yet: every item is available")]
    news = item_news(records, settings.items)
    flats = [dict(flat(place)) for record in records if (place := _row(record))]
    changes = advice(records, flats, settings)
    return [
        *_reading(about, records, news, changes, settings),
        *_fields(topic, records, flats, changes, settings),
    ]


def advice(records: Sequence[Record], flats: Sequence[Flat], settings: Settings) -> Changes:
    """Return the mapping under which most of the records can be read, tried on them; {} for the one there is.

    Of mappings that read as many, the one that finds more of our fields is taken.
    """

    def read(changed: Settings) -> int:
        return len(records) - len(item_news(records, changed.items).bad)

    found = {
        f"items.fields.{field}": options(f"items.fields.{field}", names, flats)
        for field, names in item_names(settings.items).items()
    }
    reads = tried(settings, read)
    changes = best(found, reads, len(records))
    for field, names in reversed(item_names(settings.items).items()):
        setting, least = f"items.fields.{field}", reads(changes)
        if setting in changes or _held(flats, names) or (field == "item_id" and not changes):
            continue  # records that are read without it have the id as their key
        wider = ({**changes, setting: option.value} for option in found[setting] if option is not UNCHANGED)
        changes = next((each for each in wider if reads(each) >= least), changes)
    return changes


def _reading(
    about: str, records: Sequence[Record], news: CatalogUpdate, changes: Changes, settings: Settings
) -> Iterator[Finding]:
    """Yield how many records can be read and what they say of items, then the reasons of the others."""
    bad, total = len(news.bad), numbered(len(records), "record")
    withdrawn = sum(not change.available for change in news.changes)
    says = f"{numbered(len(news.changes), 'item')}, {withdrawn:,} withdrawn"
    if not bad:
        yield ok(about, f"the newest {total} are read: {says}")
        return
    below = "mend what is named below, in the producer or in [items]"
    yield warn(about, f"{bad:,} of the newest {total} can't be read and change nothing; {says}", below)
    to_do = "mend the producer: see deploy/guides/troubleshooting.md"
    mapping = _set(records, changes, settings) if changes else ""
    by_reason: dict[str, BadItem] = {}
    counts: Counter[str] = Counter()
    for item in news.bad:
        by_reason.setdefault(item.reason, item)
        counts[item.reason] += 1
    for reason, number in counts.most_common():
        first = by_reason[reason]
        where = f"{first.topic}-{first.partition} offset {first.offset}"
        mended = mapping if reason in ("missing_field", "wrong_type") else ""
        yield warn(about, f"{reason}: {number}, such as {where}: {first.detail}", mended or to_do)


def _fields(
    topic: str, records: Sequence[Record], flats: Sequence[Flat], changes: Changes, settings: Settings
) -> Iterator[Finding]:
    """Yield which fields are read, and whether any record says that an item is available or not."""
    names = item_names(settings.items)
    there = dict.fromkeys(path for each in flats for path in each)
    if not there:
        return
    read = [name for several in names.values() for name in several if name in there]
    absent = [field for field, several in names.items() if not {*several} & {*there, KEY_FIELD}]
    unread = [shown(name)[1:-1] for name in there if name not in read]
    parts = [f"read: {', '.join(shown(name)[1:-1] for name in read) or 'none'}"]
    parts += [f"not there: {', '.join(absent)}"] * bool(absent)
    parts += [f"not read: {', '.join(unread[:FIELDS_SHOWN])} (items.fields can name them)"] * bool(unread)
    yield ok(f"fields of {topic}", "; ".join(parts))
    if "items.fields.available" in changes and not item_news(records, settings.items).bad:
        yield warn(
            f"fields of {topic}",
            "no record says whether its item is available, so every record with a value counts as available",
            _set(records, changes, settings),
        )


def _set(records: Sequence[Record], changes: Changes, settings: Settings) -> str:
    """Return changes in words, and what can be read under them."""
    news = item_news(records, (with_changes(settings, changes) or settings).items)
    withdrawn = sum(not change.available for change in news.changes)
    read = f"{len(records) - len(news.bad):,} of the newest {numbered(len(records), 'record')}"
    return f"set {in_words(changes)}: then {read} can be read, {numbered(withdrawn, 'item')} withdrawn"


def _row(record: Record) -> Flat:
    """Return the object of a record that holds an item's fields; {} for none."""
    try:
        places = item_row(record).places
    except RecordError:
        return {}
    return dict(places[-1]) if places else {}


def _held(flats: Sequence[Flat], names: Sequence[str]) -> bool:
    return any(name in each for each in flats for name in names)

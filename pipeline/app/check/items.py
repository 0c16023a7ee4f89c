"""Check a sample of the items topic's newest records: which items they withdraw, and which can't be read."""

from collections.abc import Iterator, Sequence

from pipeline.app.check import advice
from pipeline.app.check.advice import Paths, all_paths
from pipeline.app.check.findings import Finding, by_reason, fields_finding, numbered, ok, warn
from pipeline.events.batch import CatalogUpdate, Record, Reject
from pipeline.events.checks import RecordError
from pipeline.events.items import item_names, item_news, item_row
from pipeline.settings import Settings

FIX_PRODUCER = "fix the producer: see deploy/guides/troubleshooting.md"


def check_items(topic: str, records: Sequence[Record], settings: Settings) -> Iterator[Finding]:
    """Yield the findings about the newest records of the items topic."""
    about, total = f"records of {topic}", numbered(len(records), "record")
    if not records:
        yield ok(about, "no record yet: every item is available")
        return
    update = item_news(records, settings.items)
    items, bad = f"{numbered(len(update.changes), 'item')}, {_withdrawn(update):,} withdrawn", update.bad
    sample = [each for record in records if (each := _paths(record))]
    if not bad:
        yield ok(about, f"the newest {total} are read: {items}")
    else:
        found = f"{len(bad):,} of the newest {total} can't be read and change nothing; {items}"
        yield warn(about, found, "fix what is named below, in the producer or in [items]")
        rejects = [Reject(each, each.reason, each.detail) for each in bad]
        yield from by_reason(warn, about, rejects, _fixes(records, sample, settings), FIX_PRODUCER)
    if paths := all_paths(sample):
        yield fields_finding(topic, "items", item_names(settings.items), paths)


def _fixes(records: Sequence[Record], sample: Sequence[Paths], settings: Settings) -> dict[str, str]:
    """Return the fix of each reason that other field names remove, tried on the records."""
    fields = {f"items.fields.{field}": names for field, names in item_names(settings.items).items()}
    per_setting = {setting: advice.options(setting, names, sample) for setting, names in fields.items()}

    def read(changed: Settings) -> int:
        return len(records) - len(item_news(records, changed.items).bad)

    changes = advice.best(settings, per_setting, read, len(records))
    if not changes:
        return {}
    now_read = read(advice.with_changes(settings, changes))
    text = f"set {advice.as_toml(changes)}: then {now_read:,} of the newest {len(records):,} can be read"
    return dict.fromkeys(("missing_field", "wrong_type"), text)


def _withdrawn(update: CatalogUpdate) -> int:
    return sum(not change.available for change in update.changes)


def _paths(record: Record) -> Paths:
    """Return the paths of the object that holds an item's fields; {} for none."""
    try:
        places = item_row(record).places
    except RecordError:
        return {}
    return dict(advice.flatten(places[-1])) if places else {}

"""Check a sample of the items topic's newest records: which items they withdraw, and which can't be read."""

from collections.abc import Iterator, Sequence

from pipeline.app.check import advice
from pipeline.app.check.advice import Changes, Paths, all_paths
from pipeline.app.check.findings import Finding, by_reason, fields_finding, numbered, ok, warn
from pipeline.events.batch import CatalogUpdate, Record, Reject
from pipeline.events.checks import RecordError
from pipeline.events.items import item_names, item_news, item_row
from pipeline.settings import Settings


def check_items(topic: str, records: Sequence[Record], settings: Settings) -> Iterator[Finding]:
    """Yield the findings about the newest records of the items topic."""
    about, total = f"records of {topic}", numbered(len(records), "record")
    if not records:
        yield ok(about, "no record yet: every item is available")
        return
    update = item_news(records, settings.items)
    items, bad = f"{numbered(len(update.changes), 'item')}, {_withdrawn(update):,} withdrawn", update.bad
    sample = [each for record in records if (each := _paths(record))]
    changes = _advice(records, sample, settings)
    proposal = default_fix = "fix the producer: see deploy/guides/troubleshooting.md"
    if changes:
        then = item_news(records, advice.with_changes(settings, changes).items)
        read, withdrawn = len(records) - len(then.bad), numbered(_withdrawn(then), "item")
        proposal = f"set {advice.as_toml(changes)}: then {read:,} of the newest {total} can be read, "
        proposal += f"{withdrawn} withdrawn"
    if not bad:
        yield ok(about, f"the newest {total} are read: {items}")
    else:
        found = f"{len(bad):,} of the newest {total} can't be read and change nothing; {items}"
        yield warn(about, found, "fix what is named below, in the producer or in [items]")
        fixes = dict.fromkeys(("missing_field", "wrong_type"), proposal)
        yield from by_reason(
            warn, about, [Reject(each, each.reason, each.detail) for each in bad], fixes, default_fix
        )
    if paths := all_paths(sample):
        yield fields_finding(topic, "items", item_names(settings.items), paths)
        if "items.fields.available" in changes and not bad:
            text = "no record states availability: every record with a value counts as available"
            yield warn(f"fields of {topic}", text, proposal)


def _advice(records: Sequence[Record], sample: Sequence[Paths], settings: Settings) -> Changes:
    """Return the field names under which most of the records can be read, tried on them; {} for the present.

    Of names that read as many, those that find more of our fields are taken.
    """
    fields = {f"items.fields.{field}": names for field, names in item_names(settings.items).items()}
    per_setting = {setting: advice.options(setting, names, sample) for setting, names in fields.items()}

    def read(changed: Settings) -> int:
        return len(records) - len(item_news(records, changed.items).bad)

    changes = advice.best(settings, per_setting, read, len(records))
    for setting, names in reversed(fields.items()):
        found = any(name in each for each in sample for name in names)
        if setting in changes or found or (setting.endswith("item_id") and not changes):
            continue  # records that are read without it have the id as their key
        wider = [{**changes, setting: value} for _, value in per_setting[setting] if value is not None]
        changes = max([*wider, changes], key=lambda each: advice.reads(settings, each, read))
    return changes


def _withdrawn(update: CatalogUpdate) -> int:
    return sum(not change.available for change in update.changes)


def _paths(record: Record) -> Paths:
    """Return the paths of the object that holds an item's fields; {} for none."""
    try:
        places = item_row(record).places
    except RecordError:
        return {}
    return dict(advice.flatten(places[-1])) if places else {}

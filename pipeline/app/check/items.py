"""Check a sample of the items topic's newest records: which items they withdraw, and which can't be read."""

from collections.abc import Iterator, Sequence

from pipeline.app.check import advice, findings
from pipeline.app.check.advice import Changes, Paths, all_paths
from pipeline.app.check.findings import Finding, numbered, ok, warn
from pipeline.events.batch import CatalogUpdate, Record
from pipeline.events.checks import RecordError
from pipeline.events.items import item_names, item_news, item_row
from pipeline.settings import KEY_FIELD, Settings


def check_items(topic: str, records: Sequence[Record], settings: Settings) -> list[Finding]:
    """Return the findings about the newest records of the items topic."""
    about = f"records of {topic}"
    if not records:
        return [ok(about, "no record yet: every item is available")]
    update = item_news(records, settings.items)
    sample = [each for record in records if (each := _paths(record))]
    changes = _advice(records, sample, settings)
    proposal = _proposal(records, changes, settings) if changes else ""
    found = list(_reading(about, records, update, proposal))
    if paths := all_paths(sample):
        names = item_names(settings.items)
        from_key = {field for field, several in names.items() if KEY_FIELD in several}
        found.append(findings.fields_finding(topic, "items", names, paths, from_key))
        if "items.fields.available" in changes and not update.bad:
            text = "no record states availability: every record with a value counts as available"
            found.append(warn(f"fields of {topic}", text, proposal))
    return found


def _advice(records: Sequence[Record], sample: Sequence[Paths], settings: Settings) -> Changes:
    """Return the field names under which most of the records can be read, tried on them; {} for the present.

    Of names that read as many, those that find more of our fields are taken.
    """
    fields = item_names(settings.items)
    per_setting = {
        f"items.fields.{field}": advice.options(f"items.fields.{field}", names, sample)
        for field, names in fields.items()
    }
    reads = advice.counter(
        settings, lambda changed: len(records) - len(item_news(records, changed.items).bad)
    )
    changes = advice.best(per_setting, reads, len(records))
    for field, names in reversed(fields.items()):
        setting, least = f"items.fields.{field}", reads(changes)
        found = any(name in each for each in sample for name in names)
        if setting in changes or found or (field == "item_id" and not changes):
            continue  # records that are read without it have the id as their key
        wider = ({**changes, setting: value} for _, value in per_setting[setting] if value is not None)
        changes = next((each for each in wider if reads(each) >= least), changes)
    return changes


def _reading(
    about: str, records: Sequence[Record], update: CatalogUpdate, proposal: str
) -> Iterator[Finding]:
    """Yield how many records can be read and how many items they withdraw, then why others can't be read."""
    bad, total = len(update.bad), numbered(len(records), "record")
    items = f"{numbered(len(update.changes), 'item')}, {_withdrawn(update):,} withdrawn"
    if not bad:
        yield ok(about, f"the newest {total} are read: {items}")
        return
    found = f"{bad:,} of the newest {total} can't be read and change nothing; {items}"
    yield warn(about, found, "fix what is named below, in the producer or in [items]")
    problems = [
        findings.Problem(each.reason, f"{each.topic}-{each.partition} offset {each.offset}", each.detail)
        for each in update.bad
    ]
    default_fix = "fix the producer: see deploy/guides/troubleshooting.md"
    fixes = dict.fromkeys(("missing_field", "wrong_type"), proposal or default_fix)
    yield from findings.problem_findings(warn, about, problems, fixes, default_fix)


def _proposal(records: Sequence[Record], changes: Changes, settings: Settings) -> str:
    """Return changes in words, with the number of records that can be read under them."""
    update = item_news(records, advice.with_changes(settings, changes).items)
    read = f"{len(records) - len(update.bad):,} of the newest {numbered(len(records), 'record')}"
    withdrawn = numbered(_withdrawn(update), "item")
    return f"set {advice.as_toml(changes)}: then {read} can be read, {withdrawn} withdrawn"


def _withdrawn(update: CatalogUpdate) -> int:
    return sum(not change.available for change in update.changes)


def _paths(record: Record) -> Paths:
    """Return the paths of the object that holds an item's fields; {} for none."""
    try:
        places = item_row(record).places
    except RecordError:
        return {}
    return dict(advice.flatten(places[-1])) if places else {}

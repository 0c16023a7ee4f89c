"""Findings of `afresh check`, and how they are printed: as lines, or as JSON."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from pipeline.app.config import shown_values
from pipeline.app.config_rules import Origins
from pipeline.events.batch import Reject
from pipeline.events.checks import shown
from pipeline.settings import KEY_FIELD, Settings

FIELDS_SHOWN = 12


class Level(StrEnum):
    """Severity: a fault keeps the service from working, a warning costs something later."""

    OK = "ok"
    WARN = "warn"
    FAULT = "fault"


STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAULT: "bold red"}


class Finding(NamedTuple):
    """One check: its subject `about`, the result `found`, and `to_do`, the fix where one is needed."""

    level: Level
    about: str
    found: str
    to_do: str = ""


Make = Callable[[str, str, str], Finding]  # of a problem: about, found, to_do
ok, warn, fault = (partial(Finding, level) for level in Level)


def numbered(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> numbered(1, "record"), numbered(1200, "record")
    ('1 record', '1,200 records')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def by_reason(
    make: Make, about: str, rejects: Sequence[Reject], fixes: Mapping[str, str], default_fix: str
) -> Iterator[Finding]:
    """Yield a finding for each reason, the most frequent first, with an example; `fixes` by reason."""
    for reason, number in Counter(each.reason for each in rejects).most_common():
        first = next(each for each in rejects if each.reason == reason)
        place = f"{first.record.topic}-{first.record.partition} offset {first.record.offset}"
        found = f"{reason}: {number}, such as {place}: {first.detail}"
        yield make(about, found, fixes.get(reason, default_fix))


def fields_finding(
    topic: str, table: str, names: Mapping[str, Sequence[str]], paths: Sequence[str]
) -> Finding:
    """Return which paths of the records are read, and which fields of ours and paths of theirs have no match.

    `names` maps our fields to their names in the records.
    """
    read = [name for several in names.values() for name in several if name in paths]
    absent = [ours for ours, several in names.items() if not {*several} & {KEY_FIELD, *paths}]
    unread = [quoted(path) for path in paths if path not in read]
    parts = [f"read: {', '.join(map(quoted, read)) or 'none'}"]
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    if unread:
        parts.append(f"not read: {', '.join(unread[:FIELDS_SHOWN])} ({table}.fields can name them)")
    return ok(f"fields of {topic}", "; ".join(parts))


def quoted(text: str) -> str:
    """Return text from records for a message, on one line, without quotes."""
    return shown(text)[1:-1]


def show(findings: Iterable[Finding], settings: Settings, origins: Origins) -> list[Finding]:
    """Print the values that are no defaults, each finding once it is made, and the verdict; return them."""
    console, values, made = Console(highlight=False), shown_values(settings), []
    for key, origin in origins.items():
        if key in values:
            console.print(Text(f"{key} = {values[key]}  ({origin})", "dim"), soft_wrap=True)
    for finding in findings:
        # Text, since topics, keys and ids come from outside and may look like rich's markup
        line = Text(as_line(finding))
        line.stylize(STYLES[finding.level], end=len(finding.level))
        console.print(line, soft_wrap=True)
        made.append(finding)
    faulty = any(finding.level is Level.FAULT for finding in made)
    console.print(verdict(made), style=STYLES[Level.FAULT if faulty else Level.OK], soft_wrap=True)
    return made


def verdict(findings: Iterable[Finding]) -> str:
    """Return the last line of the report.

    >>> verdict([ok("a", "exists"), warn("b", "slow", "move it")])
    '0 faults, 1 warning: afresh run can start'
    """
    levels = Counter(finding.level for finding in findings)
    outcome = "fix the faults first" if levels[Level.FAULT] else "afresh run can start"
    return f"{numbered(levels[Level.FAULT], 'fault')}, {numbered(levels[Level.WARN], 'warning')}: {outcome}"


def as_line(finding: Finding) -> str:
    """Return a finding as one line.

    >>> as_line(warn("topic items", "does not exist", "create it"))
    'warn   topic items: does not exist -> create it'
    """
    to_do = f" -> {finding.to_do}" if finding.to_do else ""
    return f"{finding.level:<6} {finding.about}: {finding.found}{to_do}"


def as_json(findings: Sequence[Finding], settings: Settings, origins: Origins) -> str:
    """Return findings and configuration as one JSON document on one line."""
    levels = Counter(finding.level for finding in findings)
    document = {
        "faults": levels[Level.FAULT],
        "warnings": levels[Level.WARN],
        "checks": [finding._asdict() for finding in findings],
        "configuration": {
            key: {"value": value, "origin": origins.get(key, "default")}
            for key, value in shown_values(settings).items()
        },
    }
    return json.dumps(document, ensure_ascii=False)

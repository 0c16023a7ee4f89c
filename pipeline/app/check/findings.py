"""Findings of `afresh check`: printed as a table on a terminal, as lines elsewhere, or as JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.app.config import shown_values
from pipeline.app.config_rules import Origins
from pipeline.events.checks import shown
from pipeline.settings import Settings

FIELDS_SHOWN = 12


class Level(StrEnum):
    """Severity: a fault keeps the service from working, a warning costs something later."""

    OK = "ok"
    WARN = "warn"
    FAULT = "fault"


class Finding(NamedTuple):
    """One check: its subject `about`, the result `found`, and `to_do`, the fix where one is needed."""

    level: Level
    about: str
    found: str
    to_do: str = ""


def ok(about: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(Level.OK, about, found)


def warn(about: str, found: str, to_do: str) -> Finding:
    """Return a finding that costs something later."""
    return Finding(Level.WARN, about, found, to_do)


def fault(about: str, found: str, to_do: str) -> Finding:
    """Return a finding that keeps the service from working."""
    return Finding(Level.FAULT, about, found, to_do)


def count(findings: Iterable[Finding], level: Level) -> int:
    """Return the number of findings of a level."""
    return sum(finding.level is level for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line of the report.

    >>> verdict([ok("a", "exists"), warn("b", "slow", "move it")])
    '0 faults, 1 warning: afresh run can start'
    """
    faults, warnings = count(findings, Level.FAULT), count(findings, Level.WARN)
    outcome = "fix the faults first" if faults else "afresh run can start"
    return f"{numbered(faults, 'fault')}, {numbered(warnings, 'warning')}: {outcome}"


def numbered(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> numbered(1, "record"), numbered(1200, "record")
    ('1 record', '1,200 records')
    """
    plural = "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


class Problem(NamedTuple):
    """Why a record can't be read: a fixed word, the record's place, and the details."""

    reason: str
    place: str
    detail: str


def problem_findings(
    make: Callable[[str, str, str], Finding],
    about: str,
    problems: Sequence[Problem],
    fixes: Mapping[str, str],
    default_fix: str,
) -> Iterator[Finding]:
    """Yield a finding for each reason, the most frequent first, with an example; `fixes` by reason."""
    first = {problem.reason: problem for problem in reversed(problems)}
    counts = {reason: sum(each.reason == reason for each in problems) for reason in first}
    for reason, number in sorted(counts.items(), key=lambda pair: -pair[1]):
        found = f"{reason}: {number}, such as {first[reason].place}: {first[reason].detail}"
        yield make(about, found, fixes.get(reason, default_fix))


def fields_finding(
    topic: str, table: str, names: Mapping[str, Sequence[str]], paths: Iterable[str], optional: set[str]
) -> Finding:
    """Return which paths of the records are read, and which fields of ours and paths of theirs have no match.

    `names` maps our fields to their names in the records, `optional` fields may also come from elsewhere.
    """
    paths = list(paths)
    read = [name for several in names.values() for name in several if name in paths]
    absent = [ours for ours, several in names.items() if ours not in optional and not {*several} & {*paths}]
    unread = [shown(path)[1:-1] for path in paths if path not in read]
    parts = [f"read: {', '.join(shown(name)[1:-1] for name in read) or 'none'}"]
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    if unread:
        parts.append(f"not read: {', '.join(unread[:FIELDS_SHOWN])} ({table}.fields can name them)")
    return ok(f"fields of {topic}", "; ".join(parts))


def show(findings: Iterable[Finding], settings: Settings, origins: Origins) -> list[Finding]:
    """Print the findings on stdout, one by one where it is no terminal; return them."""
    console = Console(highlight=False)
    if not console.is_terminal:
        printed = []
        for line in configured(settings, origins):
            print(line)
        for finding in findings:
            print(as_line(finding), flush=True)
            printed.append(finding)
        print(verdict(printed))
        return printed
    with console.status("checking"):
        printed = list(findings)
    for line in configured(settings, origins):
        console.print(Text(line, style="dim"))
    for part in on_terminal(printed):
        console.print(part, soft_wrap=isinstance(part, Text))
    return printed


def on_terminal(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """Yield a table of the findings, then the fixes as lines that can be copied, then the verdict."""
    # Text, since topics, keys and ids come from outside and may look like rich's markup
    styles = {Level.OK: "green", Level.WARN: "yellow", Level.FAULT: "bold red"}
    table = Table("", "what", "found")
    for finding in findings:
        style = styles[finding.level]
        about, found = (Text(text, overflow="fold") for text in (finding.about, finding.found))
        table.add_row(Text(finding.level, style), about, found)
    yield table
    for finding in findings:
        if finding.to_do:
            yield Text.assemble((f"{finding.about}: ", styles[finding.level]), finding.to_do)
    yield Text(verdict(findings), styles[Level.FAULT if count(findings, Level.FAULT) else Level.OK])


def as_line(finding: Finding) -> str:
    """Return a finding as one line.

    >>> as_line(Finding(Level.WARN, "topic items", "does not exist", "create it"))
    'warn   topic items: does not exist -> create it'
    """
    to_do = f" -> {finding.to_do}" if finding.to_do else ""
    return f"{finding.level:<6} {finding.about}: {finding.found}{to_do}"


def configured(settings: Settings, origins: Origins) -> Iterator[str]:
    """Yield each value that is not the default, with its origin; secrets are hidden."""
    values = shown_values(settings)
    return (f"{key} = {values[key]}  ({origin})" for key, origin in origins.items() if key in values)


def as_json(findings: Sequence[Finding], settings: Settings, origins: Origins) -> str:
    """Return findings and configuration as one JSON document on one line."""
    document = {
        "faults": count(findings, Level.FAULT),
        "warnings": count(findings, Level.WARN),
        "checks": [finding._asdict() for finding in findings],
        "configuration": {
            key: {"value": value, "origin": origins.get(key, "default")}
            for key, value in shown_values(settings).items()
        },
    }
    return json.dumps(document, ensure_ascii=False)

"""Show findings: a table on a terminal, a line each anywhere else, or one JSON document."""

import json
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.app.check.findings import Finding, Level, count, verdict
from pipeline.app.config import shown_values
from pipeline.app.config_rules import Origins
from pipeline.settings import Settings

STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAULT: "bold red"}


def show(findings: Iterable[Finding], settings: Settings, origins: Origins) -> list[Finding]:
    """Print the findings on stdout, as they come where that is no terminal; return them."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for line in configured(settings, origins):
            print(line)
        shown = []
        for finding in findings:
            print(as_line(finding), flush=True)
            shown.append(finding)
        print(verdict(shown))
        return shown
    with console.status("looking"):
        shown = list(findings)
    for line in configured(settings, origins):
        console.print(Text(line, style="dim"))
    for part in on_terminal(shown):
        console.print(part, soft_wrap=isinstance(part, Text))
    return shown


def on_terminal(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """Yield a table of what was found, below it what to do, in lines that can be copied, and the verdict."""
    # Text, since topics, keys and ids come from outside and may look like rich's markup
    table = Table("", "what", "found")
    for finding in findings:
        table.add_row(
            Text(finding.level, STYLES[finding.level]),
            Text(finding.about, overflow="fold"),
            Text(finding.found, overflow="fold"),
        )
    yield table
    for finding in findings:
        if finding.to_do:
            yield Text.assemble((f"{finding.about}: ", STYLES[finding.level]), finding.to_do)
    faults = count(findings, Level.FAULT)
    yield Text(verdict(findings), style=STYLES[Level.FAULT if faults else Level.OK])


def as_line(finding: Finding) -> str:
    """Return a finding as one line.

    >>> as_line(Finding(Level.WARN, "topic items", "does not exist", "create it"))
    'warn   topic items: does not exist -> create it'
    """
    to_do = f" -> {finding.to_do}" if finding.to_do else ""
    return f"{finding.level:<6} {finding.about}: {finding.found}{to_do}"


def configured(settings: Settings, origins: Origins) -> Iterator[str]:
    """Yield each value that is no default, with where it came from; secrets hidden."""
    values = shown_values(settings)
    for key, origin in origins.items():
        if key in values:
            yield f"{key} = {values[key]}  ({origin})"


def as_json(findings: Sequence[Finding], settings: Settings, origins: Origins) -> str:
    """Return everything as one JSON document on one line."""
    return json.dumps(
        {
            "faults": count(findings, Level.FAULT),
            "warnings": count(findings, Level.WARN),
            "checks": [
                {"level": each.level, "about": each.about, "found": each.found, "to_do": each.to_do}
                for each in findings
            ],
            "configuration": {
                key: {"value": value, "origin": origins.get(key, "default")}
                for key, value in shown_values(settings).items()
            },
        },
        ensure_ascii=False,
    )

"""What `afresh check` finds: one finding a line, each with what to do where something is wrong."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How bad it is. A fault keeps the service from working, a warning costs something later."""

    OK = "ok"
    WARN = "warn"
    FAULT = "fault"


class Finding(NamedTuple):
    """One thing that was looked at: `about` names it, `found` says how it is, `to_do` how to mend it."""

    level: Level
    about: str
    found: str
    to_do: str = ""


def ok(about: str, found: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(Level.OK, about, found)


def warn(about: str, found: str, to_do: str) -> Finding:
    """Return a finding that costs something later."""
    return Finding(Level.WARN, about, found, to_do)


def fault(about: str, found: str, to_do: str) -> Finding:
    """Return a finding that keeps the service from working."""
    return Finding(Level.FAULT, about, found, to_do)


def count(findings: Iterable[Finding], level: Level) -> int:
    """Return how many findings are of this level.

    >>> count([ok("a", "there"), warn("b", "thin", "more"), ok("c", "there")], Level.OK)
    2
    """
    return sum(finding.level is level for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line of the report.

    >>> verdict([ok("a", "there"), warn("b", "thin", "more")])
    'no fault, 1 warning: afresh run can start'
    """
    faults, warnings = count(findings, Level.FAULT), count(findings, Level.WARN)
    return (
        f"{_number(faults, 'fault')}, {_number(warnings, 'warning')}: "
        f"{'mend the faults first' if faults else 'afresh run can start'}"
    )


def numbered(count: int, word: str) -> str:
    """Return a count with its noun.

    >>> numbered(1, "record"), numbered(1200, "record")
    ('1 record', '1,200 records')
    """
    plural = "es" if word.endswith("ch") else "s"
    return f"{count:,} {word}{'' if count == 1 else plural}"


def _number(count: int, word: str) -> str:
    return f"no {word}" if not count else numbered(count, word)

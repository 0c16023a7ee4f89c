"""What every reader of recorded files speaks in: columns, rows, and a tally of those that can't be read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

from pipeline.errors import UsageError
from pipeline.event.checks import Problem, TimeUnit, shown

NEEDED = ("user", "item", "timestamp")


class Columns(NamedTuple):
    """The names that the columns have in the file. A file may lack `event` and `value` unless they are
    renamed. In .jsonl a name with dots may be a path, as in `pipeline.event.fields`."""

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    event: str = "event"
    value: str = "value"


class Row(NamedTuple):
    """One row as it stands in the file. An empty event is the default type; an empty value or None is
    none."""

    number: int  # of the line, or of the row in a parquet file, from 1
    user: str
    item: str
    time: str | float
    event: str
    value: str | float | None


@dataclass(slots=True)
class Tally:
    """What became of a file's rows so far. `first` holds the first problem of each reason."""

    types: Counter[str] = field(default_factory=Counter)  # of the good events
    rejected: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)  # by event type
    several: int = 0  # events, rejected ones included, beyond the first of a row that is several
    first: dict[str, str] = field(default_factory=dict)
    share: float = 0.0  # of the file that has been read, 0 to 1
    counted: str = "line"  # what the numbers of rows count

    def reject(self, number: int, problem: Problem, rows: int = 1) -> None:
        """Count rows that can't be read, from line or row `number` on."""
        self.rejected[problem.reason] += rows
        self.first.setdefault(problem.reason, f"{self.counted} {number}: {problem.detail}")

    def lines(self) -> list[str]:
        """One line for each reason, the most frequent first; none when every row could be read."""
        return [
            f"{count} rows rejected: {reason}. The first: {self.first[reason]}"
            for reason, count in self.rejected.most_common()
        ]


class Rows(Protocol):
    """A file that is being read. `time_unit` is set where the format itself says what its times are."""

    time_unit: TimeUnit | None

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows once, in order. Raise `UsageError` when the file can't be read or lacks a column."""

    def share(self) -> float:
        """Share of the file that has been read."""


def places_of(path: Path, columns: Columns, header: list[str]) -> list[int]:
    """Where each column stands; one behind the last where the file lacks a column that it need not have.

    Raise `UsageError` when it lacks others: the message names those that it has, and the options to use.
    """
    missing = [
        column
        for column, name in columns._asdict().items()
        if name not in header and (column in NEEDED or name != column)
    ]
    if missing:
        _raise_no_column(path, columns, missing, header)
    return [header.index(name) if name in header else len(header) for name in columns]


def _raise_no_column(path: Path, columns: Columns, missing: list[str], found: Iterable[str]) -> NoReturn:
    names = ", ".join(repr(getattr(columns, column)) for column in missing)
    options = " and ".join(f"the {column} with --{column}-column" for column in missing)
    raise UsageError(
        f"{path}: no column {names}; found {', '.join(map(shown, found))}. Name the one that holds {options}"
    )


def wrong_type(name: str, got: object, expected: str) -> Problem:
    """Say that a column holds nothing, or something of the wrong type."""
    if got is None:
        return Problem("missing_field", f"no {name}; expected {expected}")
    return Problem("wrong_type", f"{name} = {shown(str(got))}: expected {expected}")

"""What all readers of recorded files share: column names, rows, and a tally of rows that can't be read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.errors import UsageError
from pipeline.events.checks import Problem, TimeUnit, shown

NEEDED = ("user", "item", "timestamp")


class Columns(NamedTuple):
    """The names of the columns in the file. `event` and `value` are optional unless renamed; None: not read.

    In .jsonl a name with dots may be a path, as in `pipeline.events.fields`.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    event: str | None = "event"
    value: str | None = "value"


DEFAULT_COLUMNS = Columns()


class Row(NamedTuple):
    """One row as it is in the file. An empty event is the default type; an empty value counts as None."""

    number: int  # of the line, or of the row in a parquet file, from 1
    user: str
    item: str
    time: str | float
    event: str
    value: str | float | None


@dataclass(slots=True)
class Tally:
    """Counts of a file's rows so far: each is rejected, ignored, left out or an event.

    `first` holds the first problem of each reason.
    """

    rows: int = 0
    left_out: int = 0  # good rows before the first wanted event, or after the last one
    ignored: int = 0  # of an event type with the role ignore
    out_of_order: int = 0  # events with a time before that of an earlier row, where that is counted
    sorted: bool = False  # by time, before anything was cut
    types: Counter[str] = field(default_factory=Counter)  # of the events
    rejected: Counter[str] = field(default_factory=Counter)
    extra: int = 0  # further events of rows that are counted already
    first: dict[str, str] = field(default_factory=dict)
    share: float = 0.0  # of the file that has been read, 0 to 1
    counted: str = "line"  # what the numbers of rows count

    _accepted: int = 0  # the newest row with an event
    _rejected: int = 0  # the newest row that was rejected

    def accept(self, number: int) -> None:
        """Count an event of line or row `number`. A row may be several events, some of them bad."""
        if number in (self._accepted, self._rejected):
            self.extra += 1
        self._accepted = number

    def reject(self, number: int, problem: Problem) -> None:
        """Count line or row `number` once as one with an event that can't be read."""
        if number == self._rejected:
            return
        self.rejected[problem.reason] += 1
        self.first.setdefault(problem.reason, f"{self.counted} {number}: {problem.detail}")
        self.extra += number == self._accepted
        self._rejected = number

    def lines(self) -> list[str]:
        """Return one line for each reason of rejection, the most frequent first."""
        return [
            f"{count} rows rejected: {reason}. The first: {self.first[reason]}"
            for reason, count in self.rejected.most_common()
        ]

    def order(self) -> list[str]:
        """Return one line if events were out of order of time."""
        if not self.out_of_order:
            return []
        done = "the file was sorted by time" if self.sorted else "they were read in the file's order"
        return [f"{self.out_of_order:,} events come after a later one: {done}"]


class Rows(Protocol):
    """A file that is being read. `time_unit` is set where the format itself defines it."""

    time_unit: TimeUnit | None

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows once, in order. Raise `UsageError` when the file can't be read or lacks a column."""

    def share(self) -> float:
        """Return the share of the file that has been read."""


def places_of(file: str, columns: Columns, header: Sequence[str]) -> list[int]:
    """Return each column's index in the header; one behind the last for an optional one that is missing.

    Raise `UsageError` for missing columns: the message names those of the file, and the options to use.
    """
    missing = [
        column
        for column, name in columns._asdict().items()
        if name is not None and name not in header and (column in NEEDED or name != column)
    ]
    if missing:
        names = ", ".join(repr(getattr(columns, column)) for column in missing)
        options = " and ".join(f"the {column} with --{column}-column" for column in missing)
        raise UsageError(
            f"{file}: no column {names}; found {', '.join(map(shown, header))}. Name the one that holds "
            f"{options}"
        )
    return [header.index(name) if name in header else len(header) for name in columns]


def wrong_type(name: str | None, got: object, expected: str) -> Problem:
    """Return the problem of a column that holds nothing, or a value of the wrong type."""
    if got is None:
        return Problem("missing_field", f"no {name}; expected {expected}")
    return Problem("wrong_type", f"{name} = {shown(str(got))}: expected {expected}")

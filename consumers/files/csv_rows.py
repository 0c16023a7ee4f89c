"""The rows of a file of delimited text.

A line without a quote is split at the delimiter; one with quotes is parsed by Python's csv module. A quoted
field may span several lines, but a stray quote must not hide the rows after it. So a record spans several
lines only if its quotes are balanced (RFC 4180) within `MAX_LINES` lines, it then has the header's number of
fields, and no line within it is a row by itself: the header's number of fields, with a time in its column.
Otherwise its first line alone is rejected, and reading continues with the next one.

With a delimiter of several characters, quotes have no meaning.
"""

import csv
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from consumers.files.recording import FileBytes, Recording
from consumers.files.rows import Row, Tally, places_of
from pipeline.errors import UsageError
from pipeline.events.checks import EARLIEST_MS, Problem, TimeUnit, any_ms

MAX_LINES = 50  # of a record with a quoted field
ENDS = "\r\n"


class CsvRows:
    """The rows of delimited text: see `consumers.files.rows.Rows`."""

    time_unit: TimeUnit | None = None

    def __init__(self, recording: Recording, tally: Tally) -> None:
        self._recording, self._tally = recording, tally
        self._bytes = FileBytes(recording.path, recording.name, recording.packed)
        self.share = self._bytes.share
        self._split = line_splitter(recording.delimiter)

    def header(self) -> list[str]:
        """Return the names of the columns; none for an empty file. Raise `UsageError` when unreadable."""
        with self._bytes.open() as binary:
            return self._header(_Lines(binary))[0]

    def __iter__(self) -> Iterator[Row]:
        delimiter, tally = self._recording.delimiter, self._tally
        mark = '"' if len(delimiter) == 1 else "\n\n"  # which is in no line
        csv.field_size_limit(sys.maxsize)  # of a column that is not read
        with self._bytes.open() as binary:
            lines = _Lines(binary)
            header, number = self._header(lines)
            if not header:
                raise UsageError(
                    f"{self._recording.name}: empty; expected a header line such as user,item,timestamp"
                )
            user, item, time, event, value = places_of(self._recording.name, self._recording.columns, header)
            width = len(header)
            fits = _Fit(width, time, self._split)
            for line in lines:
                number += 1
                more = 0
                if mark in line:
                    whole = self._split(line)
                    row, more = (whole, 0) if whole is not None else _over_lines(line, lines, delimiter, fits)
                else:
                    row = line.rstrip(ENDS).split(delimiter)
                if row == [""]:  # a blank line is no row
                    continue
                tally.rows += 1
                if len(row) != width:
                    tally.reject(number, _bad_row(row, width))
                    continue
                row.append("")  # for columns that the file lacks
                yield Row(number, row[user], row[item], row[time], row[event], row[value])
                number += more

    def _header(self, lines: "_Lines") -> tuple[list[str], int]:
        """Return the names of the columns and how many lines hold them."""
        if self._recording.header is not None:
            return list(self._recording.header), 0
        first = next(iter(lines), None)
        if first is None:
            return [], 0
        row = self._split(first)
        if row is not None:
            return row, 1
        row, more = _over_lines(first, lines, self._recording.delimiter)
        return row or first.rstrip(ENDS).split(self._recording.delimiter), 1 + more


class _Lines:
    """The lines of a file, with a look ahead. Bytes that are not UTF-8 become surrogates, which affect their
    own row only.
    """

    def __init__(self, binary: io.BufferedReader) -> None:
        start = binary.peek(1)
        end = "\r" if b"\r" in start and b"\n" not in start else "\n"  # of an old Mac, or of any other file
        self._text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline=end)
        self._ahead: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        while True:
            while self._ahead:
                yield self._ahead.popleft()
            for line in self._text:
                yield line
                if self._ahead:
                    break
            else:
                return

    def peek(self, place: int) -> str | None:
        """Return the line `place` lines after the next one; None after the file's end."""
        while len(self._ahead) <= place:
            line = self._text.readline()
            if not line:
                return None
            self._ahead.append(line)
        return self._ahead[place]

    def skip(self, count: int) -> None:
        """Skip lines that were looked at."""
        for _ in range(count):
            self._ahead.popleft()


def line_splitter(delimiter: str) -> Callable[[str], list[str] | None]:
    """Return a function that splits a line into its fields; None: a quote is open at the line's end.

    >>> split = line_splitter(",")
    >>> split('u1,"a, b",7'), split('u1,"a, b'), line_splitter("::")('1::"x')
    (['u1', 'a, b', '7'], None, ['1', '"x'])
    """
    taken: list[str] = []
    # one reader for all lines: making one is slow
    reader = csv.reader(iter(taken.pop, None), delimiter=delimiter[0])

    def split(line: str) -> list[str] | None:
        if len(delimiter) > 1 or '"' not in line:
            return line.rstrip(ENDS).split(delimiter)
        taken.append(line)
        try:
            return next(reader)
        except IndexError:  # the reader asked for the next line
            return None
        except csv.Error:  # such as a lone carriage return behind a quote
            return []

    return split


class _Fit(NamedTuple):
    """The form of the file's rows: their number of fields, and the index of the time."""

    width: int
    time: int
    split: Callable[[str], list[str] | None]

    def is_row(self, line: str) -> bool:
        """Return whether a line is a row by itself; with an odd number of quotes it may end a field."""
        row = self.split(line) if line.count('"') % 2 == 0 else None
        if row is None or len(row) != self.width:
            return False
        try:
            return any_ms(row[self.time]) >= EARLIEST_MS
        except ValueError:
            return False


def _over_lines(first: str, lines: _Lines, delimiter: str, fits: _Fit | None = None) -> tuple[list[str], int]:
    """Return the fields of a record that spans several lines, and the number of lines after the first.

    No fields: it has no end, does not fit, or contains another row.
    """

    def more() -> Iterator[str]:
        for place in range(MAX_LINES - 1):
            line = lines.peek(place)
            if line is None or (fits and fits.is_row(line)):
                return
            yield line

    reader = csv.reader(chain([first], more()), delimiter=delimiter, strict=True)
    try:
        row = next(reader)
    except csv.Error:
        return [], 0
    if fits and len(row) != fits.width:
        return [], 0
    lines.skip(reader.line_num - 1)
    return row, reader.line_num - 1


def _bad_row(row: Sequence[str], width: int) -> Problem:
    if not row:
        return Problem("bad_row", f"a quoted field does not end in this row; expected {width} fields")
    return Problem("bad_row", f"{len(row)} fields; expected the header's {width}")

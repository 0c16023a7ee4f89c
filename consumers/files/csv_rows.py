"""The rows of a file of delimited text.

A line without a quote is split at the delimiter, one with quotes by Python's csv module. A record spans
several lines only if its quotes are balanced (RFC 4180) within `MAX_LINES` lines, it then has the header's
number of fields, and no line within it is a row by itself. Otherwise its first line alone is rejected: a
stray quote must not hide the rows after it. With a delimiter of several characters, quotes have no meaning.
"""

import csv
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
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
            return self._header(_Lines(binary))

    def __iter__(self) -> Iterator[Row]:
        recording, tally = self._recording, self._tally
        mark = '"' if len(recording.delimiter) == 1 else "\n\n"  # which is in no line
        csv.field_size_limit(sys.maxsize)  # of a column that is not read
        with self._bytes.open() as binary:
            lines = _Lines(binary)
            header = self._header(lines)
            if not header:
                raise UsageError(
                    f"{recording.name}: empty; expected a header line such as user,item,timestamp"
                )
            user, item, time, event, value = places_of(recording.name, recording.columns, header)
            form = _Form(len(header), time, self._split)
            for index, line in enumerate(lines, 2 if recording.header is None else 1):
                number = index + lines.skipped
                if mark in line:
                    row = self._split(line)
                    if row is None:
                        row = _over_lines(line, lines, recording.delimiter, form)
                else:
                    row = line.rstrip(ENDS).split(recording.delimiter)
                if row == [""]:  # a blank line is no row
                    continue
                tally.rows += 1
                if len(row) != form.width:
                    got = f"{len(row)} fields" if row else "a quoted field does not end in this row"
                    tally.reject(
                        number, Problem("bad_row", f"{got}; expected the header's {form.width} fields")
                    )
                    continue
                row.append("")  # for columns that the file lacks
                yield Row(number, row[user], row[item], row[time], row[event], row[value])

    def _header(self, lines: "_Lines") -> list[str]:
        """Return the names of the columns, and read their line if they are not given."""
        delimiter, given = self._recording.delimiter, self._recording.header
        if given is not None:
            return list(given)
        first = next(iter(lines), None)
        if first is None:
            return []
        return (
            self._split(first) or _over_lines(first, lines, delimiter) or first.rstrip(ENDS).split(delimiter)
        )


class _Lines:
    """The lines of a file, with a look ahead. Bytes that are not UTF-8 become surrogates, which affect their
    own row only.
    """

    def __init__(self, binary: io.BufferedReader) -> None:
        start = binary.peek(1)
        end = "\r" if b"\r" in start and b"\n" not in start else "\n"  # of an old Mac, or of any other file
        self._text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline=end)
        self._ahead: deque[str] = deque()
        self.skipped = 0

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

    def ahead(self) -> Iterator[str]:
        """Yield the lines after the current one; they remain to be read."""
        for place in range(MAX_LINES - 1):
            if len(self._ahead) <= place and (line := self._text.readline()):
                self._ahead.append(line)
            if len(self._ahead) <= place:
                return
            yield self._ahead[place]

    def skip(self, count: int) -> None:
        """Skip lines that were looked at."""
        for _ in range(count):
            self._ahead.popleft()
        self.skipped += count


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


class _Form(NamedTuple):
    """The form of the file's rows: their number of fields, and the index of the time."""

    width: int
    time: int
    split: Callable[[str], list[str] | None]

    def is_row(self, line: str) -> bool:
        """Return whether a line is a row by itself; with an odd number of quotes it may end a field."""
        row = self.split(line) if line.count('"') % 2 == 0 else None
        if row is None or len(row) != self.width:
            return False
        return is_time(row[self.time])


def is_time(text: str) -> bool:
    """Return whether a text is a time from 1980 on, in any unit."""
    try:
        return any_ms(text) >= EARLIEST_MS
    except ValueError:
        return False


def _over_lines(first: str, lines: _Lines, delimiter: str, form: _Form | None = None) -> list[str]:
    """Return the fields of a record that spans several lines.

    No fields: it has no end, does not have this form, or contains another row.
    """
    more = takewhile(lambda line: form is None or not form.is_row(line), lines.ahead())
    reader = csv.reader(chain([first], more), delimiter=delimiter, strict=True)
    try:
        row = next(reader)
    except csv.Error:
        return []
    if form is not None and len(row) != form.width:
        return []
    lines.skip(reader.line_num - 1)
    return row

"""The rows of a recorded file, whatever its format: text, numbers and where they stand; nothing is judged
here."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from consumers.parquet_rows import ParquetRows
from consumers.rows import Columns, Row, Rows, Tally, places_of, wrong_type
from pipeline.errors import UsageError
from pipeline.event.checks import MAX_DEPTH, MAX_ELEMENTS, Problem, TimeUnit, too_deep, too_many
from pipeline.event.fields import ARRAY, Names, spread, value_at
from pipeline.event.problems import json_problem
from pipeline.settings import FIELD_OF, EventsConfig, names_of

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")


def open_rows(path: Path, columns: Columns, tally: Tally, events: EventsConfig | None = None) -> Rows:
    """Choose the reader by the file's name; rows that it can't make out go to `tally`. A .jsonl is read by
    all the names that `events` gives a field, and a row as several events where they lead through an array.

    Raise `UsageError` for a name that none of `SUFFIXES` ends.
    """
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return _CsvRows(path, columns, tally)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _JsonRows(path, columns, tally, events or EventsConfig())
    if name.endswith(".parquet"):
        return ParquetRows(path, columns, tally)
    raise UsageError(f"{path}: unknown kind of file; expected a name that ends in {', '.join(SUFFIXES)}")


class FileBytes:
    """The bytes of a file, unpacked, and how far they have been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw: BinaryIO | None = None
        self._size = 0

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file. Errors of the file inside the block become a `UsageError`."""
        try:
            with self._path.open("rb") as raw:
                self._raw, self._size = raw, raw.seek(0, io.SEEK_END)
                raw.seek(0)
                if self._path.name.lower().endswith(".gz"):
                    with gzip.open(raw) as unpacked:
                        yield io.BufferedReader(unpacked, 1 << 16)
                else:
                    yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{self._path}: not a whole gzip file: {error}; get it again") from error
        except OSError as error:
            raise UsageError(f"{self._path}: can't be read: {error.strerror or error}") from error

    def share(self) -> float:
        """Share of the packed bytes that have been read."""
        if self._raw is None or not self._size:
            return 0.0
        return 1.0 if self._raw.closed else self._raw.tell() / self._size


class _CsvRows:
    time_unit: TimeUnit | None = None

    def __init__(self, path: Path, columns: Columns, tally: Tally) -> None:
        self._path, self._columns, self._tally = path, columns, tally
        self._bytes = FileBytes(path)
        self.share = self._bytes.share

    def __iter__(self) -> Iterator[Row]:
        with self._bytes.open() as binary:
            # Bytes that are not UTF-8 become surrogates, so that they spoil their own row only.
            text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text)
            header = next(reader, None)
            if header is None:
                raise UsageError(f"{self._path}: empty; expected a header line such as {','.join(Columns())}")
            user, item, time, event, value = places_of(self._path, self._columns, header)
            width, line = len(header), reader.line_num
            while True:
                try:
                    for row in reader:
                        if len(row) == width:
                            row.append("")  # for columns that the file lacks
                            line = reader.line_num
                            yield Row(line, row[user], row[item], row[time], row[event], row[value])
                        elif row:  # a blank line is no row
                            problem = Problem("bad_row", f"{len(row)} fields; expected the header's {width}")
                            self._tally.reject(line + 1, problem, reader.line_num - line)
                        line = reader.line_num
                    return
                except csv.Error as error:  # such as a quote that never ends: it has swallowed some lines
                    self._tally.reject(line + 1, Problem("bad_row", str(error)), reader.line_num - line)
                    line = reader.line_num


class _JsonRows:
    time_unit: TimeUnit | None = None

    def __init__(self, path: Path, columns: Columns, tally: Tally, events: EventsConfig) -> None:
        self._path, self._columns, self._tally = path, columns, tally
        self._bytes = FileBytes(path)
        self.share = self._bytes.share
        self._ignored = events.ignored()
        self._choices: dict[str, Names] = {name: (name,) for name in columns}
        for column, name in columns._asdict().items():
            names = names_of(events.fields.get(FIELD_OF[column]) or name)
            if name in names:  # else the user's own word, or the plain name
                self._choices[name] = names
        self._spreads = any(len(each) > 1 or ARRAY in each[0] for each in self._choices.values())

    def __iter__(self) -> Iterator[Row]:
        first: dict[str, Any] | None = None
        good = 0
        with self._bytes.open() as binary:
            for number, line in enumerate(binary, 1):
                if line.isspace():
                    continue
                row = self._parsed(number, line)
                if row is None:
                    continue
                first = row if first is None else first
                found = spread(row, self._choices, self._columns.item) if self._spreads else [row]
                if len(found) > MAX_ELEMENTS:
                    self._tally.reject(number, too_many(len(found)))
                    continue
                self._tally.several += len(found) - 1
                for each in found:
                    got = self._as_row(number, each)
                    if isinstance(got, Row):
                        good += 1
                        yield got
                    else:
                        self._tally.reject(number, got)
        if first is not None and not good:  # no row fits: most likely the names don't
            held = [name for name in self._columns if value_at(first, name) is not None]
            places_of(self._path, self._columns, list(dict.fromkeys([*first, *held])))

    def _parsed(self, number: int, line: bytes) -> dict[str, Any] | None:
        problem = Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; expected a flat JSON object")
        if not too_deep(line):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                return msgspec.json.decode(text.strip(), type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                problem = json_problem(line, error, time_field=self._columns.timestamp)
        self._tally.reject(number, problem)
        return None

    def _as_row(self, number: int, row: dict[str, Any]) -> Row | Problem:
        kind = value_at(row, self._columns.event) if self._ignored else None
        if isinstance(kind, str | int) and str(kind) in self._ignored:  # which may lack all the rest
            return Row(number, "", "", 0, str(kind), None)
        texts = []
        for column in ("user", "item", "event"):
            name = getattr(self._columns, column)
            text = value_at(row, name)
            if text is None and column == "event":
                text = ""
            if isinstance(text, int) and not isinstance(text, bool):
                text = str(text)
            if not isinstance(text, str):
                return wrong_type(name, text, "text or a whole number")
            texts.append(text)
        time, value = value_at(row, self._columns.timestamp), value_at(row, self._columns.value)
        if not isinstance(time, str | int | float) or isinstance(time, bool):
            return wrong_type(self._columns.timestamp, time, "a number or an ISO 8601 text")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            return wrong_type(self._columns.value, value, "a number")
        user, item, event = texts
        return Row(number, user, item, time, event, value)

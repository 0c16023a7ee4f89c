"""Which names the columns of a recorded file have, out of those that they may have."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from consumers.file_rows import FileBytes
from consumers.parquet_rows import names_in
from consumers.rows import NEEDED, Columns
from pipeline.event.fields import value_at

SAMPLE = 1_000  # rows of a .jsonl that are looked at: nothing else says which fields it has


def find_columns(path: Path, choices: Mapping[str, Sequence[str]]) -> Columns:
    """Return for each column the first of its possible names that the file has.

    Where it has none: the first possible one, but in a file with a header the plain name for a column that a
    file may lack. A .jsonl has what one of its first 1,000 rows holds. Raise `UsageError` when it can't be
    read; a file of an unknown kind, or that no reader is installed for, is left to `open_rows`.
    """
    if all(len(names) == 1 for names in choices.values()):
        return Columns(**{column: names[0] for column, names in choices.items()})
    name = path.name.lower()
    by_header = not name.endswith((".jsonl", ".jsonl.gz"))
    rows = [dict.fromkeys(_header(path), "")] if by_header else _first_objects(path)
    found = {}
    for column, names in choices.items():
        held = (each for each in names if any(value_at(row, each) is not None for row in rows))
        given = len(names) == 1  # the user's own word: one that the file lacks is an error
        absent = names[0] if given or column in NEEDED or not by_header else column
        found[column] = next(held, absent)
    return Columns(**found)


def _header(path: Path) -> list[str]:
    """Return the names in a file's header; none where `open_rows` will refuse the file."""
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        raw = FileBytes(path)
        with raw.open() as binary:
            text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
            try:
                return next(csv.reader(text), [])
            except csv.Error:
                return []
    if name.endswith(".parquet"):
        return names_in(path)
    return []


def _first_objects(path: Path) -> list[dict[str, Any]]:
    """Return the first rows of a .jsonl that can be parsed; what is wrong with others is told later."""
    objects = []
    raw = FileBytes(path)
    with raw.open() as binary:
        for line in islice(binary, SAMPLE):
            try:
                text = line.decode("utf-8-sig").strip()
                objects.append(msgspec.json.decode(text, type=dict[str, Any]))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
    return objects

"""Which names the columns of a recorded file have, out of those that they may have."""

from itertools import islice
from typing import Any

import msgspec

from consumers.files.csv_rows import CsvRows
from consumers.files.format import Choices
from consumers.files.parquet_rows import names_in
from consumers.files.recording import FileBytes, Recording
from consumers.files.rows import NEEDED, Columns, Tally
from pipeline.events.fields import value_at

SAMPLE = 1_000  # rows of a .jsonl that are looked at: nothing else says which fields it has


def find_columns(recording: Recording, choices: Choices) -> Columns:
    """Return for each column the first of its possible names that the file has.

    Where it has none: the first possible one, but in a file with a header the plain name for a column that a
    file may lack. A column without possible names is not read. A .jsonl has what one of its first 1,000 rows
    holds. Raise `UsageError` when it can't be read; one without a reader installed is left to `open_rows`.
    """
    by_header = recording.kind != "jsonl"
    rows: list[dict[str, Any]] | None = None
    found: dict[str, str | None] = {}
    for column, names in choices.items():
        if len(names) < 2:  # the user's own word: one that the file lacks is an error
            found[column] = names[0] if names else None
            continue
        if rows is None:
            rows = [dict.fromkeys(_header(recording), "")] if by_header else _first_objects(recording)
        held = (each for each in names if any(value_at(row, each) is not None for row in rows))
        absent = names[0] if column in NEEDED or not by_header else column
        found[column] = next(held, absent)
    return Columns(**found)  # type: ignore[arg-type]


def _header(recording: Recording) -> list[str]:
    """Return the names in a file's header; none where reading its rows will say what is wrong."""
    if recording.kind == "parquet":
        return names_in(recording.path)
    return CsvRows(recording, Tally()).header()


def _first_objects(recording: Recording) -> list[dict[str, Any]]:
    """Return the first rows of a .jsonl that can be parsed; what is wrong with others is told later."""
    objects = []
    with FileBytes(recording.path, recording.name, recording.packed).open() as binary:
        for line in islice(binary, SAMPLE):
            try:
                text = line.decode("utf-8-sig").strip()
                objects.append(msgspec.json.decode(text, type=dict[str, Any]))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
    return objects

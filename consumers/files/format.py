"""Find how a file is read: its kind, what separates its fields, and the names of its columns.

What no option states is derived only where it is certain: from the file name's suffix, a header line with the
expected names, or the form of MovieLens ratings (`u.data`, `ratings.dat`).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from consumers.files.csv_rows import CsvRows, is_time, line_splitter
from consumers.files.parquet_rows import names_in
from consumers.files.recording import GZIP, FileBytes, Kind, Recording
from consumers.files.rows import NEEDED, Columns, Tally
from pipeline.errors import UsageError
from pipeline.events.checks import shown
from pipeline.events.fields import value_at

KINDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe", "::": "double colon"}
HEAD_BYTES = 1 << 16  # of a file that are looked at
HEAD_LINES = 100
OBJECTS = 1_000  # of a .jsonl that are looked at: nothing else tells which fields it has
MOVIELENS = ("user", "item", "value", "timestamp")
_RATING = re.compile(r"\d{1,9}\t\d{1,9}\t(\d|10)(\.\d)?\t\d{9,10}", re.ASCII)
Choices = Mapping[str, Sequence[str]]  # for each of our columns the names that it may have; none: not read


def recognised(
    path: Path,
    name: str,
    choices: Choices,
    delimiter: str | None = None,
    header: tuple[str, ...] | None = None,
) -> Recording:
    """Return how a file is read: as given, else by its name or its first lines; without its columns.

    `name` is for messages. Raise `UsageError` for a file that can't be read, for a format that is not
    certain, and for options that do not fit the file.
    """
    head, packed = _head(path, name)
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    kind = KINDS.get(suffix)
    if kind is None and not (delimiter or header):
        kind = _kind_of(head)
    if kind in ("jsonl", "parquet"):
        if delimiter or header:
            raise UsageError(
                f"{name}: is {kind}; --delimiter and --columns are for delimited text: leave them out"
            )
        return Recording(path, name, kind, packed)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{name}: is UTF-16; expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8")
    lines = _lines(head)
    if not lines:
        return Recording(path, name, "csv", packed, delimiter or ",", header)
    tried = [delimiter] if delimiter else list(DELIMITERS)
    if header:
        return Recording(path, name, "csv", packed, _splitting(name, lines, tried, header), header)
    is_known = kind is not None or delimiter is not None
    found, header = _delimited(name, lines, ["\t"] if suffix == ".tsv" and not delimiter else tried, choices)
    if not is_known and header is None and not _names_all(lines[0], found, choices):
        raise UsageError(
            f"{name}: unknown kind of file; expected a name that ends in {', '.join(SUFFIXES)}, a header "
            "line with the names of its columns, or --columns"
        )
    return Recording(path, name, "csv", packed, found, header)


def _delimited(
    name: str, lines: list[str], tried: list[str], choices: Choices
) -> tuple[str, tuple[str, ...] | None]:
    """Return the delimiter, and the names of the columns where the file has no header line."""
    for each in tried:
        if _names_all(lines[0], each, choices):
            return each, None
    for each in tried:
        if _is_movielens(lines, each):
            return each, MOVIELENS
    found = max(tried, key=lambda each: len(_fields(lines[0], each)))
    if any(map(is_time, _fields(lines[0], found))):
        raise UsageError(
            f"{name}: no header line; the first line is {shown(lines[0])}: name its columns, "
            "such as --columns user,item,timestamp"
        )
    return found, None


def find_columns(recording: Recording, choices: Choices) -> Columns:
    """Return for each column the first of its possible names that the file has.

    Without any: the first one, but in a file with a header the plain name of an optional column. A column
    without possible names is not read. A .jsonl is looked at by its first 1,000 rows. Raise `UsageError` when
    it can't be read; a missing package for its format is left to `open_rows`.
    """
    by_header = recording.kind != "jsonl"
    rows = [dict.fromkeys(_header(recording), "")] if by_header else _first_objects(recording)
    found: dict[str, str | None] = {}
    for column, names in choices.items():
        held = (each for each in names if any(value_at(row, each) is not None for row in rows))
        # a name that the user gives has no alternative: a file without it is an error
        is_optional = len(names) > 1 and by_header and column not in NEEDED
        found[column] = next(held, column if is_optional else next(iter(names), None))
    return Columns(**found)  # type: ignore[arg-type]


def read_delimiter(text: str) -> str:
    r"""Return the delimiter that an option names. Raise ValueError for none.

    >>> read_delimiter("tab"), read_delimiter(r"\t"), read_delimiter("::")
    ('\t', '\t', '::')
    """
    named = {word: each for each, word in DELIMITERS.items()} | {r"\t": "\t"}
    found = named.get(text, text)
    if not found or set(found) & set('"\r\n'):
        raise ValueError(text)
    return found


def _kind_of(head: bytes) -> Kind | None:
    """Return a file's kind by its first bytes; None for text that may be delimited."""
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else None


def _head(path: Path, name: str) -> tuple[bytes, bool]:
    """Return a file's first bytes, unpacked, and whether it is packed with gzip."""
    packed = name.lower().endswith(".gz")
    if not packed:
        with FileBytes(path, name, packed).open() as raw:
            head = raw.read(HEAD_BYTES)
        if not head.startswith(GZIP):
            return head, False
    with FileBytes(path, name, packed=True).open() as unpacked:
        return unpacked.read(HEAD_BYTES), True


def _lines(head: bytes) -> list[str]:
    """Return the first lines of a text that are not empty, without a last one that is cut."""
    lines = re.split(r"\r\n?|\n", head.decode("utf-8-sig", "replace"))
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    return [line for line in whole if line][:HEAD_LINES]


def _splitting(name: str, lines: list[str], tried: list[str], header: Sequence[str]) -> str:
    """Return the delimiter that makes as many fields of most lines as there are names."""
    fits = {each: sum(len(_fields(line, each)) == len(header) for line in lines) for each in tried}
    best = max(tried, key=fits.__getitem__)
    if not fits[best]:
        found = len(_fields(lines[0], best)) if len(tried) == 1 else "another number of"
        raise UsageError(
            f"{name}: --columns names {len(header)} columns, but the first line has {found} fields: "
            f"{shown(lines[0])}; expected a name for each field, and --delimiter where it is none of "
            f"{', '.join(DELIMITERS.values())}"
        )
    return best


def _fields(line: str, delimiter: str) -> list[str]:
    return line_splitter(delimiter)(line) or []


def _names_all(line: str, delimiter: str, choices: Choices) -> bool:
    names = set(_fields(line, delimiter))
    return all(names & set(choices[column]) for column in NEEDED)


def _is_movielens(lines: list[str], delimiter: str) -> bool:
    """Return whether all lines are user, item, rating and Unix time, separated by a tab or `::`."""
    if delimiter not in ("\t", "::"):
        return False
    rows = [line.replace(delimiter, "\t") for line in lines]
    return all(_RATING.fullmatch(row) and is_time(row.split("\t")[3]) for row in rows)


def _header(recording: Recording) -> list[str]:
    """Return the names in a file's header; none where reading its rows raises the error."""
    if recording.kind == "parquet":
        return names_in(recording.path)
    return CsvRows(recording, Tally()).header()


def _first_objects(recording: Recording) -> list[dict[str, Any]]:
    """Return the first rows of a .jsonl that can be parsed."""
    objects = []
    with FileBytes(recording.path, recording.name, recording.packed).open() as binary:
        for line in islice(binary, OBJECTS):
            try:
                text = line.decode("utf-8-sig").strip()
                objects.append(msgspec.json.decode(text, type=dict[str, Any]))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
    return objects

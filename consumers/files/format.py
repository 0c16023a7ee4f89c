"""How a file is read: its kind, what separates its fields, and whether its first line names them.

What is not said is found only where it is certain: by the name's ending, by a header line that holds the
names looked for, or by the form of MovieLens ratings (`u.data`, `ratings.dat`): user, item, rating and Unix
time, without a header, separated by a tab or `::`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from consumers.files.csv_rows import line_splitter
from consumers.files.recording import GZIP, FileBytes, Kind, Recording
from consumers.files.rows import NEEDED, Columns
from pipeline.errors import UsageError
from pipeline.events.checks import EARLIEST_MS, TimeUnit, any_ms, shown

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe", "::": "double colon"}
HEAD_BYTES = 1 << 16  # of a file that are looked at
HEAD_LINES = 100
MOVIELENS = ("user", "item", "value", "timestamp")
_RATING = re.compile(r"\d{1,9}\t\d{1,9}\t(\d|10)(\.\d)?\t\d{9,10}", re.ASCII)
Choices = Mapping[str, Sequence[str]]  # for each of our columns the names that it may have; none: not read


def by_name(path: Path, columns: Columns, time_unit: TimeUnit | None, default_type: str) -> Recording:
    """Return how a file is read by its name alone. Raise `UsageError` for an ending that is not known."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    kind = _kind(name.removesuffix(".gz"))
    if kind is None:
        raise UsageError(f"{path}: {_unknown()}")
    delimiter = "\t" if name.removesuffix(".gz").endswith(".tsv") else ","
    return Recording(
        path,
        str(path),
        kind,
        packed,
        delimiter,
        columns=columns,
        time_unit=time_unit,
        default_type=default_type,
    )


def recognised(
    path: Path,
    name: str,
    choices: Choices,
    delimiter: str | None = None,
    header: tuple[str, ...] | None = None,
) -> Recording:
    """Return how a file is read: as given, else as its name or its first lines say.

    `name` is what messages call it; its columns are not looked for. Raise `UsageError` for a file that can't
    be read, for what can't be found with certainty, and for options that don't fit the file.
    """
    head, packed = _head(path, name)
    lower = name.lower().removesuffix(".gz")
    kind = _kind(lower)
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
    if header:
        return Recording(path, name, "csv", packed, _splitting(name, lines, delimiter, header), header)
    tried = [delimiter] if delimiter else ["\t"] if lower.endswith(".tsv") else list(DELIMITERS)
    found = next((each for each in tried if _names_all(lines[0], each, choices)), None)
    if found is None and any(_is_movielens(lines, each) for each in tried):
        return Recording(
            path, name, "csv", packed, next(each for each in tried if _is_movielens(lines, each)), MOVIELENS
        )
    if found is None:
        found = max(tried, key=lambda each: len(_fields(lines[0], each)))
        if _holds_time(_fields(lines[0], found)):
            raise UsageError(
                f"{name}: no header line; the first line is {shown(lines[0])}: name its columns, "
                "such as --columns user,item,timestamp"
            )
        if kind is None and not delimiter:
            raise UsageError(f"{name}: {_unknown()}")
    return Recording(path, name, "csv", packed, found)


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


def _kind(name: str) -> Kind | None:
    endings: dict[str, Kind] = {
        ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    }  # fmt: skip
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)


def _kind_of(head: bytes) -> Kind | None:
    """Return the kind that a file's first bytes tell; None for text that may be delimited."""
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else None


def _unknown() -> str:
    return (
        f"unknown kind of file; expected a name that ends in {', '.join(SUFFIXES)}, a header line with "
        "the names of its columns, or --columns"
    )


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
    """Return the first lines of a text, those without anything left out; the last one may be cut."""
    text = head.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    return [line for line in whole if line][:HEAD_LINES]


def _splitting(name: str, lines: list[str], delimiter: str | None, header: Sequence[str]) -> str:
    """Return the delimiter that makes as many fields of most lines as there are names."""
    tried = [delimiter] if delimiter else list(DELIMITERS)
    fits = {each: sum(len(_fields(line, each)) == len(header) for line in lines) for each in tried}
    best = max(tried, key=fits.__getitem__)
    if not fits[best]:
        found = len(_fields(lines[0], best)) if delimiter else "another number of"
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
    if delimiter not in ("\t", "::"):
        return False
    rows = [line.replace("::", "\t") if delimiter == "::" else line for line in lines]
    return all(_RATING.fullmatch(row) and _holds_time(row.split("\t")[3:]) for row in rows)


def _holds_time(fields: Sequence[str]) -> bool:
    for field in fields:
        try:
            if any_ms(field) >= EARLIEST_MS:
                return True
        except ValueError:
            continue
    return False

"""Made-up shoppers into a file, as `consumers.files.source` reads it: the same bytes for the same seed."""

import csv
import gzip
import io
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from producers.simulator.market import Columns, wire_events

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
HEADER = ("user", "item", "timestamp", "event", "value")
START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z: a file doesn't depend on the day on which it is made


def check_file(path: Path) -> None:
    """Raise `UsageError` when a file of that name can't be written."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"--out {path}: expected a name that ends with {', '.join(SUFFIXES)}")
    check_folder("--out", path)


def check_folder(option: str, path: Path) -> None:
    """Raise `UsageError` when the folder that a file is to lie in doesn't exist, or the file is a folder."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: expected a file in a folder that exists")


def write_events(path: Path, chunks: Iterable[Columns]) -> int:
    """Write all events, times in ms; values are empty. Return how many. Raise `UsageError` when the disk
    refuses."""
    written = 0
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("wb"))
            packed = path.name.endswith(".gz")
            # no name and no time in the head of the file: they would make it differ
            out = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if packed else raw
            text = stack.enter_context(io.TextIOWrapper(out, "utf-8", newline=""))
            is_csv = path.name.endswith((".csv", ".csv.gz"))
            if is_csv:
                csv.writer(text, lineterminator="\n").writerow(HEADER)
            for columns in chunks:
                written += len(columns.user_B)
                text.write(_csv_text(columns) if is_csv else _json_text(columns))
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror or error}") from error
    return written


def _csv_text(columns: Columns) -> str:
    """No id of a shopper or an item holds a comma or a quote."""
    return "".join(
        f"{event.user_id},{event.item_id},{event.timestamp_ms},{event.event_type},\n"
        for event in wire_events(columns, START_MS)
    )


def _json_text(columns: Columns) -> str:
    encode = msgspec.json.Encoder().encode_lines
    rows = [
        dict(zip(HEADER, (event.user_id, event.item_id, event.timestamp_ms, event.event_type), strict=False))
        for event in wire_events(columns, START_MS)
    ]
    return encode(rows).decode()

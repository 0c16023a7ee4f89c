"""Write simulated events to a file that `consumers.files.source` reads; same seed, same bytes."""

import csv
import gzip
import io
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from producers.simulator.events import Columns, wire_events

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
HEADER = ("user", "item", "timestamp", "event")
START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z, so that a file doesn't depend on the day it is written


def check_file(path: Path) -> None:
    """Raise `UsageError` when no file of this name can be written."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"--out {path}: expected a name that ends with {', '.join(SUFFIXES)}")
    check_folder("--out", path)


def check_folder(option: str, path: Path) -> None:
    """Raise `UsageError` when the folder of a file doesn't exist, or the file is a folder."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: expected a file in a folder that exists")


def write_events(path: Path, chunks: Iterable[Columns]) -> int:
    """Write all events with times in ms and empty values, and return how many. Raise `UsageError` when the
    file can't be written."""
    written = 0
    is_csv = path.name.endswith((".csv", ".csv.gz"))
    encode = msgspec.json.Encoder().encode_lines
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("wb"))
            # no file name and no time in the header: they would make files differ
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.name.endswith(".gz") else None
            out = raw if packed is None else stack.enter_context(packed)
            text = stack.enter_context(io.TextIOWrapper(out, "utf-8", newline=""))
            writer = csv.writer(text, lineterminator="\n")
            if is_csv:
                writer.writerow((*HEADER, "value"))
            for columns in chunks:
                rows = [
                    (event.user_id, event.item_id, event.timestamp_ms, event.event_type)
                    for event in wire_events(columns, START_MS)
                ]
                written += len(rows)
                if is_csv:
                    writer.writerows((*row, "") for row in rows)
                else:
                    text.write(encode([dict(zip(HEADER, row, strict=True)) for row in rows]).decode())
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror or error}") from error
    return written

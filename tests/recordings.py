"""Recorded files for tests and benchmarks: read by the suffix of their names, as written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consumers.files.recording import NO_MAPPING, Kind, Recording
from consumers.files.source import read_events
from pipeline.events.batch import Events
from pipeline.settings import EventsConfig

KINDS: dict[str, tuple[Kind, str]] = {
    ".csv": ("csv", ","), ".tsv": ("csv", "\t"), ".jsonl": ("jsonl", ""), ".parquet": ("parquet", ""),
}  # fmt: skip


def recording_of(path: Path | str, settings: EventsConfig = NO_MAPPING, **options: Any) -> Recording:
    """Return how a file is read; `settings` is its [events]."""
    path = Path(path)
    name = path.name.lower()
    kind, delimiter = KINDS[Path(name.removesuffix(".gz")).suffix]
    packed = name.endswith(".gz")
    ignored = settings.ignored()
    return Recording(path, str(path), kind, packed, delimiter, ignored=ignored, events=settings, **options)


def read_recording(path: Path | str, batch: int, **options: Any) -> Iterator[Events]:
    """Yield the events of a file; `options` are those of `recording_of` and of `read_events`."""
    reading = {name: options.pop(name) for name in ("now_ms", "start", "limit", "tally") if name in options}
    return read_events(recording_of(path, **options), batch, **reading)

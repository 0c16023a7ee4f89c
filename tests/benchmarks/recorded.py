"""The recorded streams that benchmarks of quality run on: where they lie, and how each is to be read.

A folder for each, as `FOLDER/events*.csv.gz` with the columns user,item,timestamp,event[,value]; the folder
that holds them all is named by --data or AFRESH_DATA. One process, one thread: set OMP_NUM_THREADS=1.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from consumers.file_source import read_events
from pipeline.event.batch import Events
from pipeline.settings import RankConfig, Settings

NOW_MS = 1_780_000_000_000  # after every recorded event


class Stream(NamedTuple):
    """One recorded stream. `repeats`: consumed items may be recommended again."""

    name: str
    folder: str
    repeats: bool = False


STREAMS = (
    Stream("globo", "globo"),
    Stream("movietweetings", "movietweetings"),
    Stream("30music", "30music-sample", repeats=True),
    Stream("taobao", "taobao-buy-cart-fav"),
)


def add_options(parser: argparse.ArgumentParser, events: int = 40_000) -> None:
    """Declare where the streams are, which of them to use, and how far to read."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("AFRESH_DATA"),
        help="folder of the streams (or AFRESH_DATA)",
    )
    parser.add_argument("--events", type=int, default=events, help=f"of each stream (default: {events})")
    names = [stream.name for stream in STREAMS]
    parser.add_argument("--streams", default=",".join(names), help=f"default: {','.join(names)}")


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Stream]:
    """Return the streams that were asked for; end the program where they are not to be found."""
    if options.data is None:
        parser.error("no data: name the folder of the streams by --data or AFRESH_DATA")
    wanted = options.streams.split(",")
    streams = [stream for stream in STREAMS if stream.name in wanted]
    if len(streams) != len(wanted):
        parser.error(
            f"--streams {options.streams}: expected some of {','.join(each.name for each in STREAMS)}"
        )
    for stream in streams:
        path_of(options.data, stream)
    return streams


def path_of(data: Path, stream: Stream) -> Path:
    """Return a stream's file. Raise FileNotFoundError where there is none."""
    found = sorted(Path(data, stream.folder).glob("events*.csv.gz"))
    if not found:
        raise FileNotFoundError(f"{Path(data, stream.folder)}: expected a file events*.csv.gz")
    return found[0]


def settings_for(stream: Stream, settings: Settings) -> Settings:
    """Return the settings, repeats allowed where the stream has them."""
    return msgspec.structs.replace(settings, rank=RankConfig(exclude=[] if stream.repeats else None))


def events_of(data: Path, stream: Stream, events: int, batch: int) -> Iterator[Events]:
    """Yield the first events of a stream in batches."""
    return read_events(path_of(data, stream), batch, now_ms=NOW_MS, limit=events)

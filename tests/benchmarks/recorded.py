"""The recorded streams that benchmarks of quality run on: where they lie, and how each is to be read.

A folder for each, as `FOLDER/events*.csv.gz` with the columns user,item,timestamp,event[,value]; the folder
that holds them all is named by --data or AFRESH_DATA. One process, one thread.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers

import msgspec
from recordings import read_recording

from pipeline.events.batch import Events
from pipeline.settings import RankConfig, Settings

NOW_MS = 1_780_000_000_000  # after every recorded event


class Stream(NamedTuple):
    """One recorded stream. `repeats`: consumed items may be recommended again. `whole`: how many events count
    as the whole of it (0: all).
    """

    name: str
    folder: str
    repeats: bool = False
    whole: int = 0


STREAMS = (
    Stream("globo", "globo", whole=300_000),
    Stream("movietweetings", "movietweetings"),
    Stream("30music", "30music-sample", repeats=True),
    Stream("taobao", "taobao-buy-cart-fav"),
    Stream("online-retail", "online-retail", whole=200_000),
)


def add_options(parser: argparse.ArgumentParser, events: int = 40_000) -> None:
    """Declare where the streams are, which of them to use, and how far to read."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("AFRESH_DATA"),
        help="folder of the streams (or AFRESH_DATA)",
    )
    parser.add_argument(
        "--events", type=int, default=events, help=f"of each stream; 0: the whole (default: {events})"
    )
    names = ",".join(stream.name for stream in STREAMS)
    parser.add_argument(
        "--streams",
        default=names,
        help=f"some of these, or other folders, as FOLDER or FOLDER:repeats (default: {names})",
    )


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Stream]:
    """Return the streams that were asked for; end the program where they are not to be found."""
    if options.data is None:
        parser.error("no data: name the folder of the streams by --data or AFRESH_DATA")
    known = {stream.name: stream for stream in STREAMS}
    streams = []
    for text in options.streams.split(","):
        folder, _, how = text.partition(":")
        if how not in ("", "repeats"):
            parser.error(f"--streams {text}: expected FOLDER or FOLDER:repeats")
        streams.append(known.get(text) or Stream(folder, folder, how == "repeats"))
    for stream in streams:
        try:
            path_of(options.data, stream)
        except FileNotFoundError as error:
            parser.error(str(error))
    return streams


def path_of(data: Path, stream: Stream) -> Path:
    """Return a stream's file. Raise FileNotFoundError where there is none."""
    found = sorted(Path(data, stream.folder).glob("events*.csv.gz"))
    if not found:
        raise FileNotFoundError(f"{Path(data, stream.folder)}: expected a file events*.csv.gz")
    return found[0]


def settings_for(stream: Stream, settings: Settings) -> Settings:
    """Return the settings, repeats allowed where the stream has them."""
    return msgspec.structs.replace(
        settings, rank=RankConfig(exclude_event_types=[] if stream.repeats else None)
    )


def events_of(data: Path, stream: Stream, events: int, batch: int) -> Iterator[Events]:
    """Yield the first events of a stream in batches; 0 events: the whole."""
    return read_recording(path_of(data, stream), batch, now_ms=NOW_MS, limit=events or stream.whole or None)

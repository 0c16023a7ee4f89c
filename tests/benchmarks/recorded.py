"""The recorded streams that benchmarks of quality run on: where they are, and how each is read.

One folder each, as `FOLDER/events*.csv.gz` with the columns user,item,timestamp,event[,value]; the folder
that holds them all is given by --data or AFRESH_DATA.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bench  # noqa: F401  # the path of `recordings`
import msgspec
from recordings import read_recording

from pipeline.events.batch import Events
from pipeline.settings import RankConfig, Settings

NOW_MS = 1_780_000_000_000  # after every recorded event


class Stream(NamedTuple):
    """One recorded stream."""

    name: str
    folder: str
    repeats: bool = False  # consumed items may be recommended again
    whole: int = 0  # events that count as the whole of it; 0: all


STREAMS = (
    Stream("globo", "globo", whole=300_000),
    Stream("movietweetings", "movietweetings"),
    Stream("30music", "30music-sample", repeats=True),
    Stream("taobao", "taobao-buy-cart-fav"),
    Stream("online-retail", "online-retail", whole=200_000),
)
BY_NAME = {stream.name: stream for stream in STREAMS}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declare where the streams are."""
    data = os.environ.get("AFRESH_DATA")
    parser.add_argument("--data", type=Path, default=data, help="folder of the streams (or AFRESH_DATA)")


def add_options(parser: argparse.ArgumentParser, events: int = 40_000) -> None:
    """Declare where the streams are, which of them to use, and how far to read."""
    add_data(parser)
    parser.add_argument(
        "--events", type=int, default=events, help=f"of each stream; 0: the whole (default: {events})"
    )
    names = ",".join(BY_NAME)
    parser.add_argument(
        "--streams", default=names,
        help=f"some of these, or other folders, as FOLDER or FOLDER:repeats (default: {names})",
    )  # fmt: skip


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Stream]:
    """Return the streams that were asked for; end the program if one is missing."""
    if options.data is None:
        parser.error("no data: name the folder of the streams by --data or AFRESH_DATA")
    streams = []
    for text in options.streams.split(","):
        folder, _, how = text.partition(":")
        if how not in ("", "repeats"):
            parser.error(f"--streams {text}: expected FOLDER or FOLDER:repeats")
        streams.append(BY_NAME.get(text) or Stream(folder, folder, how == "repeats"))
    for stream in streams:
        try:
            path_of(options.data, stream)
        except FileNotFoundError as error:
            parser.error(str(error))
    return streams


def path_of(data: Path, stream: Stream) -> Path:
    """Return a stream's file. Raise FileNotFoundError without one."""
    found = sorted(Path(data, stream.folder).glob("events*.csv.gz"))
    if not found:
        raise FileNotFoundError(f"{Path(data, stream.folder)}: expected a file events*.csv.gz")
    return found[0]


def settings_for(stream: Stream, settings: Settings) -> Settings:
    """Return the settings, with repeats allowed if the stream has them."""
    exclude = [] if stream.repeats else None
    return msgspec.structs.replace(settings, rank=RankConfig(exclude_event_types=exclude))


def events_of(data: Path, stream: Stream, events: int, batch: int) -> Iterator[Events]:
    """Yield the first events of a stream in batches; 0 events: the whole."""
    return read_recording(path_of(data, stream), batch, now_ms=NOW_MS, limit=events or stream.whole or None)

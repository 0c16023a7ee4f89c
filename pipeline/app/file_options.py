"""The options that describe a recorded file, shared by several commands."""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.settings import FIELD_OF, Settings, names_of
from producers.simulator.options import whole

if TYPE_CHECKING:
    from consumers.files.recording import Recording


NONE = "none"  # the name of a column that is not read
OPTIONAL = ("event", "value")

logger = logging.getLogger(__name__)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, the slice of it, the names of its columns and the unit of its times."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".csv, .tsv, .jsonl (each also .gz), .parquet, other text, or - for stdin",
    )
    parser.add_argument("--start", type=whole(0), default=0, metavar="N", help="leave out the first N events")
    add_column_options(parser)


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Declare what separates the file's columns, their names and the unit of its times."""
    group = parser.add_argument_group(
        "columns of the file",
        "Without an option: the first that the file has of the name in [events] fields, the plain one\n"
        "and the topic's. In .jsonl a name such as payload.user.id is a path into nested objects.",
    )
    for column, field in FIELD_OF.items():
        plain = " or ".join(dict.fromkeys((column, field)))
        none = f"; {NONE}: it is not read" if column in OPTIONAL else ""
        group.add_argument(
            f"--{column}-column", metavar="NAME",
            help=f"holds the {column} (default: as events.fields.{field}, else {plain}{none})",
        )  # fmt: skip
    group.add_argument(
        "--columns", type=_names, metavar="A,B,C",
        help="names of the columns of a file without a header line, such as user,item,value,timestamp",
    )  # fmt: skip
    group.add_argument(
        "--delimiter", type=_delimiter, metavar="D",
        help="between the fields: tab, ';', '|', '::' ... (default: found by the file's name or header)",
    )  # fmt: skip
    group.add_argument(
        "--time-unit", choices=("auto", "s", "ms", "us", "ns", "iso"),
        help="of the timestamps: seconds to nanoseconds, ISO 8601 (default: auto, found from the times)",
    )  # fmt: skip


def recording_of(args: argparse.Namespace, settings: Settings, path: Path) -> "Recording":
    """Return how the file, stored at `path`, is read: by the options, else by [events] fields; log it.

    Raise `UsageError` when the file can't be read so.
    """
    from consumers.files.format import DELIMITERS, find_columns, recognised  # numpy is not needed for help

    name, choices = str(args.file), _choices(args, settings)
    recording = recognised(path, name, choices, args.delimiter, args.columns)
    columns = find_columns(recording, choices)
    found = []
    if recording.delimiter not in (",", args.delimiter):
        found.append(f"separated by {DELIMITERS[recording.delimiter]}")
    if recording.header is not None and args.columns is None:
        found.append(f"no header line, MovieLens: {', '.join(recording.header)}")
    if found:
        logger.info("%s: %s", name, "; ".join(found))
    chosen = [
        f"{column} = {named}"
        for column, named in columns._asdict().items()
        if named != column and len(choices[column]) > 1
    ]
    if chosen:
        logger.info("columns of %s: %s", name, ", ".join(chosen))
    return dataclasses.replace(
        recording,
        columns=columns,
        time_unit=None if args.time_unit == "auto" else args.time_unit,
        default_type=next(iter(settings.topics.event_topics().values())),
        ignored=settings.events.ignored(),
        events=settings.events,
    )


def _choices(args: argparse.Namespace, settings: Settings) -> dict[str, list[str]]:
    """Return the names that each of our columns may have in the file."""
    choices: dict[str, list[str]] = {}
    for column, field in FIELD_OF.items():
        given = getattr(args, f"{column}_column")
        mapped = names_of(settings.events.fields.get(field, column))
        if given == NONE and column in OPTIONAL:
            choices[column] = []
        else:
            choices[column] = [given] if given else list(dict.fromkeys((*mapped, column, field)))
    return choices


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    named = [name for name in names if name]
    if not named or len(set(named)) < len(named):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different names of columns, such as a,b,c")
    return names


def _delimiter(text: str) -> str:
    from consumers.files.format import read_delimiter

    try:
        return read_delimiter(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected the text between two fields, without quotes and line ends"
        ) from None


def not_negative(text: str) -> float:
    """Read a finite number of 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of 0 or more")
    return number

"""The options by which commands are told how to read a recorded file."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.settings import FIELD_OF, Settings, names_of

if TYPE_CHECKING:
    from consumers.file_source import Columns


logger = logging.getLogger(__name__)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, the slice of it, the names of its columns and the unit of its times."""
    parser.add_argument("file", metavar="FILE", help=".csv, .csv.gz, .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--start", type=count, default=0, metavar="N", help="leave out the first N events")
    add_column_options(parser)


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Declare the names of the file's columns and the unit of its times."""
    group = parser.add_argument_group(
        "columns of the file",
        "Without an option: the first that the file has of the name in [events] fields, the plain one\n"
        "and the topic's. In .jsonl a name such as payload.user.id is a path into nested objects.",
    )
    for column, field in FIELD_OF.items():
        plain = " or ".join(dict.fromkeys((column, field)))
        group.add_argument(
            f"--{column}-column", metavar="NAME",
            help=f"holds the {column} (default: as events.fields.{field}, else {plain})",
        )  # fmt: skip
    group.add_argument(
        "--time-unit", choices=("s", "ms", "iso"),
        help="of the timestamps: seconds, milliseconds, ISO 8601 (default: found from the first rows)",
    )  # fmt: skip


def columns_of(args: argparse.Namespace, settings: Settings) -> "Columns":
    """Return the names of the columns: those given, else those of the topic's records that the file has.

    So an export of a topic is read by the very configuration that its records are read by. Names that were
    found so are logged. Raise `UsageError` when the file can't be read.
    """
    from consumers.file_names import find_columns  # numpy is not needed for help

    choices: dict[str, list[str]] = {}
    for column, field in FIELD_OF.items():
        given = getattr(args, f"{column}_column")
        mapped = names_of(settings.events.fields.get(field, column))
        choices[column] = [given] if given else list(dict.fromkeys((*mapped, column, field)))
    columns = find_columns(Path(args.file), choices)
    chosen = [
        f"{column} = {name}"
        for column, name in columns._asdict().items()
        if name != column and len(choices[column]) > 1
    ]
    if chosen:
        logger.info("columns of %s: %s", args.file, ", ".join(chosen))
    return columns


def count(text: str) -> int:
    """Read a whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return number


def not_negative(text: str) -> float:
    """Read a finite number of 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of 0 or more")
    return number

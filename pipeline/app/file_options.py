"""The options by which commands are told how to read a recorded file."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumers.file_source import Columns

COLUMNS = ("user", "item", "timestamp", "event", "value")


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, the slice of it, the names of its columns and the unit of its times."""
    parser.add_argument("file", metavar="FILE", help=".csv, .csv.gz, .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--start", type=count, default=0, metavar="N", help="leave out the first N events")
    group = parser.add_argument_group(
        "columns of the file", "Names; in .jsonl a path such as payload.user.id leads into nested objects."
    )
    for column in COLUMNS:
        text = f"holds the {column} (default: {column})"
        group.add_argument(f"--{column}-column", default=column, metavar="NAME", help=text)
    group.add_argument(
        "--time-unit", choices=("s", "ms", "iso"),
        help="of the timestamps: seconds, milliseconds, ISO 8601 (default: found from the first rows)",
    )  # fmt: skip


def columns_of(args: argparse.Namespace) -> "Columns":
    """Return the names of the columns."""
    from consumers.file_source import Columns

    return Columns(*(getattr(args, f"{column}_column") for column in COLUMNS))


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

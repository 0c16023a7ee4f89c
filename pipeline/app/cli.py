"""The script `afresh`: find the command, read the configuration, set up logging, turn errors into exit codes.

Only the module of the command is imported, and it imports heavy modules only when it runs.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol, cast

from pipeline.app.console import guard_streams, stdout_error
from pipeline.errors import AfreshError
from pipeline.settings import Settings

COMMANDS = (
    "demo", "run", "replay", "simulate", "evaluate", "train",
    "inspect", "report", "watch", "broker", "check",
)  # fmt: skip
LOG_LEVELS = ("debug", "info", "warning", "error")
INTERRUPTED = 130
READER_CLOSED = 141  # a shell's code of a process that SIGPIPE ended

# The Kafka client logs many attempts to connect a second as errors, numba byte code, matplotlib fonts
LIBRARY_LEVELS = {"kafka": logging.CRITICAL, "matplotlib": logging.ERROR, "numba": logging.WARNING}

logger = logging.getLogger(__name__)


class Command(Protocol):
    """The interface of a module in commands/."""

    HELP: str  # the first line is shown in the list of commands
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace, settings: Settings) -> int: ...


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `afresh` and return its exit code. Unexpected errors pass through, with their traceback.

    A command completes its work even where stdout can't be written; the exit code reports that.
    """
    guard_streams()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    sys.stdout.flush()
    error = stdout_error()
    if error is None:
        return code
    if isinstance(error, BrokenPipeError):
        return code or READER_CLOSED
    print(f"afresh: stdout can't be written: {error.strerror}; everything else is done", file=sys.stderr)
    return code or 1


def _run(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except AfreshError as error:
        print(f"afresh: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        from importlib.metadata import version  # 20 ms that no other call needs

        print(f"afresh {version('afresh')}")
        return 0
    if name not in COMMANDS:
        print(f"afresh: {_no_command(name)} (see afresh --help)", file=sys.stderr)
        return 2
    command = _load(name)
    try:
        args = _parser(name, command).parse_args(argv[1:])
    except SystemExit as shown:  # help, or the parser's line of error
        return int(shown.code or 0)
    _set_up_logging(args.log_level)
    from pipeline.app.config import describe, load_settings  # not needed for help
    from pipeline.thread_limits import limit_threads

    settings = load_settings(args.config, args.sets, os.environ)
    limit_threads(settings.model.threads)
    level = logging.INFO if name == "run" else logging.DEBUG
    logger.log(level, "configuration:\n%s", describe(settings))
    return command.run(args, settings)


def _load(name: str) -> Command:
    return cast(Command, importlib.import_module(f"pipeline.app.commands.{name}"))


def _parser(name: str, command: Command) -> Parser:
    parser = Parser(
        prog=f"afresh {name}", description=command.HELP,
        epilog="example:\n" + textwrap.indent(command.EXAMPLE.strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    command.add_arguments(parser)
    common = parser.add_argument_group("common options")
    common.add_argument("--config", type=Path, metavar="FILE", help="configuration in TOML")
    common.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="KEY=VALUE",
        help="set one key, such as batch.max_events=128; may be repeated",
    )  # fmt: skip
    common.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="how much is logged to stderr (default: info)"
    )
    return parser


def _overview() -> str:
    lines = [
        "usage: afresh COMMAND [options]",
        "",
        "A recommender that learns from the stream: events in from Kafka, refreshed rankings out.",
        "",
        "commands:",
        *(f"  {name:<10}{_load(name).HELP.strip().splitlines()[0]}" for name in COMMANDS),
        "",
        "options:",
        "  -h, --help      show this; afresh COMMAND --help shows the options of a command",
        "  -V, --version   show the version",
        "",
        "Every command takes --config FILE, --set table.key=value and --log-level LEVEL. The environment",
        "sets keys too: AFRESH_TABLE__KEY=value. A flag wins over the environment, that over the file.",
    ]
    return "\n".join(lines)


def _no_command(name: str) -> str:
    if close := difflib.get_close_matches(name, COMMANDS, 1, 0.5):
        return f"no command {name!r}; did you mean {close[0]!r}?"
    problem = f"no command {name!r}" if name else "no command given"
    if name.startswith("-"):
        problem = f"{name}: a command comes first"
    return f"{problem}; expected one of {', '.join(COMMANDS)}"


def _set_up_logging(level: str) -> None:
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()  # stderr: stdout is for products
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library, least in LIBRARY_LEVELS.items():
        logging.getLogger(library).setLevel(least if level != "debug" else logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

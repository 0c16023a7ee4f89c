"""`afresh watch`: rankings as they are published."""

import argparse
import signal
import sys
from contextlib import closing, suppress

from pipeline.app.console import signals_to, stdout_error
from pipeline.settings import Settings

HELP = """Show rankings as they are published, until Ctrl-C.

Without --user those of all users, one line each; with it the newest list of that user on the topic, then
each new one, with its reasons. --json prints each record as published, one a line. Users that are forgotten
and the list of users without events (__default__) are shown too. No group is joined."""
EXAMPLE = "afresh watch --user ann\nafresh watch --json | jq .items[0].item_id"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", action="append", default=[], dest="users", metavar="ID",
        help="only this user's; may be repeated",
    )  # fmt: skip
    parser.add_argument("--from-beginning", action="store_true", help="first everything that the topic holds")
    parser.add_argument("--drift", action="store_true", help="drift alarms too")
    parser.add_argument("--json", action="store_true", help="one JSON document a line")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print what is published; return 0 after SIGINT or SIGTERM. Raise as `pipeline.app.watching.watch`."""
    from pipeline.app.watching import Wanted, watch  # help needs no Kafka client

    def opened() -> None:
        print(f"watching {settings.topics.recommendations}; Ctrl-C ends it", file=sys.stderr)

    wanted = Wanted(args.users, args.from_beginning, args.drift, args.json)
    with (
        suppress(KeyboardInterrupt),
        signals_to(signal.default_int_handler),
        closing(watch(settings, wanted, opened)) as lines,
    ):
        for line in lines:
            print(line, flush=True)
            if stdout_error():  # the reader has closed
                break
    return 0

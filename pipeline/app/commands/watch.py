"""`afresh watch`: rankings as they come."""

import argparse
import signal
import sys
from contextlib import closing, suppress

from pipeline.app.interruption import signals_to
from pipeline.app.output import stdout_error
from pipeline.settings import Settings

HELP = """Show rankings as they are published, until Ctrl-C.

Without --user everybody's, a line each; with it the newest list that the topic holds for that user, then each
new one, with its reasons. --json prints each record as it lies on the topic, one a line. A user who is
forgotten and the list of people without events (__default__) are shown too. No group is joined."""
EXAMPLE = "afresh watch --user ann\nafresh watch --json | jq .items[0].item_id"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        dest="users",
        metavar="ID",
        help="only this user's; may be repeated",
    )
    parser.add_argument(
        "--from-beginning", action="store_true", help="first everything that the topic still holds"
    )
    parser.add_argument("--drift", action="store_true", help="drift alarms too")
    parser.add_argument("--json", action="store_true", help="one JSON document a line")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print what comes; 0 on the first SIGINT or SIGTERM. Raise as `pipeline.app.watching.watch` does."""
    from pipeline.app.watching import Wanted, watch  # the Kafka client is not needed for help

    def opened() -> None:
        print(f"watching {settings.topics.recommendations}; Ctrl-C ends it", file=sys.stderr)

    wanted = Wanted(args.users, args.from_beginning, args.drift, args.json)
    with (
        suppress(KeyboardInterrupt),  # as asked
        signals_to(signal.default_int_handler),
        closing(watch(settings, wanted, opened)) as lines,
    ):
        for line in lines:
            print(line, flush=True)
            if stdout_error():  # its reader has ended
                break
    return 0

"""`afresh inspect`: what is in a checkpoint."""

import argparse
import json

from pipeline.errors import UsageError
from pipeline.settings import Settings

HELP = """Show what the newest whole checkpoint holds; no broker is needed, and nothing is changed.

Offsets, digests (equal for equal content) and quality since the first event. Of a user: the history, what is
left out of the list and why, the list that would be served now with its reasons, and how the one last
published differs. Of an item: how popular it is, what follows it, how many lists hold it. The user
__default__ stands for people without events. What came after the checkpoint was saved isn't in it yet."""
EXAMPLE = "afresh inspect --checkpoint /var/lib/afresh --user ann\nafresh inspect --item running-47 --json"

HEADING = ("seq", "saved_at_ms", "events_learned")  # a line of its own says them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="folder or URL of the checkpoints (default: checkpoint.path)"
    )
    parser.add_argument("--user", metavar="ID", help="show this user instead")
    parser.add_argument("--item", metavar="ID", help="show this item instead")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line of stdout")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print what was asked for; 0 then. Raise `UsageError` when there is no checkpoint, user or item."""
    from pipeline.app.inspection import describe, lines, open_newest  # all of this is not needed for help
    from pipeline.app.inspection_view import heading, make_console, show
    from pipeline.recommender import Recommender

    path = args.checkpoint or settings.checkpoint.path
    if not path:
        raise UsageError(
            "no checkpoint named; expected --checkpoint PATH, or checkpoint.path in the configuration"
        )
    report = describe(open_newest(path, settings, Recommender), args.user, args.item)
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(heading(report))
        if args.user is None and args.item is None:
            print("\n".join(lines({name: report[name] for name in report if name not in HEADING})))
        show(report, make_console())
    return 0

"""`afresh inspect`: what is in a checkpoint."""

import argparse
import json

from pipeline.settings import Settings

HELP = """Show what the newest complete checkpoint holds; no broker is needed, and nothing is changed.

Offsets, digests (equal for equal content) and quality since the first event. Of a user: the history, the
excluded items and why, the list that would be published now with its reasons, and how the last published one
differs. Of an item: its popularity, what follows it, how many lists hold it. The user __default__ stands for
users without events. Events after the checkpoint are not in it."""
EXAMPLE = "afresh inspect --checkpoint /var/lib/afresh --user ann\nafresh inspect --item running-47 --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="folder or URL of the checkpoints (default: checkpoint.path)"
    )
    parser.add_argument("--user", metavar="ID", help="show this user instead")
    parser.add_argument("--item", metavar="ID", help="show this item instead")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line of stdout")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the report; return 0. Raise `UsageError` when there is no such checkpoint, user or item."""
    from pipeline.app.inspection import describe, open_newest, show  # help needs no torch and no rich

    report = describe(open_newest(args.checkpoint, settings), args.user, args.item)
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
    return 0

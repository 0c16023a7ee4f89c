"""`afresh report`: the figures that a checkpoint keeps, as a page."""

import argparse
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.settings import Settings

HELP = """Write one offline page with plots of the figures that a checkpoint keeps; no broker is needed.

Quality of every model over time with drift alarms, precision-recall and ROC curves, coverage, exposure, and
the figures since the first event. They are those of one worker, kafka.worker_id; where a folder holds the
checkpoints of several, each has a page of its own."""
EXAMPLE = "afresh report --checkpoint /var/lib/afresh --out report.html"
OUT = Path("afresh-report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="folder or URL of the checkpoints (default: checkpoint.path)"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help=f"where the page goes (default: {OUT})"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the page; 0 then. Raise `UsageError` when there is no checkpoint, or no writing there."""
    from pipeline.app.inspection import open_newest  # all of this is not needed for help
    from pipeline.app.report.gather import Extra, Fact, check_writable, day, gather, write
    from pipeline.app.report.page import page
    from pipeline.persistence.checkpoint import TRAINED
    from pipeline.recommender import Recommender
    from pipeline.service.clock import SystemClock

    path = args.checkpoint or settings.checkpoint.path
    if not path:
        raise UsageError(
            "no checkpoint named; expected --checkpoint PATH, or checkpoint.path in the configuration"
        )
    check_writable(args.out, "--out")
    opened = open_newest(path, settings, Recommender)
    manifest, recommender = opened.manifest, opened.learner
    trained = manifest.worker_id == TRAINED
    whose = "trained from a file" if trained else f"worker {manifest.worker_id}"
    facts = [
        Fact("worker", "none yet: trained from a file" if trained else manifest.worker_id),
        Fact("checkpoint", f"{manifest.seq:,} batches, saved {day(manifest.saved_at_ms)}"),
    ]
    others = [worker for worker in opened.workers if worker != manifest.worker_id]
    notes = []
    if others:
        notes.append(
            f"These are the figures of worker {manifest.worker_id} alone, on the users of its partitions; "
            f"checkpoints of {', '.join(others)} lie beside it."
        )
    models = {name: Extra(name) for name in recommender.quality.models}
    report = gather(recommender, models, f"afresh report: {whose}", facts, recommender.settings, notes)
    write(args.out, "--out", page(report, SystemClock().now_ms()))
    print(f"report: {args.out}, {whose}, {manifest.events_learned:,} events")
    return 0

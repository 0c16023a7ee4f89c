"""`afresh report`: the metrics that a checkpoint keeps, as a page."""

import argparse
from pathlib import Path

from pipeline.settings import Settings

HELP = """Write one offline page with plots of the metrics that a checkpoint keeps; no broker is needed.

Quality of every model over time with drift alarms, ROC curves, coverage, and the metrics
since the first event. They are of one worker, kafka.worker_id; where a folder holds the
checkpoints of several, each has a page of its own."""
EXAMPLE = "afresh report --checkpoint /var/lib/afresh --out report.html"
OUT = Path("afresh-report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="folder or URL of the checkpoints (default: checkpoint.path)"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help=f"where the page is written (default: {OUT})"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the page; return 0. Raise `UsageError` without a checkpoint, or where nothing can be written."""
    from pipeline.app.inspection import open_newest  # help needs no torch and no matplotlib
    from pipeline.app.report.gather import check_writable, day, gather, write
    from pipeline.app.report.page import page
    from pipeline.persistence.checkpoint import TRAINED
    from pipeline.service.clock import SystemClock

    check_writable(args.out, "--out")
    manifest, recommender, workers = open_newest(args.checkpoint, settings)
    worker = manifest.worker_id
    origin = "trained from a file" if worker == TRAINED else f"worker {worker}"
    facts = {
        "worker": f"none yet: {origin}" if worker == TRAINED else worker,
        "checkpoint": f"{manifest.seq:,} batches, saved {day(manifest.saved_at_ms)}",
    }
    notes = []
    if others := ", ".join(each for each in workers if each != worker):
        notes.append(
            f"These are the metrics of worker {worker} alone, on the users of its partitions; the folder "
            f"also holds checkpoints of {others}."
        )
    models = {name: name for name in recommender.quality.models}
    report = gather(recommender, models, f"afresh report: {origin}", facts, notes)
    write(args.out, "--out", page(report, SystemClock().now_ms()))
    print(f"report: {args.out}, {origin}, {manifest.events_learned:,} events")
    return 0

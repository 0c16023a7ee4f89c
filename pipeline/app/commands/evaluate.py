"""`afresh evaluate`: ranking quality on a recorded file."""

import argparse
import json
import sys
from pathlib import Path

import msgspec

from pipeline.app.evaluation import add_evaluation_options, document, evaluate_file, show
from pipeline.errors import UsageError
from pipeline.settings import Settings

HELP = """Measure ranking quality on a recorded file: each event is predicted, then learned. No broker.

Runs the service's code, batch by batch, beside baselines on the same events. An event is a test when its type
is positive and its item is not excluded for the user; ranks are exact, over all items known before the batch.
Each baseline has the best setting of a printed grid, chosen afterwards. --repeats recommends consumed items
again, as in music (rank.exclude_event_types = []). Rows that can't be read are counted and are in no batch.
A file that is not in order of time is sorted first, as a whole, where it has at most 10,000,000 events."""
EXAMPLE = (
    "afresh evaluate events.csv.gz --events 40000\n"
    "zcat ratings.gz | afresh evaluate - --columns user,item,value,timestamp\n"
    "afresh evaluate plays.parquet --repeats --report out.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_evaluation_options(parser)
    parser.add_argument("--repeats", action="store_true", help="a consumed item may be recommended again")
    parser.add_argument(
        "--models", type=_names, default=(), metavar="A,B,C",
        help="which to compare; NAME:key=value for other settings (default: model.name and all baselines)",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", choices=("candidates", "all"), default="candidates",
        help="rank within each query's candidates, as published, or over all items (slow)",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="OUT.html", help="write one offline page with plots")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Evaluate the file and print the metrics; return 0. Raise `UsageError` for a file without events."""
    from pipeline.app.report.gather import check_writable  # help needs no torch
    from pipeline.app.report.page import write_report
    from pipeline.service.prequential import compared

    if args.report is not None:
        check_writable(args.report, "--report")
    if args.repeats:
        settings = msgspec.structs.replace(
            settings, rank=msgspec.structs.replace(settings.rank, exclude_event_types=[])
        )
    try:
        evaluation, tally = evaluate_file(args, settings, compared(settings, args.models))
    except ValueError as error:
        raise UsageError(f"--models or [model]: {error}") from None
    result = evaluation.result()
    figures = {**document(args, result, tally), "repeats": settings.rank.exclude_event_types == []}
    if args.report is not None:
        write_report(args.report, figures, evaluation, result, [*tally.lines(), *tally.order()])
    show(args, settings, result, tally)
    if args.report is not None:
        print(f"report: {args.report}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))

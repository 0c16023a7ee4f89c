"""Prequential evaluation of a file for `evaluate` and `train`, and its metrics as tables and as JSON."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.app.console import progress_bar
from pipeline.app.file_options import add_file_options, recording_of
from pipeline.settings import Settings
from producers.simulator.options import whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from consumers.files.rows import Tally
    from pipeline.service.prequential import Evaluation, Line, Result, Variant

BATCH = 128
QUARTER_METRICS = ("tests", "hr@10", "ndcg@10", "mrr@10")
WIDTH = 120  # of tables where there is no terminal


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Declare the file, which of its events are learned, and how."""
    add_file_options(parser)
    parser.add_argument("--events", type=whole(1), metavar="N", help="how many (default: all)")
    parser.add_argument(
        "--batch", type=whole(1), default=BATCH, metavar="B",
        help=f"events that are predicted, then learned, together (default: {BATCH})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def evaluate_file(
    args: argparse.Namespace, settings: Settings, variants: Sequence["Variant"]
) -> tuple["Evaluation", "Tally"]:
    """Predict and learn the file; show a bar on stderr, where that is a terminal.

    Raise `UsageError` when the file can't be read or has no valid event.
    """
    from consumers.files.order import in_order
    from consumers.files.recording import readable_twice
    from consumers.files.rows import Tally
    from pipeline.errors import UsageError
    from pipeline.service.clock import SystemClock
    from pipeline.service.prequential import Evaluation

    clock, tally = SystemClock(), Tally()
    now_ms = clock.now_ms()
    evaluation = Evaluation(settings, variants, clock, getattr(args, "ranks", "") == "all")
    with readable_twice(args.file) as path, progress_bar() as move:
        chunks = in_order(
            recording_of(args, settings, path), args.batch,
            now_ms=now_ms, start=args.start, limit=args.events, tally=tally,
        )  # fmt: skip
        evaluation.learn(
            chunks, now_ms,
            lambda events: move(events / args.events if args.events else tally.share, events),
        )  # fmt: skip
    if not evaluation.recommender.events_learned:
        why = tally.lines()[0] if tally.rejected else f"nothing after the first {args.start} events"
        raise UsageError(f"{args.file}: no event to learn: {why}; expected one row or more that can be read")
    return evaluation, tally


def document(args: argparse.Namespace, result: "Result", tally: "Tally") -> dict[str, Any]:
    """Return the metrics as a JSON document."""
    return {
        "file": str(args.file),
        "events": result.events,
        "batch": args.batch,
        "rows": tally.rows,
        "learned": result.events - result.duplicates - tally.extra,
        "rejected": dict(tally.rejected),
        "ignored": tally.ignored,
        "duplicates": result.duplicates,
        "left_out": tally.left_out,
        "sorted": tally.sorted,
        "out_of_order": tally.out_of_order,
        "default": result.lines[0].variant.model,
        "models": {name: _as_json(line, result) for name, line in result.best().items()},
        "served": {"events": result.served.events, "hr": result.served.hr},
        "shown": result.shown._asdict(),
        "skipped_steps": result.skipped_steps,
        "seconds": round(result.seconds, 3),
        "events_per_s": _rate(result.events, result.seconds),
    }


def show(args: argparse.Namespace, settings: Settings, result: "Result", tally: "Tally") -> None:
    """Print the tables: on stdout, or on stderr where stdout is for the JSON document."""
    from rich.console import Console

    from pipeline.app.text import event_types_text

    stream = sys.stderr if args.json else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False)
    console.print(
        f"{args.file}: {result.events:,} events in batches of {args.batch}, {tally.rejected.total():,} rows "
        f"rejected, {result.seconds:.1f} s "
        f"({_rate(result.events, result.seconds):,.0f} events/s, lists included)",
        *tally.lines(), *tally.order(), f"Event types: {event_types_text(tally.types, settings.events)}",
        sep="\n", markup=False, soft_wrap=True,
    )  # fmt: skip
    if result.skipped_steps:
        console.print(f"{result.skipped_steps:,} steps skipped: their loss or gradient was not finite")
    _print_models(console, result)
    _print_more(console, result)
    _print_grids(console, result)


def as_words(settings: dict[str, Any]) -> str:
    """Return settings on one line.

    >>> as_words({"half_life": "300", "directed": True})
    'half_life=300 directed=true'
    """
    return " ".join(f"{key}={str(value).lower()}" for key, value in settings.items())


def _as_json(line: "Line", result: "Result") -> dict[str, Any]:
    grid, curve = result.grid(line.variant.model), line.curve
    figures: dict[str, Any] = {
        **line.figures,
        **line.at,
        "new": line.new,
        "old": line.old,
        "auc": None if math.isnan(curve.auc) else curve.auc,  # JSON has no NaN
        "average_precision": None if math.isnan(curve.average_precision) else curve.average_precision,
        "quarters": [{key: part[key] for key in QUARTER_METRICS} for part in line.quarters],  # type: ignore[literal-required]
        "events_per_s": _rate(result.events, line.seconds),
        "settings": line.settings,
    }  # fmt: skip
    if len(grid) > 1:
        figures["grid"] = [{"settings": each.settings, "ndcg@10": each.figures["ndcg@10"]} for each in grid]
    return figures


def _print_models(console: "Console", result: "Result") -> None:
    lines = result.best()
    best = max((line.figures["ndcg@10"] for line in list(lines.values())[1:]), default=0.0)
    title = "Predicted, then learned. Ratio: NDCG@10 to the best baseline's; events/s: of training alone"
    headings = ("NDCG@10", "ratio", "HR@10", "MRR@10", "cold", "warm", "NDCG@10 by quarter", "events/s")
    table = _table(title, ["model"], headings)
    for name, line in lines.items():
        figures = line.figures
        ndcg, *others = (
            figures["ndcg@10"], figures["hr@10"], figures["mrr@10"],
            figures["cold"]["ndcg@10"], figures["warm"]["ndcg@10"],
        )  # fmt: skip
        table.add_row(
            name,
            f"{ndcg:.4f}",
            f"{ndcg / best:.3f}" if best else "-",
            *(f"{value:.4f}" for value in others),
            " ".join(f"{part['ndcg@10']:.3f}" for part in line.quarters),
            f"{_rate(result.events, line.seconds):,.0f}",
        )
    console.print(table)


def _print_more(console: "Console", result: "Result") -> None:
    from pipeline.evaluation.curves import NEGATIVES

    title = f"New: items known for fewer than 1,000 events; average precision: {NEGATIVES} non-clicks a click"
    depths = ("HR@1", "HR@5", "HR@20", "HR@50", "NDCG@5", "NDCG@20")
    table = _table(title, ["model"], (*depths, "new", "old", "AUC", "AP"))
    for name, line in result.best().items():
        values = [line.at[depth.lower()] for depth in depths]
        values += [line.new["ndcg@10"], line.old["ndcg@10"], line.curve.auc, line.curve.average_precision]
        table.add_row(name, *(f"{value:.3f}" for value in values))
    console.print(table)
    shown = result.shown
    console.print(
        f"{shown.lists:,} lists of {result.lines[0].variant.model} showed {shown.coverage:.1%} of the items "
        f"(Gini {shown.gini:.3f}), which had {shown.popularity:,.0f} events on average; the others were "
        "tested without lists",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> "Table":
    """Return a table without line breaks in its cells."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print_grids(console: "Console", result: "Result") -> None:
    title = "Settings of the baselines: the best on this very stream is chosen"
    table = _table(title, ["baseline", "setting"], ["NDCG@10", "HR@10", ""])
    for name, chosen in result.best().items():
        grid = result.grid(name)
        for line in grid if len(grid) > 1 else []:
            figures = (f"{line.figures['ndcg@10']:.4f}", f"{line.figures['hr@10']:.4f}")
            table.add_row(name, as_words(line.settings), *figures, "chosen" if line is chosen else "")
    if table.row_count:
        console.print(table)


def _rate(events: int, seconds: float) -> float:
    return round(events / seconds, 1) if seconds else 0.0

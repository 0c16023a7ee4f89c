"""The page of a report: one HTML file that loads nothing from the network."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.app.evaluation import as_words
from pipeline.app.report.gather import Extra, Floats, Report, day, gather, write
from pipeline.app.report.plots import PARTS, plots
from pipeline.evaluation.curves import NEGATIVES
from pipeline.evaluation.exposure import gini, share_of_most
from pipeline.evaluation.rank_metrics import COLD_EVENTS
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Result

MAX_ALARM_ROWS = 20  # of the table; the plots mark all that are kept


class GridRow(NamedTuple):
    """A setting of a baseline that was tried."""

    model: str
    setting: str
    ndcg: float
    chosen: bool


def write_report(
    path: Path, figures: dict[str, Any], evaluation: Evaluation, result: Result, notes: list[str]
) -> None:
    """Write the page of `evaluate`: `figures` is its JSON document, `notes` are shown at the top.

    Raise `UsageError` when it can't be written.
    """
    models = {
        line.variant.name: Extra(label, figures["models"][label]["events_per_s"])
        for label, line in result.best().items()
    }
    name = Path(figures["file"]).name
    again = "may be recommended again" if figures["repeats"] else "are excluded from a user's lists"
    facts = {
        "file": f"{name}, {sum(figures['rejected'].values()):,} rows rejected",
        "batches": f"of {figures['batch']} events, predicted, then learned, together",
        "consumed items": again,
        "time taken": f"{figures['seconds']:,.1f} s",
    }
    grids = [
        GridRow(model, as_words(each["settings"]), each["ndcg@10"], each["settings"] == line["settings"])
        for model, line in figures["models"].items()
        for each in line.get("grid", [])
    ]
    report = gather(evaluation.recommender, models, f"afresh evaluate: {name}", facts, notes)
    write(path, "--report", page(report, SystemClock().now_ms(), grids))


def page(report: Report, now_ms: int, grids: Sequence[GridRow] = ()) -> str:
    """Return the page, with all text from outside escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline.app.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = figure
    return environment.get_template("page.html.j2").render(
        report=report,
        verdict=verdict(report),
        tiles=_tiles(report),
        ratios=["-" if (ratio := report.ratio(line)) is None else f"{ratio:.3f}" for line in report.lines],
        timed=any(line.events_per_s is not None for line in report.lines),
        grids=grids,
        plots=plots(report),
        alarms=report.alarms[-MAX_ALARM_ROWS:],
        parts=PARTS,
        cold=COLD_EVENTS,
        negatives=NEGATIVES,
        chance=figure(1 / (1 + NEGATIVES)),
        spread=_spread(report),
        version=version("afresh"),
        made=day(now_ms),
    )


def figure(value: float) -> str:
    """Return a number between 0 and 1 for a table.

    >>> figure(0.12345), figure(float("nan"))
    ('0.1235', '-')
    """
    return f"{value:.4f}" if value == value else "-"


def verdict(report: Report) -> str:
    """Return the quality of the served model in words, compared with the best baseline."""
    first, best = report.lines[0], report.best_baseline
    if not first.figures["tests"]:
        return "No event was a test yet: there is nothing to evaluate."
    hits = (
        f"{first.label} had the item that the user took next among its first ten in "
        f"{first.figures['hr@10']:.1%} of {first.figures['tests']:,} tests."
    )
    ratio = report.ratio(first)
    if best is None or ratio is None:
        return hits
    return f"{hits} Its NDCG@10 is {ratio:.3f} times that of the best baseline, {best.label}."


def _tiles(report: Report) -> list[tuple[str, str]]:
    """Return highlighted numbers with their captions."""
    first, ratio = report.lines[0], report.ratio(report.lines[0])
    tiles = [(f"{first.figures['hr@10']:.1%}", "hit rate@10")]
    if ratio is not None:
        tiles.append((f"{ratio:.2f} x", "the best baseline's NDCG@10"))
    if first.curve.tests:
        tiles.append((f"{first.curve.auc:.3f}", "area under ROC; chance 0.5"))
    tiles.append((f"{report.coverage:.0%}", "of the known items on the last 10,000 lists"))
    return [*tiles, (f"{len(report.alarms):,}", "drift alarm" + "s" * (len(report.alarms) != 1))]


def _spread(report: Report) -> list[tuple[str, str, str]]:
    """Return statistics of the counts of items: name, on lists, taken by users."""
    statistics: dict[str, Callable[[Floats], str]] = {
        "items with any": lambda counts_I: f"{np.count_nonzero(counts_I) / max(counts_I.size, 1):.1%}",
        "held by the top 1%": lambda counts_I: f"{share_of_most(counts_I, 0.01):.1%}",
        "held by the top 10%": lambda counts_I: f"{share_of_most(counts_I, 0.1):.1%}",
        "Gini": lambda counts_I: f"{gini(counts_I):.3f}",
    }
    return [(name, text(report.shown_I), text(report.taken_I)) for name, text in statistics.items()]

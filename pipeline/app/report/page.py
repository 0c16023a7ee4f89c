"""The page of a report: one HTML file that loads nothing from the network."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.app.report.gather import Report, day, gather, write
from pipeline.app.report.plots import PARTS, plots
from pipeline.evaluation.curves import NEGATIVES
from pipeline.evaluation.rank_metrics import COLD_EVENTS
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Result

MAX_ALARM_ROWS = 20  # of the table; the plots mark all that are kept


def write_report(
    path: Path, figures: dict[str, Any], evaluation: Evaluation, result: Result, notes: list[str]
) -> None:
    """Write the page of `evaluate`: `figures` is its JSON document, `notes` are shown at the top.

    Raise `UsageError` when it can't be written.
    """
    models = {line.variant.name: label for label, line in result.best().items()}
    name = Path(figures["file"]).name
    again = "may be recommended again" if figures["repeats"] else "are excluded from a user's lists"
    facts = {
        "file": f"{name}, {sum(figures['rejected'].values()):,} rows rejected",
        "batches": f"of {figures['batch']} events, predicted, then learned, together",
        "consumed items": again,
        "time taken": f"{figures['seconds']:,.1f} s",
    }
    report = gather(evaluation.recommender, models, f"afresh evaluate: {name}", facts, notes)
    write(path, "--report", page(report, SystemClock().now_ms()))


def page(report: Report, now_ms: int) -> str:
    """Return the page, with all text from outside escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline.app.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = figure
    return environment.get_template("page.html.j2").render(
        report=report,
        verdict=verdict(report),
        ratios=["-" if (ratio := report.ratio(line)) is None else f"{ratio:.3f}" for line in report.lines],
        plots=plots(report),
        alarms=report.alarms[-MAX_ALARM_ROWS:],
        parts=PARTS,
        cold=COLD_EVENTS,
        negatives=NEGATIVES,
        chance=figure(1 / (1 + NEGATIVES)),
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

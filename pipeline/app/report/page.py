"""The page of a report: one HTML file that needs nothing from the network."""

from importlib.metadata import version
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.app.report.gather import Report, day
from pipeline.app.report.plots import PARTS, plots
from pipeline.evaluation.curves import NEGATIVES
from pipeline.evaluation.rank_metrics import COLD_EVENTS

ALARMS = 20  # told in the table; the plots mark all that are kept


class GridRow(NamedTuple):
    """A setting of a baseline that was tried."""

    model: str
    setting: str
    ndcg: float
    taken: bool


class Tile(NamedTuple):
    """A figure that stands out, and what it says."""

    value: str
    words: str


class SpreadRow(NamedTuple):
    """A figure of what lists show beside that of what users take."""

    words: str
    shown: str
    taken: str


def page(report: Report, now_ms: int, grids: list[GridRow] | None = None) -> str:
    """Return the page; all text that comes from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline.app.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = figure
    first = report.lines[0]
    return environment.get_template("page.html.j2").render(
        report=report,
        verdict=verdict(report),
        tiles=_tiles(report),
        ratios=_ratios(report),
        timed=any(line.events_per_s is not None for line in report.lines),
        tuned=bool(grids),
        grids=grids or [],
        plots=plots(report),
        alarms=report.alarms[-ALARMS:],
        parts=PARTS,
        cold=COLD_EVENTS,
        negatives=NEGATIVES,
        chance=figure(1 / (1 + NEGATIVES)),
        unknown=_unknown(first.curve.unknown, first.figures["tests"]),
        spread=_spread(report),
        version=version("afresh"),
        made=day(now_ms),
    )


def figure(value: float) -> str:
    """Return a figure between 0 and 1 as it stands in tables.

    >>> figure(0.12345), figure(float("nan"))
    ('0.1235', '-')
    """
    return f"{value:.4f}" if value == value else "-"


def verdict(report: Report) -> str:
    """Say in a sentence or two how good the served model is, and beside what."""
    first, best = report.lines[0], report.best_baseline
    if not first.figures["tests"]:
        return "No event was a test yet: there is nothing to judge."
    said = (
        f"{first.label} had the item that the user took next among its first ten in "
        f"{first.figures['hr@10']:.1%} of {first.figures['tests']:,} tests."
    )
    if best is None or not best.figures["ndcg@10"]:
        return said
    gain = first.figures["ndcg@10"] / best.figures["ndcg@10"] - 1
    if gain >= 1:
        return f"{said} Its NDCG@10 is {1 + gain:.1f} times that of the best baseline, {best.label}."
    if abs(gain) < 0.0005:
        return f"{said} By NDCG@10 it is level with the best baseline, {best.label}."
    side = "ahead of" if gain > 0 else "behind"
    return f"{said} By NDCG@10 it is {abs(gain):.1%} {side} the best baseline, {best.label}."


def _tiles(report: Report) -> list[Tile]:
    first, best = report.lines[0], report.best_baseline
    tiles = [Tile(f"{first.figures['hr@10']:.1%}", "hit rate@10")]
    if best is not None and best.figures["ndcg@10"]:
        ratio = first.figures["ndcg@10"] / best.figures["ndcg@10"]
        tiles.append(Tile(f"{ratio:.2f} x", "the best baseline's NDCG@10"))
    if first.curve.tests:
        tiles.append(Tile(f"{first.curve.auc:.3f}", "area under ROC; chance 0.5"))
    tiles.append(Tile(f"{report.coverage:.0%}", "of the known items on the last 10,000 lists"))
    words = "drift alarm" if len(report.alarms) == 1 else "drift alarms"
    return [*tiles, Tile(f"{len(report.alarms):,}", words)]


def _ratios(report: Report) -> list[str]:
    best = report.best_baseline
    most = best.figures["ndcg@10"] if best is not None else 0.0
    return [f"{line.figures['ndcg@10'] / most:.3f}" if most else "-" for line in report.lines]


def _unknown(unknown: int, tests: int) -> str:
    if not unknown:
        return ""
    return (
        f"{unknown:,} of {tests:,} tests ({unknown / tests:.1%}) were of items not known before their batch, "
        "which no model can rank: they are misses in the table above and left out here."
    )


def _spread(report: Report) -> list[SpreadRow]:
    shown, taken = report.shown, report.taken
    items = max(len(shown.counts_I), 1)
    return [
        SpreadRow("items with any", f"{shown.used / items:.1%}", f"{taken.used / items:.1%}"),
        SpreadRow("held by the top 1%", f"{shown.top(0.01):.1%}", f"{taken.top(0.01):.1%}"),
        SpreadRow("held by the top 10%", f"{shown.top(0.1):.1%}", f"{taken.top(0.1):.1%}"),
        SpreadRow("Gini", f"{shown.gini:.3f}", f"{taken.gini:.3f}"),
    ]

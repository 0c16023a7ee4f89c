"""The plots of a report, each as inline SVG: text stays text, nothing is loaded, no script runs.

Only this module imports matplotlib. Lines differ in colour and in dash, for print and colour-blind readers
(colours: Okabe and Ito, "Color universal design", 2008, with a dark brown instead of yellow).
"""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.app.report.gather import Line, Report
from pipeline.evaluation.rank_metrics import MEASURES
from pipeline.evaluation.timeline import Track

SIZE = (5.6, 3.5)  # inches: letters have 9 pixels on a phone
PARTS = 60  # of the stream in a plot over time
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#6B5000", "#000000", "#E69F00")
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)),
    (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2.5, 2.5)), (0, (10, 2, 2, 2)),
)  # fmt: skip
INK, GRID = "#222222", "#DDDDDD"
SHORT_MS = 3 * 86_400_000  # a shorter stream has hours on its axis, not only days
STYLE: Any = {  # matplotlib types the keys in its newer versions alone
    "svg.fonttype": "none", "font.size": 10.5, "axes.edgecolor": "#888888", "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9.5, "svg.hashsalt": "afresh",
}  # fmt: skip


def plots(report: Report) -> dict[str, str]:
    """Draw everything; return the SVG elements by name."""
    with matplotlib.rc_context(STYLE):
        return {
            "ndcg": quality_plot(report, "ndcg", "NDCG@10"),
            "hr": quality_plot(report, "hr", "hit rate@10"),
            "roc": roc_plot(report),
            "coverage": coverage_plot(report),
        }


def quality_plot(report: Report, measure: str, name: str) -> str:
    """Draw a metric of every model in each part of the stream, with the drift alarms."""
    figure, axes = _new()
    track, place = report.track, MEASURES.index(measure)
    borders = track.borders(PARTS)
    middles = (track.events_N[borders[:-1]] + track.events_N[borders[1:]]) / 2
    for line, style in zip(report.lines, styles(report.lines), strict=True):
        means = track.means(line.name, place, borders)
        axes.plot(middles, means, linewidth=1.6, label=line.label, gid=line.label, **style)
    shown = [alarm.at_event for alarm in report.alarms if alarm.at_event >= track.events_N[0]]
    for at in shown:
        axes.axvline(at, color=INK, linewidth=1, alpha=0.7)
    if shown:
        top = axes.get_xaxis_transform()
        axes.plot(shown, [1.0] * len(shown), "v", color=INK, markersize=6, transform=top, clip_on=False,
                  label="drift alarm")  # fmt: skip
    _time_axis(axes, track, name)
    return _svg(figure, measure, f"{name} of each model over the stream, with drift alarms")


def coverage_plot(report: Report) -> str:
    """Draw the share of the known items that the newest lists show."""
    track = report.track
    figure, axes = _new()
    known = track.coverage_N > 0  # before the first list there is nothing to cover
    if known.any():
        label, style = report.lines[0].label, styles(report.lines)[0]
        axes.plot(track.events_N[known], 100 * track.coverage_N[known], label=label, **style)
    _time_axis(axes, track, "% of known items on lists")
    return _svg(figure, "coverage", "Share of the known items that recent lists show, over the stream")


def roc_plot(report: Report) -> str:
    """Draw true positives over false positives."""
    figure, axes = _new()
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, label="chance")
    for line, style in zip(report.lines, styles(report.lines), strict=True):
        if line.curve.tests:
            label = f"{line.label} ({line.curve.auc:.3f})"
            axes.plot(line.curve.fpr_E, line.curve.tpr_E, label=label, **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="non-clicks shown (share)", ylabel="clicks shown (share)")
    axes.legend(loc="lower right", title="area", alignment="right")
    return _svg(figure, "roc", "ROC curve of each model: share of clicks over share of non-clicks")


def styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return a colour and a dash for each model, the first above the others; no two of 64 have the same."""
    count = len(COLOURS)
    return [
        {
            "color": COLOURS[place % count],
            "linestyle": DASHES[(place + place // count) % count],
            "zorder": 2.0 if place else 2.5,
        }
        for place in range(len(lines))
    ]


def _new() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _time_axis(axes: Axes, track: Track, name: str) -> None:
    """Label the axis with event numbers and dates, and put the legend above the plot."""
    first, last = int(track.events_N[0]), int(track.events_N[-1])
    axes.set_xlim(first, max(last, first + 1))
    axes.set_ylim(bottom=0)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing was counted yet", transform=axes.transAxes, ha="center")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=2))
    dated = track.time_ms_N > 0
    events, times = track.events_N[dated], track.time_ms_N[dated]
    pattern = "%Y-%m-%d" if times.size and times[-1] - times[0] > SHORT_MS else "%m-%d %H:%M"

    def words(at: float, _: int) -> str:
        if not first <= at <= last or not times.size:
            return f"{at:,.0f}"
        ms = float(np.interp(at, events, times))
        return f"{at:,.0f}\n{datetime.fromtimestamp(ms / 1000, UTC).strftime(pattern)}"

    axes.xaxis.set_major_formatter(FuncFormatter(words))
    axes.set(xlabel="events learned", ylabel=name)
    if entries := len(axes.get_legend_handles_labels()[1]):
        columns = 2 if entries == 4 else 3
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, columnspacing=1.2,
                    handlelength=2.2, borderaxespad=0.3)  # fmt: skip


def _svg(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an HTML element; its ids begin with `name`, to be unique on the page."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)

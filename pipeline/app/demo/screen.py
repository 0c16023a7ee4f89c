"""The demo on one screen of any size.

From the top: counts; the plot with the metrics beside it; alarms; one user's list. Without room for all,
the list is left out first, then the older alarms, then rows of the plot, then the plot.
"""

from itertools import groupby
from operator import itemgetter

import numpy as np
from rich.cells import set_cell_size
from rich.text import Text

from pipeline.app.demo.plot import Canvas, cell_of, draw, place_labels, sample, scale_for
from pipeline.app.demo.progress import SERVED, Progress
from pipeline.app.demo.quality import WINDOW_TESTS
from pipeline.app.demo.text import alarm_text, counts, percent, points, ratio
from pipeline.app.text import plain
from pipeline.events.records import Ranking

SIDE_CELLS = 36  # of the metrics beside the plot
GAP_CELLS = 2
AXIS_CELLS = 5  # of the plot's labels and its axis
MIN_ACROSS = 24  # cells of a plot; no narrower one is drawn
MIN_DOWN, MAX_DOWN = 5, 19
FRAME_ROWS = 3  # around a plot: its title, its axis and the axis' labels
USUAL_ROWS = 9 + FRAME_ROWS  # of the plot on a screen of 24 rows
BELOW_ROWS = 16  # that alarms and the list can use
MAX_ALARMS = 3
STYLES = ("bold green", "cyan", "yellow", "magenta")  # of the models, the served one first
CHANGE, ALARM = "╎", "▲"


def screen(progress: Progress, width: int, height: int) -> Text:
    """Return the demo at one moment, in at most `height` lines of at most `width` cells."""
    reserved = 1 + (1 if progress.alarms else 0)
    rows = min(max(USUAL_ROWS, height - BELOW_ROWS), MAX_DOWN + FRAME_ROWS, height - reserved)
    parts = [[Text(counts(progress, width), style="bold")], _metrics(progress, width, rows)]
    room = height - 1 - len(parts[1])
    parts.append(_alarms(progress, min(MAX_ALARMS, max(room - 4, 1))))
    parts.append(_ranking(progress.ranking, room - len(parts[2])))
    parts = [part for part in parts if part]
    spare = height - sum(map(len, parts))
    between = [Text()] if spare >= len(parts) - 1 else []
    lines = parts[0] + [line for part in parts[1:] for line in between + part]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, end="").join(lines[:height])


def _metrics(progress: Progress, width: int, rows: int) -> list[Text]:
    """Return the plot with the metrics at its right, or the metrics alone."""
    side = _side(progress)
    across = width - SIDE_CELLS - GAP_CELLS - AXIS_CELLS
    down = rows - FRAME_ROWS - (rows - FRAME_ROWS + 1) % 2  # odd: half the scale has its own row
    if across < MIN_ACROSS or down < MIN_DOWN:
        return side[: max(rows, 0)]
    plot = _plot(progress, across, down)
    side += [Text()] * (len(plot) - len(side))
    for left, right in zip(plot, side, strict=False):
        left.pad_right(AXIS_CELLS + across + GAP_CELLS - left.cell_len)
        left.append_text(right)
    return plot


def _side(progress: Progress) -> list[Text]:
    """Return the models' metrics, and the click and purchase rates of the lists."""
    lines = [Text(f"{f'last {WINDOW_TESTS:,} tests':21}{'HR@10':>7}{'NDCG@10':>8}", style="bold")]
    for place, model in enumerate(progress.models):
        lines.append(
            Text.assemble(
                (sample(place), STYLES[place % len(STYLES)]),
                (f" {model.name:17.17}{ratio(model.hr):>7}{ratio(model.ndcg):>8}", "" if place else "bold"),
            )
        )
    if not progress.arms:
        return lines
    lines += [Text(), Text(f"{'of 100 shown':13}{'clicked':>10}{'bought':>13}", style="bold")]
    for arm in progress.arms:
        rates = f"{percent(arm.click_rate, 1):>10}{percent(arm.purchase_rate, 2):>13}"
        lines.append(Text(f"{arm.name:13.13}{rates}", style="bold" if arm.name == SERVED else ""))
    for arm in progress.arms:
        if arm.name != SERVED:
            gaps = f"{points(arm.click_gap, 1):>10}{points(arm.purchase_gap, 2):>13}"
            lines.append(Text(f"{'over ' + arm.name:13.13}{gaps}"))
    lines.append(Text("± is half of the 95 % interval", style="dim"))
    return lines


def _plot(progress: Progress, across: int, down: int) -> list[Text]:
    """Return hit rates over the stream, with the change of preferences and the alarms marked on the axis."""
    events_P, hr_MP = progress.course
    x_end = max(progress.total or 0, float(events_P[-1]), 1.0)
    y_top = scale_for(float(np.nanmax(hr_MP, initial=0.0)))
    canvas = draw(events_P, hr_MP, across, down, x_end, y_top)
    change_at = progress.change_at
    change = None if change_at is None else cell_of(change_at, x_end, across)
    ticks = {row: f"{share:g}".removeprefix("0") for row, share in ((0, y_top), (down // 2, y_top / 2))}
    ticks[down - 1] = "0"
    lines = [Text.assemble((f"{'':{AXIS_CELLS}}hit rate@10 over the events", "bold"))]
    for row in range(down):
        tick = f"{ticks.get(row, ''):>4}{'┤' if row in ticks else '│'}"
        lines.append(Text.assemble((tick, "dim")))
        _cells(lines[-1], canvas, row, change)
    marks = list("─" * across)
    if change is not None:
        marks[change] = "┴"
    for alarm in progress.alarms:
        marks[cell_of(alarm.at_event, x_end, across)] = ALARM
    lines.append(Text.assemble((f"{'':{AXIS_CELLS - 1}}└", "dim")))
    for is_alarm, run in groupby(marks, ALARM.__eq__):
        lines[-1].append("".join(run), style="bold red" if is_alarm else "dim")
    labels = [(across - 1, f"{x_end:,.0f}"), (0, "0")]
    if change is not None:  # the longest that has room
        labels += [(change, f"preferences change at {change_at:,}"), (change, "change")]
    lines.append(Text.assemble((f"{'':{AXIS_CELLS}}{place_labels(across, labels)}", "dim")))
    return lines


def _cells(line: Text, canvas: Canvas, row: int, change: int | None) -> None:
    """Add a row of the canvas, and the change of preferences where nothing is drawn."""
    signs, owners = list(canvas.text(row)), canvas.line_HW[row].tolist()
    if change is not None and signs[change] == " ":
        signs[change], owners[change] = CHANGE, -1
    for owner, run in groupby(zip(owners, signs, strict=True), itemgetter(0)):
        style = STYLES[owner % len(STYLES)] if owner >= 0 else "dim"
        line.append("".join(sign for _, sign in run), style=style)


def _alarms(progress: Progress, most: int) -> list[Text]:
    newest = progress.alarms[-most:]
    return [Text(f"{ALARM} {alarm_text(alarm, progress.change_at)}", style="bold red") for alarm in newest]


def _ranking(ranking: Ranking | None, rows: int) -> list[Text]:
    """Return one user's list with its reasons; nothing where two items have no room."""
    if ranking is None or rows < 3:
        return []
    title = set_cell_size(f"ranking of {plain(ranking.user_id)}", 30)
    lines = [Text(f"{title}{'score':>7}  because of", style="bold")]
    for place, item in enumerate(ranking.items[: min(rows - 1, 10)], 1):
        name = set_cell_size(plain(item.item_id), 26)
        lines.append(Text(f"{place:>3} {name}{item.score:>7.2f}  {', '.join(map(plain, item.because))}"))
    return lines

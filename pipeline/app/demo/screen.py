"""The demo on one screen of any size.

From the top: counts; the plot with the metrics beside it; alarms; one user's list. Without room for all,
the list is left out first, then the older alarms, then rows of the plot, then the plot.
"""

from itertools import groupby

import numpy as np
from rich.cells import set_cell_size
from rich.text import Text

from pipeline.app.demo.plot import cell_of, draw, place_labels, sample
from pipeline.app.demo.progress import SERVED, Progress, alarm_text, counts, ratio
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
SCALES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # tops of the plot
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
    for left, right in zip(plot, side, strict=False):
        left.pad_right(AXIS_CELLS + across + GAP_CELLS - left.cell_len)
        left.append_text(right)
    return plot


def _side(progress: Progress) -> list[Text]:
    """Return the models' metrics, and the click and purchase rates of the lists."""
    models, _, hr_MP, ndcg_MP, tests = progress.course
    lines = [Text(f"{f'last {tests:,} tests':21}{'HR@10':>7}{'NDCG@10':>8}", style="bold")]
    for place, (name, hr, ndcg) in enumerate(zip(models, hr_MP[:, -1], ndcg_MP[:, -1], strict=True)):
        metrics = f" {name:17.17}{ratio(hr):>7}{ratio(ndcg):>8}"
        sampled = (sample(place), STYLES[place % len(STYLES)])
        lines.append(Text.assemble(sampled, (metrics, "" if place else "bold")))
    if not progress.arms:
        return lines
    lines += [Text(), Text(f"{'of 100 shown':13}{'clicked':>10}{'bought':>13}", style="bold")]
    for arm in progress.arms:
        rates = f"{arm.name:13.13}{arm.clicked:>10}{arm.bought:>13}"
        lines.append(Text(rates, style="bold" if arm.name == SERVED else ""))
    for arm in progress.arms:
        if arm.name != SERVED:
            lines.append(Text(f"{'over ' + arm.name:13.13}{arm.above_clicked:>10}{arm.above_bought:>13}"))
    lines.append(Text("± is half of the 95 % interval", style="dim"))
    return lines


def _plot(progress: Progress, across: int, down: int) -> list[Text]:
    """Return hit rates over the stream, with the change of preferences and the alarms marked on the axis."""
    events_P, hr_MP = progress.course.events_P, progress.course.hr_MP
    x_end = max(progress.total or 0, int(events_P[-1]), 1)
    highest = float(np.nanmax(hr_MP, initial=0.0))
    y_top = next((scale for scale in SCALES if highest <= scale), 1.0)
    canvas = draw(events_P / x_end, hr_MP / y_top, across, down)
    marks, labels = ["─"] * across, [(across - 1, f"{x_end:,}"), (0, "0")]
    change = -1
    if progress.change_at is not None:
        change = cell_of(progress.change_at / x_end, across)
        marks[change] = "┴"
        # the longest that has room
        labels += [(change, f"preferences change at {progress.change_at:,}"), (change, "change")]
    for alarm in progress.alarms:
        marks[cell_of(alarm.at_event / x_end, across)] = ALARM

    ticks = {row: f"{share:g}".removeprefix("0") for row, share in ((0, y_top), (down // 2, y_top / 2))}
    ticks[down - 1] = "0"
    lines = [Text.assemble((f"{'':{AXIS_CELLS}}hit rate@10 over the events", "bold"))]
    for row in range(down):
        tick = f"{ticks.get(row, ''):>4}{'┤' if row in ticks else '│'}"
        lines.append(Text.assemble((tick, "dim")))
        signs, owners = list(canvas.text(row)), canvas.line_HW[row].tolist()
        if change >= 0 and signs[change] == " ":
            signs[change] = CHANGE
        _append(lines[-1], signs, [STYLES[owner % len(STYLES)] if owner >= 0 else "dim" for owner in owners])
    lines.append(Text.assemble((f"{'':{AXIS_CELLS - 1}}└", "dim")))
    _append(lines[-1], marks, ["bold red" if mark == ALARM else "dim" for mark in marks])
    lines.append(Text.assemble((f"{'':{AXIS_CELLS}}{place_labels(across, labels)}", "dim")))
    return lines


def _append(line: Text, signs: list[str], styles: list[str]) -> None:
    """Add signs to a line, each in its style."""
    at = iter(signs)
    for style, run in groupby(styles):
        line.append("".join(next(at) for _ in run), style=style)


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

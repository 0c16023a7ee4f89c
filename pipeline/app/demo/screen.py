"""The demo on one screen of any size, the most important first: what has no room is cut off at the end."""

import numpy as np
import numpy.typing as npt
from rich.cells import set_cell_size
from rich.text import Text

from pipeline.app.demo.progress import SERVED, Progress, alarm_text, counts, ratio
from pipeline.app.text import plain
from pipeline.events.records import Ranking

NAME_CELLS, METRIC_CELLS = 18, 15  # of a model: left and right of its bars
MAX_ALARMS = 3
MAX_ITEMS = 10
BARS = " ▁▂▃▄▅▆▇█"  # the first: no test yet
CHANGE, ALARM = "┴", "▲"


def screen(progress: Progress, width: int, height: int) -> Text:
    """Return the demo at one moment, in at most `height` lines of at most `width` cells."""
    lines = [Text(counts(progress), style="bold"), Text()]
    lines += _models(progress, max(width - NAME_CELLS - METRIC_CELLS, 1))
    for alarm in progress.alarms[-MAX_ALARMS:]:
        lines.append(Text(f"{ALARM} {alarm_text(alarm, progress.change_at)}", style="bold red"))
    lines += [*_arms(progress), *_ranking(progress.ranking)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, end="").join(lines[:height])


def bars(events_P: npt.NDArray[np.int64], values_P: npt.NDArray[np.float64], end: int, across: int) -> str:
    """Return the values (0 to 1) at the ends of `across` equal parts of the events up to `end`, as bars.

    >>> bars(np.array([0, 50, 75]), np.array([np.nan, 0.5, 1.0]), 100, 4)
    ' ▄█ '
    """
    ends_X = np.arange(1, across + 1) * end / across
    newest_X = np.searchsorted(events_P, ends_X, "right") - 1
    values_X = np.where(ends_X - end / across < events_P[-1], values_P[newest_X], np.nan)
    full = len(BARS) - 1
    levels_X = np.where(np.isnan(values_X), 0, np.clip(np.ceil(values_X * full), 1, full))
    return "".join(BARS[level] for level in levels_X.astype(np.int64).tolist())


def _models(progress: Progress, across: int) -> list[Text]:
    """Return each model's hit rate over the stream and metrics, and an axis with the change and alarms."""
    models, events_P, hr_MP, ndcg_MP, tests = progress.course
    end = max(progress.total or 0, int(events_P[-1]), 1)
    top = max(float(np.nanmax(hr_MP, initial=0.0)), 0.01)
    title = f"hit rate@10 over {end:,} events, up to {ratio(top)}; last {tests:,} tests:"
    lines = [Text(f"{title:{NAME_CELLS + across}.{NAME_CELLS + across}}{'HR@10':>7}{'NDCG@10':>8}", "bold")]
    for name, hr_P, ndcg_P in zip(models, hr_MP, ndcg_MP, strict=True):
        drawn = bars(events_P, hr_P / top, end, across)
        text = f"{name:{NAME_CELLS}.{NAME_CELLS - 1}}{drawn}{ratio(hr_P[-1]):>7}{ratio(ndcg_P[-1]):>8}"
        lines.append(Text(text, style="" if len(lines) > 1 else "bold green"))
    marks = ["─"] * across
    events = {alarm.at_event: ALARM for alarm in progress.alarms}
    if progress.change_at is not None:
        events = {progress.change_at: CHANGE} | events
    for event, mark in events.items():
        marks[min(event * across // end, across - 1)] = mark
    change = "" if progress.change_at is None else f"{CHANGE} preferences"
    return [*lines, Text(f"{change:{NAME_CELLS}}{''.join(marks)}", style="dim")]


def _arms(progress: Progress) -> list[Text]:
    """Return the click and purchase rates of each kind of list, and how far the published ones are above."""
    if not progress.arms:
        return []
    heads = f"{'of 100 shown':13}{'clicked':>10}{'bought':>8}", f"{SERVED} is above by (± half of 95 %)"
    lines = [Text(), Text("   ".join(heads), style="bold")]
    for arm in progress.arms:
        above = "" if arm.name == SERVED else f"{arm.above_clicked:>13}{arm.above_bought:>15}"
        style = "bold" if arm.name == SERVED else ""
        lines.append(Text(f"{arm.name:13.13}{arm.clicked:>10}{arm.bought:>8}{above}", style=style))
    return lines


def _ranking(ranking: Ranking | None) -> list[Text]:
    """Return one user's list with its reasons."""
    if ranking is None:
        return []
    title = set_cell_size(f"ranking of {plain(ranking.user_id)}", 30)
    lines = [Text(), Text(f"{title}{'score':>7}  because of", style="bold")]
    for place, item in enumerate(ranking.items[:MAX_ITEMS], 1):
        name = set_cell_size(plain(item.item_id), 26)
        lines.append(Text(f"{place:>3} {name}{item.score:>7.2f}  {', '.join(map(plain, item.because))}"))
    return lines

"""Read a file's events in order of time, which learning needs and not every file has.

A first pass over the times decides. A file that is not in order is held in memory and sorted if it has at
most `MAX_SORTED` events; a longer one is read in its own order, and the events out of order are counted.
"""

import logging
import math
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from consumers.files.recording import Recording
from consumers.files.rows import Tally
from consumers.files.source import (
    UNITS,
    as_columns,
    checked_rows,
    first_times,
    ms_in,
    open_rows,
    read_events,
    unit_fitting,
)
from pipeline.errors import UsageError
from pipeline.events.batch import Events
from pipeline.events.checks import shown

MAX_SORTED = 10_000_000  # events: 40 bytes each, and each id once
UNIT_SAMPLE = 10_000  # rows in which a better unit is looked for

logger = logging.getLogger(__name__)


class Survey(NamedTuple):
    """What a first pass over a file has found; an event before an earlier one's time is out of order."""

    events: int
    out_of_order: int
    whole: bool  # the pass reached the end of the file


def survey(recording: Recording, now_ms: int, at_most: int) -> Survey:
    """Read a file's times, of up to `at_most` events.

    Raise `UsageError` when most rows have no plausible time; the message proposes a unit that fits.
    """
    tally = Tally()
    events = out_of_order = newest_ms = 0
    whole = True
    for _, _, _, time_ms, _ in checked_rows(recording, open_rows(recording, tally), now_ms, tally):
        events += 1
        if time_ms < newest_ms:
            out_of_order += 1
        else:
            newest_ms = time_ms
        if events > at_most:
            whole = False
            break
    if 2 * tally.rejected["bad_time"] > tally.rows:
        _check_unit(recording, now_ms, tally)
    return Survey(events, out_of_order, whole)


def in_order(
    recording: Recording, batch: int, *, now_ms: int, start: int, limit: int | None, tally: Tally
) -> Iterator[Events]:
    """Yield a file's good events in order of time, `batch` at a time, and log if it was not in order.

    `start` and `limit` count the sorted events. Raise as `survey` and `read_events`.
    """
    found = survey(recording, now_ms, MAX_SORTED)
    name, late = recording.name, f"{found.out_of_order:,} of {found.events:,} events come after a later one"
    if found.whole and found.out_of_order:
        tally.sorted, tally.out_of_order = True, found.out_of_order
        logger.warning("%s: not in order of time: %s; sorted by time, then cut", name, late)
        yield from _sorted(
            recording, batch, now_ms, slice(start, None if limit is None else start + limit), tally
        )
        return
    if found.out_of_order:
        logger.warning("%s: not in order of time: %s; too long to sort (over %d)", name, late, MAX_SORTED)
    chunks = read_events(recording, batch, now_ms=now_ms, start=start, limit=limit, tally=tally)
    yield from chunks if found.whole else counted(chunks, tally)
    if tally.out_of_order:
        logger.warning(
            "%s: %d events came after a later one and were learned in that order", name, tally.out_of_order
        )


def counted(chunks: Iterable[Events], tally: Tally) -> Iterator[Events]:
    """Yield the chunks unchanged, and count the events out of order."""
    newest_ms = 0
    for events in chunks:
        newest_B = np.maximum.accumulate(np.concatenate(([newest_ms], events.time_ms_B)))
        tally.out_of_order += int(np.count_nonzero(events.time_ms_B < newest_B[:-1]))
        newest_ms = int(newest_B[-1])
        yield events


def _sorted(recording: Recording, batch: int, now_ms: int, cut: slice, tally: Tally) -> Iterator[Events]:
    """Yield events sorted by time; equal times keep the order of the file."""
    ids: dict[str, str] = {}  # each id once in memory
    texts: list[tuple[str, str, str]] = []
    times, values = array("q"), array("d")
    rows = open_rows(recording, tally)
    for user, item, event, time_ms, value in checked_rows(recording, rows, now_ms, tally):
        texts.append((ids.setdefault(user, user), ids.setdefault(item, item), ids.setdefault(event, event)))
        times.append(time_ms)
        values.append(value)
    order = np.argsort(np.frombuffer(times, np.int64), kind="stable")
    wanted = order[cut]
    tally.left_out += len(order) - len(wanted)
    for first in range(0, len(wanted), batch):
        tally.share = first / len(wanted)
        places = wanted[first : first + batch].tolist()
        events = as_columns([(*texts[at], times[at], values[at]) for at in places], recording.default_type)
        tally.types.update(events.types)
        yield events
    tally.share = 1.0


def _check_unit(recording: Recording, now_ms: int, tally: Tally) -> None:
    """Raise `UsageError` when the times fit another unit, or none."""
    times, _ = first_times(recording, UNIT_SAMPLE)
    bad = f"{tally.rejected['bad_time']:,} of {tally.rows:,} rows have no plausible time"
    given, fits = recording.time_unit, unit_fitting(times, now_ms)
    first = f"{recording.columns.timestamp} = {shown(str(times[0]))}" if times else ""
    if given is not None and fits is not None and fits != given:
        raise UsageError(
            f"{recording.name}: {bad} in {UNITS[given]}, such as {first}; they are {UNITS[fits]}: "
            f"--time-unit {fits}, or leave it out"
        )
    readable = sum(not math.isnan(ms_in(None, time)) for time in times)  # plausible or not
    if fits is None and 2 * readable > len(times):
        raise UsageError(
            f"{recording.name}: {bad}, such as {first}; expected times since 1980: Unix "
            f"{', '.join(UNITS.values())}. Convert them, or name another column with --timestamp-column"
        )

"""Recorded events out of a file, as the very columns that a topic's records become.

Files: .csv and .csv.gz (UTF-8, commas, one header line), .jsonl and .jsonl.gz (an object a line), .parquet.

Ids are text, byte for byte: `0444778`, `nan`, `1e5` and ` a ` stay what they are; whole numbers in .jsonl
and .parquet become their digits. A row is held to `pipeline.event.checks`, the rules of a topic's records;
one that breaks them is counted and shown, never dropped in silence. An empty event is the default type, an
empty value is none.

Times are Unix seconds (with or without a fraction), milliseconds, or ISO 8601 (UTC where no offset is
given). Unless the unit is given it is found once for the whole file, from its first 100 rows: ISO 8601 when
none of them is a number; else milliseconds when the middle one of the numbers is 1e11 or more (as
milliseconds that is 1973, as seconds the year 5138), else seconds. A column of times in .parquet says
itself what it is.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from statistics import median_low

import numpy as np

from consumers.file_rows import open_rows
from consumers.rows import Columns, Row, Tally
from pipeline.event.batch import Events
from pipeline.event.checks import (
    AHEAD_MS,
    EARLIEST_MS,
    MS_FROM,
    SHORT,
    Problem,
    TimeUnit,
    id_problem,
    iso_ms,
    shown,
    time_problem,
    user_problem,
    value_problem,
)
from pipeline.settings import EventsConfig

__all__ = ["Columns", "Tally", "found_unit", "read_events"]

SAMPLE = 100  # rows that the unit of time is found from
DEFAULT_COLUMNS = Columns()
Checked = tuple[str, str, str, int, float]  # user, item, event type, time in ms, value


def read_events(
    path: Path | str,
    batch: int,
    *,
    now_ms: int,
    columns: Columns = DEFAULT_COLUMNS,
    time_unit: TimeUnit | None = None,
    default_type: str = "click",
    start: int = 0,
    limit: int | None = None,
    tally: Tally | None = None,
    settings: EventsConfig | None = None,
) -> Iterator[Events]:
    """Yield a file's good events in its order, `batch` at a time (the last: what is left).

    `start` and `limit` count good events. `source_B` and `append_ms_B` are 0: no broker has seen them. Rows
    that can't be read go to `tally`, and so do those of types that `settings` ignores. Raise `UsageError`, at
    the first `next`, when the file can't be read or lacks a column.
    """
    tally = Tally() if tally is None else tally
    rows = open_rows(Path(path), columns, tally, settings)
    iterator = _kept(iter(rows), settings.ignored() if settings else (), default_type, tally)
    sample = list(islice(iterator, SAMPLE))
    unit = time_unit or rows.time_unit or found_unit([row.time for row in sample])
    good = _checked(chain(sample, iterator), columns, unit, now_ms, tally)
    chosen = islice(good, start, None if limit is None else start + limit)
    while chunk := list(islice(chosen, batch)):
        tally.share = rows.share()
        events = _as_columns(chunk, default_type)
        tally.types.update(events.types)
        yield events
    tally.share = rows.share()


def found_unit(times: Sequence[str | float]) -> TimeUnit:
    """Find the unit of a file's times from some of them, by the rule at the head of this module.

    >>> found_unit(["1362062307", "oops"]), found_unit([1_362_062_307_000]), found_unit(["2013-02-28"])
    ('s', 'ms', 'iso')
    """
    numbers = []
    for time in times:
        try:
            numbers.append(_number(time))
        except ValueError:
            continue
    if not numbers:
        return "iso" if times else "s"
    return "ms" if median_low(numbers) >= MS_FROM else "s"


def _kept(rows: Iterator[Row], ignored: Collection[str], default_type: str, tally: Tally) -> Iterator[Row]:
    """Return the rows without those of types to ignore, which are counted."""
    if not ignored:
        return rows

    def keep(row: Row) -> bool:
        kind = row.event or default_type
        if kind in ignored:
            tally.ignored[kind] += 1
        return kind not in ignored

    return filter(keep, rows)


def _checked(
    rows: Iterator[Row], columns: Columns, unit: TimeUnit, now_ms: int, tally: Tally
) -> Iterator[Checked]:
    """Yield the good rows; count the others."""
    to_ms, latest_ms = _TO_MS[unit], now_ms + AHEAD_MS
    for row in rows:
        number, user, item, time, event, value = row
        try:
            time_ms = to_ms(time)
            amount = math.nan if value is None or value == "" else _number(value)
        except (ValueError, TypeError, OverflowError):
            tally.reject(number, _unread(row, columns, unit))
            continue
        # Nearly every row passes here; only one that doesn't is looked at field by field.
        if not (
            0 < len(user) <= SHORT
            and 0 < len(item) <= SHORT
            and len(event) <= SHORT
            and (user + item + event).isascii()
            and EARLIEST_MS <= time_ms <= latest_ms
            and (math.isfinite(amount) or value is None or value == "")
        ):
            problem = _problem(row, columns, time_ms, amount, now_ms)
            if problem:
                tally.reject(number, problem)
                continue
        yield user, item, event, time_ms, amount


def _unread(row: Row, columns: Columns, unit: TimeUnit) -> Problem:
    """Say which of a row's numbers is none."""
    try:
        _TO_MS[unit](row.time)
    except (ValueError, TypeError, OverflowError):
        expected = {"s": "seconds", "ms": "milliseconds", "iso": "ISO 8601"}[unit]
        return Problem("bad_time", f"{columns.timestamp} = {shown(str(row.time))}: expected {expected}")
    return Problem("wrong_type", f"{columns.value} = {shown(str(row.value))}: expected a number")


def _problem(row: Row, columns: Columns, time_ms: int, amount: float, now_ms: int) -> Problem | None:
    """Look at one row field by field."""
    return (
        user_problem(columns.user, row.user)
        or id_problem(columns.item, row.item)
        or (id_problem(columns.event, row.event) if row.event else None)
        or time_problem(columns.timestamp, time_ms, now_ms)
        or (None if row.value is None or row.value == "" else value_problem(columns.value, amount))
    )


def _as_columns(chunk: list[Checked], default_type: str) -> Events:
    users, items, types, times, values = zip(*chunk, strict=True)
    return Events(
        user_ids=list(users),
        item_ids=list(items),
        types=[event or default_type for event in types],
        event_ids=[None] * len(chunk),
        time_ms_B=np.array(times, np.int64),
        append_ms_B=np.zeros(len(chunk), np.int64),
        value_B=np.array(values, np.float64),
        source_B=np.zeros(len(chunk), np.int32),
    )


def _number(value: str | float) -> float:
    """Read a number; Python's own `1_000` is none."""
    if value.__class__ is str and "_" in value:
        raise ValueError(value)
    return float(value)


def _ms(value: str | float) -> int:
    return round(_number(value))


def _s(value: str | float) -> int:
    return round(_number(value) * 1000)


_TO_MS: dict[TimeUnit, Callable[..., int]] = {"ms": _ms, "s": _s, "iso": iso_ms}

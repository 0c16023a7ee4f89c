"""Recorded events from a file, as the same columns that the records of a topic become.

Ids are text, byte for byte. Unless given, the unit of times is derived from the median of the numbers in the
first 100 rows; a time that is implausible in that unit is read in the unit of its own size, see `any_ms`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from statistics import median_low

import numpy as np

from consumers.files.csv_rows import CsvRows
from consumers.files.json_rows import JsonRows
from consumers.files.parquet_rows import ParquetRows
from consumers.files.recording import Kind, Recording
from consumers.files.rows import Columns, Row, Rows, Tally
from pipeline.events.batch import Events
from pipeline.events.checks import (
    AHEAD_MS,
    EARLIEST_MS,
    SHORT,
    Problem,
    TimeUnit,
    any_ms,
    id_problem,
    iso_ms,
    plausible,
    shown,
    time_problem,
    unit_of,
    user_problem,
    value_problem,
)
from pipeline.events.records import DEFAULT_USER

SAMPLE = 100  # rows that the unit of time is derived from
UNITS: dict[TimeUnit, str] = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "ISO 8601",
}  # fmt: skip
Checked = tuple[str, str, str, int, float]  # user, item, event type, time in ms, value
READERS: dict[Kind, Callable[[Recording, Tally], Rows]] = {
    "csv": CsvRows, "jsonl": JsonRows, "parquet": ParquetRows,
}  # fmt: skip


def open_rows(recording: Recording, tally: Tally) -> Rows:
    """Return the reader for the kind of file; rows that it can't parse go to `tally`."""
    return READERS[recording.kind](recording, tally)


def read_events(
    recording: Recording,
    batch: int,
    *,
    now_ms: int,
    start: int = 0,
    limit: int | None = None,
    tally: Tally | None = None,
) -> Iterator[Events]:
    """Yield a file's good events in its order, `batch` at a time; `start` and `limit` count good events.

    Rows that can't be read go to `tally`. Raise `UsageError`, at the first `next`, when the file can't be
    read or lacks a column.
    """
    tally = Tally() if tally is None else tally
    rows = open_rows(recording, tally)
    good = checked_rows(recording, rows, now_ms, tally)
    for _ in islice(good, start):
        tally.left_out += 1
    chosen = islice(good, limit)
    while chunk := list(islice(chosen, batch)):
        tally.share = rows.share()
        events = as_columns(chunk, recording.default_type)
        tally.types.update(events.types)
        yield events
    tally.share = rows.share()


def found_unit(times: Sequence[str | float]) -> TimeUnit:
    """Return the unit of a file's times, given some of them.

    >>> found_unit(["1362062307", "oops"]), found_unit([1_362_062_307_000]), found_unit(["2013-02-28"])
    ('s', 'ms', 'iso')
    """
    numbers = []
    for time in times:
        with suppress(ValueError):
            numbers.append(_number(time))
    if not numbers:
        return "iso" if times else "s"
    return unit_of(median_low(numbers))


def checked_rows(recording: Recording, rows: Rows, now_ms: int, tally: Tally) -> Iterator[Checked]:
    """Yield the good rows; count the others."""
    times, given = first_times(recording, SAMPLE)
    given = recording.time_unit or given
    unit = given or found_unit(times)
    to_ms, latest_ms, ignored = _TO_MS[unit], now_ms + AHEAD_MS, recording.ignored
    for row in rows:
        number, user, item, time, event, value = row
        if ignored and (event or recording.default_type) in ignored:
            tally.ignored += 1
            continue
        # nearly every row passes here; only the others are checked field by field
        try:
            time_ms = to_ms(time)
            amount = math.nan if value is None or value == "" else _number(value)
            if (
                0 < len(user) <= SHORT
                and user != DEFAULT_USER
                and 0 < len(item) <= SHORT
                and len(event) <= SHORT
                and (user + item + event).isascii()
                and EARLIEST_MS <= time_ms <= latest_ms
                and (math.isfinite(amount) or value is None or value == "")
            ):
                tally.accept(number)
                yield user, item, event, time_ms, amount
                continue
        except (ValueError, TypeError, OverflowError):
            pass
        checked = _checked(row, recording.columns, unit, given is None, now_ms)
        if isinstance(checked, Problem):
            tally.reject(number, checked)
        else:
            tally.accept(number)
            yield checked


def first_times(recording: Recording, count: int) -> tuple[list[str | float], TimeUnit | None]:
    """Return the times of the first rows as they are in the file, and their unit if the file defines it."""
    rows = open_rows(recording, Tally())
    times = [row.time for row in islice(rows, count)]
    return times, rows.time_unit


def unit_fitting(times: Sequence[str | float], now_ms: int) -> TimeUnit | None:
    """Return the unit in which most of the times are plausible; None where there is none.

    >>> unit_fitting(["1362062307000", "x", 1_362_062_308_000], 1_700_000_000_000)
    'ms'
    """
    fits = {unit: sum(plausible(ms_in(unit, time), now_ms) for time in times) for unit in UNITS}
    best = max(UNITS, key=fits.__getitem__)
    return best if 2 * fits[best] > len(times) else None


def _checked(row: Row, columns: Columns, unit: TimeUnit, derived: bool, now_ms: int) -> Checked | Problem:
    """Check one row field by field; where the unit was `derived`, its time may have another one."""
    time_ms = ms_in(unit, row.time)
    if derived and not plausible(time_ms, now_ms):
        again = ms_in(None, row.time)
        time_ms = again if plausible(again, now_ms) else time_ms
    if math.isnan(time_ms):
        expected = "a Unix time or ISO 8601" if derived else UNITS[unit]
        return Problem("bad_time", f"{columns.timestamp} = {shown(str(row.time))}: expected {expected}")
    try:
        amount = math.nan if row.value is None or row.value == "" else _number(row.value)
    except (ValueError, OverflowError):
        return Problem("wrong_type", f"{columns.value} = {shown(str(row.value))}: expected a number")
    return (
        user_problem(columns.user, row.user)
        or id_problem(columns.item, row.item)
        or (id_problem(f"{columns.event}", row.event) if row.event else None)
        or time_problem(columns.timestamp, time_ms, now_ms)
        or (value_problem(f"{columns.value}", amount) if row.value not in (None, "") else None)
        or (row.user, row.item, row.event, int(time_ms), amount)
    )


def ms_in(unit: TimeUnit | None, time: str | float) -> float:
    """Return the milliseconds of a time in a unit (None: the one of its size); NaN where it is not a time."""
    with suppress(ValueError, TypeError, OverflowError):
        if unit is not None:
            return _TO_MS[unit](time)
        with suppress(ValueError):
            return any_ms(_number(time))
        return any_ms(time)
    return math.nan


def as_columns(chunk: Sequence[Checked], default_type: str) -> Events:
    """Return good rows as columns."""
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
    """Read a number; Python's own `1_000` is not one."""
    if value.__class__ is str and "_" in value:
        raise ValueError(value)
    return float(value)


_TO_MS: dict[TimeUnit, Callable[..., int]] = {
    "s": lambda value: round(_number(value) * 1000),
    "ms": lambda value: round(_number(value)),
    "us": lambda value: round(_number(value) / 1000),
    "ns": lambda value: round(_number(value) / 1_000_000),
    "iso": iso_ms,
}

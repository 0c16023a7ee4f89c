"""Recorded events out of a file, as the very columns that a topic's records become.

Files: delimited text, .jsonl (an object a line) and .parquet; the first two may be packed with gzip. How a
file is read is a `Recording`; `consumers.files.format` finds it.

Ids are text, byte for byte: `0444778`, `nan`, `1e5` and ` a ` stay what they are; whole numbers in .jsonl
and .parquet become their digits. A row is held to `pipeline.events.checks`, the rules of a topic's records;
one that breaks them is counted and shown, never dropped in silence. An empty event is the default type, an
empty value is none.

Times are Unix seconds, milliseconds, microseconds or nanoseconds (with or without a fraction), or ISO 8601
(UTC where no offset is given). Unless the unit is given it is found from the first 100 rows, by the middle
one of the numbers; a time that is implausible in that unit is read in the one that its own size tells: no
plausible time can be taken for another, see `any_ms`. A column of times in .parquet says itself what it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median_low

import numpy as np

from consumers.files.file_rows import open_rows
from consumers.files.format import by_name
from consumers.files.recording import NO_MAPPING, Recording
from consumers.files.rows import DEFAULT_COLUMNS, Columns, Row, Rows, Tally
from pipeline.events.batch import Events
from pipeline.events.checks import (
    AHEAD_MS,
    EARLIEST_MS,
    PER_MS,
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
from pipeline.settings import EventsConfig

__all__ = ["Columns", "Tally", "read_events"]

SAMPLE = 100  # rows that the unit of time is found from
UNITS: dict[TimeUnit, str] = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "ISO 8601",
}  # fmt: skip


Checked = tuple[str, str, str, int, float]  # user, item, event type, time in ms, value


def read_events(
    file: Recording | Path | str,
    batch: int,
    *,
    now_ms: int,
    columns: Columns = DEFAULT_COLUMNS,
    time_unit: TimeUnit | None = None,
    default_type: str = "click",
    start: int = 0,
    limit: int | None = None,
    tally: Tally | None = None,
    settings: EventsConfig = NO_MAPPING,
) -> Iterator[Events]:
    """Yield a file's good events in its order, `batch` at a time (the last: what is left).

    `columns`, `time_unit`, `default_type` and `settings` are for a file that is given by its path. `start`
    and `limit` count good events. `source_B` and `append_ms_B` are 0: no broker has seen them. Rows that
    can't be read go to `tally`. Raise `UsageError`, at the first `next`, when the file can't be read or lacks
    a column.
    """
    tally = Tally() if tally is None else tally
    if not isinstance(file, Recording):
        found = by_name(Path(file), columns, time_unit, default_type)
        file = replace(found, ignored=settings.ignored(), events=settings)
    rows = open_rows(file, tally)
    good = checked_rows(file, rows, now_ms, tally)
    for _ in islice(good, start):
        tally.left_out += 1
    chosen = islice(good, limit)
    while chunk := list(islice(chosen, batch)):
        tally.share = rows.share()
        events = as_columns(chunk, file.default_type)
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
        # Nearly every row passes here; only one that doesn't is looked at field by field.
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
        judged = _judged(row, recording.columns, unit, given is None, now_ms)
        if isinstance(judged, Problem):
            tally.reject(number, judged)
        else:
            tally.accept(number)
            yield judged


def first_times(recording: Recording, count: int) -> tuple[list[str | float], TimeUnit | None]:
    """Return the times of the first rows as they stand in the file, and their unit if the file says it."""
    rows = open_rows(recording, Tally())
    times = [row.time for row in islice(rows, count)]
    return times, rows.time_unit


def unit_fitting(times: Sequence[str | float], now_ms: int) -> TimeUnit | None:
    """Return the unit in which most of the times are plausible; None where there is none.

    >>> unit_fitting(["1362062307000", "x", 1_362_062_308_000], 1_700_000_000_000)
    'ms'
    """
    fits = {unit: sum(plausible(_in(unit, time), now_ms) for time in times) for unit in UNITS}
    best = max(UNITS, key=fits.__getitem__)
    return best if 2 * fits[best] > len(times) else None


def readable_times(times: Sequence[str | float]) -> int:
    """Return how many are times in some unit, plausible or not."""
    return sum(not math.isnan(_in(None, time)) for time in times)


def _judged(row: Row, columns: Columns, unit: TimeUnit, found: bool, now_ms: int) -> Checked | Problem:
    """Look at one row field by field. `found`: the unit was not given, so that another may be right."""
    time_ms = _in(unit, row.time)
    if found and not plausible(time_ms, now_ms):
        again = _in(None, row.time)
        time_ms = again if plausible(again, now_ms) else time_ms
    if math.isnan(time_ms):
        expected = "a Unix time or ISO 8601" if found else UNITS[unit]
        return Problem("bad_time", f"{columns.timestamp} = {shown(str(row.time))}: expected {expected}")
    empty = row.value is None or row.value == ""
    try:
        amount = math.nan if row.value is None or row.value == "" else _number(row.value)
    except (ValueError, OverflowError):
        return Problem("wrong_type", f"{columns.value} = {shown(str(row.value))}: expected a number")
    return (
        user_problem(columns.user, row.user)
        or id_problem(columns.item, row.item)
        or (id_problem(f"{columns.event}", row.event) if row.event else None)
        or time_problem(columns.timestamp, time_ms, now_ms)
        or (None if empty else value_problem(f"{columns.value}", amount))
        or (row.user, row.item, row.event, int(time_ms), amount)
    )


def _in(unit: TimeUnit | None, time: str | float) -> float:
    """Return the milliseconds of a time in a unit (None: that which its size tells); NaN where it is none."""
    try:
        if unit is not None:
            return _TO_MS[unit](time)
        try:
            return any_ms(_number(time))
        except ValueError:
            return any_ms(time)
    except (ValueError, TypeError, OverflowError):
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
    """Read a number; Python's own `1_000` is none."""
    if value.__class__ is str and "_" in value:
        raise ValueError(value)
    return float(value)


def _in_unit(unit: TimeUnit) -> Callable[[str | float], int]:
    """Return the function that reads a number of a unit as milliseconds."""
    per_ms = PER_MS[unit]

    def to_ms(value: str | float) -> int:
        return round(_number(value) / per_ms)

    return to_ms


def _ms(value: str | float) -> int:
    return round(_number(value))


def _s(value: str | float) -> int:
    return round(_number(value) * 1000)


_TO_MS: dict[TimeUnit, Callable[..., int]] = {
    "s": _s, "ms": _ms, "us": _in_unit("us"), "ns": _in_unit("ns"), "iso": iso_ms,
}  # fmt: skip

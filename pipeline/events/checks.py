"""The checks of an event, for records of a topic and rows of a file; each returns None or a `Problem`."""

import math
import re
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.events.records import DEFAULT_USER

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]  # of a file's times

REASONS = (
    "unreadable_batch",  # in place of a whole record batch: broken compression or a wrong checksum
    "too_large",  # longer than limits.record_bytes
    "not_utf8",
    "not_json",
    "too_deep",  # JSON nested deeper than MAX_DEPTH
    "not_object",  # JSON, but no object
    "schema_framed",  # written by a schema registry's serializer, and not as JSON: Avro or Protobuf
    "bad_row",  # a row of a file with another number of fields than the header, or against its format
    "missing_field",
    "wrong_type",
    "too_many",  # more than MAX_ELEMENTS in a record's array: each would be an event
    "empty_id",
    "long_id",  # more than MAX_ID_BYTES
    "reserved_id",  # the user id under which the list for people without events is published
    "not_finite",  # NaN, an infinity, or a number that no double holds
    "bad_time",  # before 1980, more than a day ahead, or not readable as a time
)

MAX_ID_BYTES = 256
SHORT = MAX_ID_BYTES // 4  # characters that are never too long: UTF-8 has at most 4 bytes for each
EARLIEST_MS = 315_532_800_000  # 1980-01-01T00:00:00Z: earlier times are zero or of another unit
AHEAD_MS = 86_400_000  # clocks of producers may be a day fast
MS_FROM = 1e11  # as milliseconds that is 1973, as seconds the year 5138
MAX_ELEMENTS = 1_000  # of a record's array: each is an event, and all are learned in one batch
MAX_DEPTH = 128  # far below the limit of any caller's stack, on which it must not depend


class Problem(NamedTuple):
    """Why an event is rejected: one of `REASONS`, and a sentence."""

    reason: str
    detail: str


class RecordError(ValueError):
    """A record that parses but holds no event; carries the `Problem`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def unreadable(record: object) -> Problem | None:
    """Return why a record stands in place of a batch that can't be read; None for any other record."""
    detail = getattr(record, "unreadable", "")
    return Problem("unreadable_batch", detail) if detail else None


def id_problem(field: str, text: str) -> Problem | None:
    """Check an id or an event type: 1 to 256 bytes of UTF-8.

    >>> id_problem("user_id", "0444778") is None
    True
    >>> id_problem("item_id", "")
    Problem(reason='empty_id', detail='item_id is empty; expected 1 to 256 bytes')
    """
    if not text:
        return Problem("empty_id", f"{field} is empty; expected 1 to {MAX_ID_BYTES} bytes")
    if len(text) <= SHORT and text.isascii():
        return None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return Problem(
            "not_utf8", f"{field} = {shown(text)}: not UTF-8; expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
        )
    if size > MAX_ID_BYTES:
        return Problem("long_id", f"{field} has {size} bytes; expected 1 to {MAX_ID_BYTES} bytes")
    return None


def user_problem(field: str, text: str) -> Problem | None:
    """Check a user's id: as any id, and not the key of the default list.

    >>> user_problem("user_id", "__default__").reason
    'reserved_id'
    """
    if text == DEFAULT_USER:
        return Problem(
            "reserved_id", f"{field} = {text!r} is taken for the default list; expected another id"
        )
    return id_problem(field, text)


def value_problem(field: str, value: float) -> Problem | None:
    """Check an event's value: finite.

    >>> value_problem("value", float("inf"))
    Problem(reason='not_finite', detail='value = inf: expected a finite number')
    """
    if math.isfinite(value):
        return None
    return Problem("not_finite", f"{field} = {value}: expected a finite number")


def passes(event: Any, time_ms: int, latest_ms: int) -> bool:
    """Return whether an event is good at first sight. Raise TypeError for ids that are missing or no text."""
    return (
        0 < len(event.user_id) <= SHORT
        and event.user_id != DEFAULT_USER
        and 0 < len(event.item_id) <= SHORT
        and EARLIEST_MS <= time_ms <= latest_ms
        and (event.event_id is None or len(event.event_id) <= SHORT)
        and (event.event_type is None or len(event.event_type) <= SHORT)
    )


def plausible(time_ms: float, now_ms: int) -> bool:
    """Return whether a time is plausible: from 1980 on, and at most a day ahead of `now_ms`. NaN is not."""
    return EARLIEST_MS <= time_ms <= now_ms + AHEAD_MS


def time_problem(field: str, time_ms: float, now_ms: int) -> Problem | None:
    """Check an event's time in milliseconds: see `plausible`.

    >>> time_problem("timestamp_ms", 12, now_ms=1_700_000_000_000).detail
    'timestamp_ms is 12 in ms: expected 1980-01-01 to 2023-11-15T22:13:20Z (a day ahead)'
    """
    if plausible(time_ms, now_ms):
        return None
    latest = datetime.fromtimestamp((now_ms + AHEAD_MS) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    got = f"{time_ms:.15g}" if abs(time_ms) < 1e300 else "beyond all clocks"
    return Problem("bad_time", f"{field} is {got} in ms: expected 1980-01-01 to {latest} (a day ahead)")


def too_many(elements: int) -> Problem:
    """Return the problem of an array with too many elements."""
    return Problem("too_many", f"{elements} elements in the array; expected at most {MAX_ELEMENTS}")


def iso_ms(text: str) -> int:
    """Return the milliseconds of an ISO 8601 time; one without an offset is UTC, and `UTC`, `GMT` or an
    offset may stand behind a space. Raise ValueError for anything else.

    >>> iso_ms("2023-11-14T22:13:20Z"), iso_ms("2023-11-14 23:13:20.5+01:00")
    (1700000000000, 1700000000500)
    >>> iso_ms("2023-11-14 22:13:20 UTC")
    1700000000000
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat(_ZONE.sub(lambda zone: zone[1] or "+00:00", text.strip()))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return round((moment - _EPOCH).total_seconds() * 1000)
    except OverflowError:  # the offset leads out of the years 1 to 9999
        raise ValueError(f"no such time: {text}") from None


def any_ms(time: float | str) -> int:
    """Return the milliseconds of a time in seconds, milliseconds, microseconds or nanoseconds, by its size,
    or in ISO 8601; text of 9 to 19 digits is a number. Raise ValueError for anything else.

    >>> any_ms(1_700_000_000.5), any_ms(1_700_000_000_500), any_ms("2023-11-14T22:13:20.5Z")
    (1700000000500, 1700000000500, 1700000000500)
    """
    if isinstance(time, str):
        if not _DIGITS.fullmatch(time):
            return iso_ms(time)
        time = float(time)
    per_ms = PER_MS[unit_of(time)]
    return round(max(-_FAR_NS, min(time, _FAR_NS)) / per_ms)


def unit_of(time: float) -> Literal["s", "ms", "us", "ns"]:
    """Return the unit in which a number is a time since 1980, by its size.

    >>> unit_of(881_250_949), unit_of(881_250_949_000_000)
    ('s', 'us')
    """
    size = abs(time)
    if size < MS_FROM:
        return "s"
    if size < 1e3 * MS_FROM:
        return "ms"
    return "us" if size < 1e6 * MS_FROM else "ns"


def too_deep(document: bytes) -> bool:
    """Return whether JSON is nested deeper than `MAX_DEPTH`, in time linear in its length.

    >>> too_deep(b"[" * 500), too_deep(b'"' + b"[" * 500 + b'"')
    (True, False)
    """
    if len(document) <= MAX_DEPTH or document.count(b"[") + document.count(b"{") <= MAX_DEPTH:
        return False
    bare = np.frombuffer(_STRING.sub(b"", document), np.uint8)
    return bool(np.cumsum(_STEPS[bare]).max(initial=0) > MAX_DEPTH)


def shown(text: str, limit: int = 60) -> str:
    """Return text for a message: quoted, on one line, ASCII, cut when long."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


_DIGITS = re.compile(r"\d{9,19}(\.\d+)?", re.ASCII)
PER_MS = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}  # how many of a unit are a millisecond
_ZONE = re.compile(r"(?:\s*(?:UTC|GMT|Z)|\s+([+-]\d\d(?::?\d\d)?))$", re.ASCII | re.IGNORECASE)
_FAR_NS = 1e24  # beyond all clocks
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A string, or the rest when it never ends: else every later quote would be tried in turn, in quadratic time.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_STEPS = np.zeros(256, np.int32)
_STEPS[[*b"[{"]] = 1
_STEPS[[*b"]}"]] = -1

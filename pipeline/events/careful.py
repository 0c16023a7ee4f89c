"""Records that the quick parser can't be right about: what they are, or what is wrong with them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from pipeline.events.batch import Record
from pipeline.events.checks import Problem, any_ms, iso_ms, shown
from pipeline.events.fields import Refused
from pipeline.events.framing import payload_of
from pipeline.events.lookup import NO_ELEMENT, Element, Lookup, Parsed
from pipeline.events.parse import Event
from pipeline.events.problems import event_problem, malformed_problem
from pipeline.events.ways import Plan
from pipeline.settings import EventsConfig

_FAR_S = 1e15  # beyond all clocks
MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


class Found(NamedTuple):
    """What a record was read as: good events with their times in ms, why another is none, types to ignore."""

    events: list[tuple[Event, int]]
    problem: Problem | None
    ignored: list[str]


class CarefulReader:
    """Reads one record after the other, right about all of them."""

    def __init__(self, plan: Plan, settings: EventsConfig) -> None:
        self._lookup = Lookup(plan, settings.time_unit)
        self._ignored = settings.ignored()
        self._to_ms = TO_MS[settings.time_unit]

    def read(self, record: Record, value: bytes, default_type: str, now_ms: int) -> Found:
        """Read a record that is neither too long nor too deep. `value` is its own."""
        payload = payload_of(value)
        events: list[tuple[Event, int]] = []
        problems: list[Problem] = []
        ignored: list[str] = []
        try:
            payload.decode()  # all of it must be UTF-8; the parser skips over unknown fields
            parsed = self._lookup.parse(payload, record.key)
            elements = self._elements(parsed, default_type)
        except MALFORMED as error:
            return Found([], malformed_problem(record, payload, error, ""), [])
        for element in elements or (NO_ELEMENT,):
            try:
                kind = self._kind(parsed, element, default_type)
                if kind in self._ignored:
                    ignored.append(kind)
                    continue
                event = self._lookup.event(parsed, element)
                time_ms = self._time_ms(event, record, parsed, element)
            except MALFORMED as error:
                problems.append(malformed_problem(record, payload, error, ""))
                continue
            problem = event_problem(event, time_ms, now_ms, partial(self._lookup.shown, parsed, element))
            if problem:
                problems.append(problem)
                continue
            if element.number is not None and event.event_id and not event.own_id:
                event.event_id += f"#{element.number}"
            events.append((event, time_ms))
        return Found(events, _as_one(problems, len(elements)), ignored)

    def count(self, record: Record, default_type: str) -> int:
        """Return how many events a record is at most."""
        try:
            parsed = self._lookup.parse(payload_of(record.value or b""), record.key)
            return len(self._elements(parsed, default_type))
        except MALFORMED:
            return 0

    def _elements(self, parsed: Parsed, default_type: str) -> list[Element]:
        """Return the elements that are events; none for a record to ignore as a whole.

        The type is looked at first: an event to ignore may lack what others need, and its array be too long.
        """
        if not self._lookup.types_inside and self._kind(parsed, NO_ELEMENT, default_type) in self._ignored:
            return []
        return self._lookup.elements(parsed)

    def _kind(self, parsed: Parsed, element: Element, default_type: str) -> str:
        kind, _ = self._lookup.take("event_type", parsed, element)
        return kind or default_type

    def _time_ms(self, event: Event, record: Record, parsed: Parsed, element: Element) -> int:
        time = event.timestamp_ms
        if time is None:
            return record.timestamp
        try:
            return self._to_ms(time)
        except ValueError as error:
            name = self._lookup.shown(parsed, element, "timestamp_ms")
            raise Refused("bad_time", f"{name}: {shown(str(error))}; expected ISO 8601") from None


def _as_one(problems: Sequence[Problem], elements: int) -> Problem | None:
    """Return the first of the problems, with the number of the others; None for none.

    One that all elements share, as it is the record's, is one.
    """
    if not problems:
        return None
    first, more = problems[0], sum(problem != problems[0] for problem in problems)
    return (
        first._replace(detail=f"{first.detail} (and {more} more of {elements} elements)") if more else first
    )


def _seconds_to_ms(seconds: float) -> int:
    return round(max(-_FAR_S, min(seconds, _FAR_S)) * 1000)  # a product that overflows has no integer


TO_MS: dict[str, Callable[[Any], int]] = {"ms": round, "s": _seconds_to_ms, "iso": iso_ms, "auto": any_ms}

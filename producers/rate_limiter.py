"""Yield events at an even rate, or with their recorded gaps."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

SLICE_S = 0.015  # events leave in slices of this length: even enough for latency, few enough wake-ups
CHECK_EVENTS = 1_000  # events without a pause between two calls of `wait`
MAX_WAIT_S = 0.1  # longer gaps are waited for in slices, so that an interruption is noticed


class Timed(Protocol):
    """Something that happened at a time."""

    @property
    def time_ms(self) -> int: ...


Event = TypeVar("Event")
TimedEvent = TypeVar("TimedEvent", bound=Timed)


class Pace(NamedTuple):
    """How fast events are sent: with their recorded gaps divided by `speed`, else at `rate` a second, with
    neither as fast as they are taken."""

    rate: float = 0.0
    speed: float = 0.0


NO_LIMIT = Pace()


def pause(seconds: float) -> bool:
    """Sleep and return False: the `wait` of a sender that is never stopped early."""
    time.sleep(seconds)
    return False


def at_rate(
    events: Iterable[Event],
    rate: float,
    wait: Callable[[float], bool] = pause,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Yield `events` at `rate` a second, counted from the first; 0: without a limit.

    Delays are made up for at once, so that the rate holds over the whole run. `wait(seconds)` is called
    between slices and ends the stream by returning True.

    Raises ValueError when `rate` is negative or not a number.
    """
    if not rate >= 0 or math.isinf(rate):
        raise ValueError(f"rate {rate}: expected events a second, or 0 for as fast as possible")
    start_s, due = now_s(), 0
    for index, event in enumerate(events):
        while index >= due:
            if index and wait(SLICE_S if rate else 0.0):
                return
            due = 1 + (int((now_s() - start_s) * rate) if rate else index + CHECK_EVENTS)
        yield event


def as_recorded(
    events: Iterable[TimedEvent],
    speed: float,
    wait: Callable[[float], bool] = pause,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[TimedEvent]:
    """Yield events with their recorded gaps divided by `speed`, counted from the first.

    Delays are made up for at once; an event with an earlier time than its predecessor follows without a gap.
    `wait(seconds)` is called in gaps and regularly between events and ends the stream by returning True.
    """
    start_s, first_ms = now_s(), 0
    for index, event in enumerate(events):
        if not index:
            first_ms = event.time_ms
        due_s = start_s + (event.time_ms - first_ms) / 1000 / speed
        if index % CHECK_EVENTS == 0 and wait(0.0):
            return
        while (early_s := due_s - now_s()) > 0:
            if wait(min(early_s, MAX_WAIT_S)):
                return
        yield event

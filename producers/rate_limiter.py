"""Yield events at an even rate, or with their recorded gaps."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

SLICE_S = 0.015  # shortest wait for a rate: even enough for latency, few enough wake-ups
CHECK_EVENTS = 1_000  # events without a pause between two calls of `wait`
MAX_WAIT_S = 0.1  # longer gaps are waited for in slices, so that an interruption is noticed


class Timed(Protocol):
    """Something that happened at a time."""

    @property
    def time_ms(self) -> int: ...


Event = TypeVar("Event", bound=Timed)


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


def paced(
    events: Iterable[Event],
    pace: Pace,
    wait: Callable[[float], bool] = pause,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Yield events when they are due, counted from the first.

    Delays are made up for at once, so that the pace holds over the whole run; an event with an earlier time
    than its predecessor follows without a gap. `wait(seconds)` is called in gaps and regularly between events
    and ends the stream by returning True.
    """
    start_s, first_ms, waited_at = now_s(), 0, 0
    shortest_s = 0.0 if pace.speed else SLICE_S
    for index, event in enumerate(events):
        first_ms = first_ms if index else event.time_ms
        due_s = start_s
        if pace.speed:
            due_s += (event.time_ms - first_ms) / 1000 / pace.speed
        elif pace.rate:
            due_s += index / pace.rate
        while (early_s := due_s - now_s()) > 0 or index - waited_at >= CHECK_EVENTS:
            waited_at = index
            if wait(min(max(early_s, shortest_s), MAX_WAIT_S) if early_s > 0 else 0.0):
                return
        yield event

"""Let events out at an even rate."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

SLICE_S = (
    0.015  # events leave in slices of this length: even enough for a latency figure, few enough wake-ups
)

Event = TypeVar("Event")


def pause(seconds: float) -> bool:
    """Sleep, and never ask for a stop: the `wait` of a sender that nobody else ends."""
    time.sleep(seconds)
    return False


def paced(
    events: Iterable[Event],
    rate: float,
    wait: Callable[[float], bool] = pause,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Yield `events` at `rate` a second, counted from the first; 0: as fast as they are taken.

    What is late is made up for at once, so that the rate holds over the whole run. Between slices
    `wait(seconds)` is called; True from it ends the stream.

    Raises ValueError when `rate` is negative or not a number.
    """
    if not rate >= 0 or math.isinf(rate):
        raise ValueError(f"rate {rate}: expected events a second, or 0 for as fast as possible")
    start_s, due = now_s(), 0
    for out, event in enumerate(events):
        while out >= due:
            if out and wait(SLICE_S if rate else 0.0):
                return
            # Without a rate nothing is ever early; `wait` is still asked now and then.
            due = 1 + (int((now_s() - start_s) * rate) if rate else out + 1_000)
        yield event

"""A first SIGINT or SIGTERM asks a command to come to an end; a second one ends it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGINT or SIGTERM came; a second one acts as it did before."""
    came = False
    previous: dict[int, Any] = {}

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        for each, handler in previous.items():
            signal.signal(each, handler)

    for stop in (signal.SIGINT, signal.SIGTERM):
        previous[stop] = signal.signal(stop, ask_to_stop)
    try:
        yield lambda: came
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)

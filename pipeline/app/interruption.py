"""What SIGINT and SIGTERM do to a command while it works."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], object]
ENDS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_to(handler: Handler, *, once: bool = False) -> Iterator[None]:
    """Give both signals to `handler` for a while; `once`: the first one alone, then they act as before.

    For the main thread. SIGINT too: a shell that starts a job in the background has it ignored.
    """
    previous: dict[int, Any] = {}

    def give_back() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    def first(number: int, frame: FrameType | None) -> None:
        give_back()
        handler(number, frame)

    for number in ENDS:
        previous[number] = signal.signal(number, first if once else handler)
    try:
        yield
    finally:
        give_back()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a signal asked the command to come to an end; a second one acts as it
    did before.
    """
    came = False

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    with signals_to(ask_to_stop, once=True):
        yield lambda: came

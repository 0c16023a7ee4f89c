"""Clocks: the machine's, and one that moves only when told to."""

import time


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Return wall-clock time in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return seconds that never jump, for durations."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved: runs on it repeat exactly.

    >>> clock = ManualClock(1_700_000_000_000)
    >>> clock.advance(0.25)
    >>> clock.now_ms(), clock.monotonic_s()
    (1700000000250, 0.25)
    """

    def __init__(self, now_ms: int) -> None:
        self._start_ms = now_ms
        self._passed_s = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_s += seconds

    def now_ms(self) -> int:
        """Return the start and what has passed since, in milliseconds."""
        return self._start_ms + round(self._passed_s * 1000)

    def monotonic_s(self) -> float:
        """Return what has passed, in seconds."""
        return self._passed_s

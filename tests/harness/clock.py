"""A clock that is moved by hand."""


class ManualClock:
    """A clock that moves only by `advance`: runs on it are repeatable.

    >>> clock = ManualClock(1_700_000_000_000)
    >>> clock.advance(0.25)
    >>> clock.now_ms(), clock.monotonic_s()
    (1700000000250, 0.25)
    """

    def __init__(self, now_ms: int) -> None:
        self._start_ms = now_ms
        self._passed_s = 0.0

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._passed_s += seconds

    def now_ms(self) -> int:
        """Return the start time plus the seconds passed, in milliseconds."""
        return self._start_ms + round(self._passed_s * 1000)

    def monotonic_s(self) -> float:
        """Return the seconds passed."""
        return self._passed_s

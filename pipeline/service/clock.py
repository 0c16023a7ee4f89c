"""The clocks of the operating system."""

import time


class SystemClock:
    """Wall clock and monotonic clock."""

    def now_ms(self) -> int:
        """Return wall-clock time in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return monotonic seconds, for durations."""
        return time.monotonic()

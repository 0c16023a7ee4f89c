"""Work on a batch's queries in two threads, each with one half of them.

The kernels hold no lock of the interpreter, and no query's work depends on another's, so the numbers are the
same to the bit with one thread and with two.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

LEAST = 32  # queries below which handing work over takes longer than doing it
_helper: ThreadPoolExecutor | None = None


def use_threads(count: int) -> None:
    """Let this process work in two threads where `count` is above 1, else in one, as at first."""
    global _helper
    if _helper is not None:
        _helper.shutdown()
    _helper = ThreadPoolExecutor(1, "afresh-half") if count > 1 else None


def in_halves(work: Callable[[int, int, int], None], count: int, least: int = LEAST) -> None:
    """Call `work(half, start, stop)` for both halves of `count`, at a time where there are two threads and
    `least` to do.

    `half` is 0 or 1: which scratch space to use. What either raises is raised.
    """
    middle = (count + 1) // 2
    if _helper is None or count < least:
        work(0, 0, middle)
        work(1, middle, count)
        return
    other = _helper.submit(work, 1, middle, count)
    try:
        work(0, 0, middle)
    finally:
        other.result()

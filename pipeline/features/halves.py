"""Work on a batch's queries in two halves, at a time where there is a helper.

The kernels hold no lock of the interpreter, and no query's work depends on another's, so the numbers are the
same to the bit with a helper and without. Who that is (a thread, see `pipeline.app.cpu_count`) is not known
here.
"""

from collections.abc import Callable

# begins work elsewhere and returns what waits for its end, and raises what it raised
Helper = Callable[[Callable[[], None]], Callable[[], None]]
LEAST = 32  # queries below which handing work over takes longer than doing it
_helper: Helper | None = None


def use_helper(helper: Helper | None) -> None:
    """Let this process hand the second half of its work to `helper`; None: do all itself, as at first."""
    global _helper
    _helper = helper


def in_halves(work: Callable[[int, int, int], None], count: int, least: int = LEAST) -> None:
    """Call `work(half, start, stop)` for both halves of `count` at a time, or once for all: without a helper,
    and below `least`.

    `half` is 0 or 1: which scratch space to use. What either raises is raised.
    """
    if _helper is None or count < least:
        work(0, 0, count)
        return
    middle = (count + 1) // 2
    wait = _helper(lambda: work(1, middle, count))
    try:
        work(0, 0, middle)
    finally:
        wait()

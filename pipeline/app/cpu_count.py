"""The cores of this machine, and how a batch's work is put on two of them."""

import os
from concurrent.futures import ThreadPoolExecutor

from pipeline.features import halves


def free_cores() -> int:
    """Return the number of cores that the process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let this process work on a batch in two threads where `count` is above 1, else in one, as at first."""
    if count < 2:
        halves.use_helper(None)
        return
    pool = ThreadPoolExecutor(1, "afresh-half")
    halves.use_helper(lambda work: pool.submit(work).result)

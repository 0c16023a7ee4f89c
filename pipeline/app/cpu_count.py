"""The CPUs that this process may use, and the worker thread that takes half of a batch's work."""

import os
from concurrent.futures import ThreadPoolExecutor

from pipeline.features import halves


def cpu_count() -> int:
    """Return the number of CPUs that the process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Split the work on a batch over two threads where `count` is above 1; one thread is the default."""
    if count < 2:
        halves.use_helper(None)
        return
    pool = ThreadPoolExecutor(1, "afresh-worker")
    halves.use_helper(lambda work: pool.submit(work).result)

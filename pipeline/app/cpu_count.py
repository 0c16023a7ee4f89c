"""The cores of this machine."""

import os


def free_cores() -> int:
    """Return the number of cores that the process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

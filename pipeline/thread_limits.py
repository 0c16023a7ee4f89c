"""Limit the threads of numerical libraries: more of them than free cores spin and slow down everything."""

import os
import sys

from threadpoolctl import threadpool_limits

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def limit_threads(count: int) -> None:
    """Limit every BLAS and OpenMP pool of this process to `count` threads, whatever the environment says.

    Libraries that are loaded already are set through their own functions; one that is loaded later (scipy has
    a BLAS of its own, torch an OpenMP) reads the environment of this process at that moment.
    """
    for name in VARIABLES:
        os.environ[name] = str(count)
    threadpool_limits(count)
    if torch := sys.modules.get("torch"):  # OpenMP keeps a number for each thread, torch one for all of them
        torch.set_num_threads(count)

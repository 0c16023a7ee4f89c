"""What this user comes back to, where repeats are welcome.

S_OWN     4 - ln(1 + k) for the newest place k of the window that holds m
S_OFTEN   ln(1 + places that hold m)
S_AGAIN   ln(1 + sum over places k > 0 of a_k where the place after k, in time, holds m)
          a_k = 1 if place k holds the newest item h_0, 3 if h_1 came before it then too; else .3 if it
          holds h_1
"""

import numpy as np
from numba import njit

from pipeline.features.memories import DENSE, S_AGAIN, S_OFTEN, S_OWN
from pipeline.features.slots import slot_of
from pipeline.kernels import kernel

SAME, SAME_TWO, PASSED = 1.0, 3.0, 0.3


@njit(inline="always")
def _likeness(history, k):  # type: ignore[no-untyped-def]
    """Return a_k."""
    length = history.shape[0]
    if history[k] == history[0]:
        return np.float32(SAME_TWO if k + 1 < length and history[k + 1] == history[1] else SAME)
    return np.float32(PASSED if history[k] == history[1] else 0.0)


@kernel()
def speak(n, history, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Add the sums; S_OWN as 1 / (1 + k). See the package."""
    for k in range(history.shape[0]):
        c, n = slot_of(history[k], n, base, status_M, seen, rows_C)
        if c >= 0:
            if X_CS[c, S_OWN] == 0:
                X_CS[c, S_OWN] = np.float32(1) / np.float32(1 + k)
            X_CS[c, S_OFTEN] += np.float32(1)
            if k + 1 < history.shape[0]:
                X_CS[c, S_AGAIN] += _likeness(history, k + 1)
    return n


@kernel()
def share(history, m, x_S, coef_F, out_P):  # type: ignore[no-untyped-def]
    """Give recency and number to m's own newest place, and S_AGAIN to the places before its returns, each by
    its summand. See the package.
    """
    length = history.shape[0]
    total = np.float32(0)
    for k in range(length - 1):
        if history[k] == m:
            total += _likeness(history, k + 1)
    for k in range(length - 1):
        if history[k] == m and total > 0:
            out_P[k + 1] += x_S[S_AGAIN] * coef_F[DENSE + S_AGAIN] * _likeness(history, k + 1) / total
    if x_S[S_OFTEN] > 0:
        for k in range(length):
            if history[k] == m:
                out_P[k] += x_S[S_OWN] * coef_F[DENSE + S_OWN] + x_S[S_OFTEN] * coef_F[DENSE + S_OFTEN]
                break

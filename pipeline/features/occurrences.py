"""What came the last times after the newest item, those times first that had the same surroundings.

    S_CONTEXT   ln(1 + 1000 sum_r w_r^2 / sum of all w_r^2)
    S_SHARP     ln(1 + sum_r w_r^4)

Sums over those of the newest item's last occurrences r that were followed by m; w_r = 1 + for each of the
BEFORE items before that occurrence 1 if the same place of this history holds it, .5 if a place close by does.
"""

import numpy as np

from pipeline.features.memories import DENSE, S_CONTEXT, S_SHARP
from pipeline.features.slots import slot_of
from pipeline.kernels import kernel
from pipeline.state.successors import BEFORE

CLOSE = 6  # places of the history that are close by


@kernel()
def speak(n, history, context, contexts, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Add the sums; return the number of candidates, and the sum of all w^2. See the package."""
    weights = np.float32(0)
    length = history.shape[0]
    if length == 0:
        return n, weights
    h = history[0]
    for r in range(min(contexts[h], context.shape[1])):
        match = np.float32(1)
        for q in range(1, 1 + BEFORE):
            p = context[h, r, q]
            if p < 0:
                continue
            if q < length and history[q] == p:
                match += np.float32(1)
            else:
                for k in range(1, min(length, CLOSE)):
                    if history[k] == p:
                        match += np.float32(0.5)
                        break
        square = match * match
        weights += square
        c, n = slot_of(context[h, r, 0], n, base, status_M, seen, rows_C)
        if c >= 0:
            X_CS[c, S_CONTEXT] += square
            X_CS[c, S_SHARP] += square * square
    return n, weights


@kernel()
def share(x_S, coef_F, out_P):  # type: ignore[no-untyped-def]
    """Give all to the newest item: its occurrences are what was looked up. See the package."""
    for f in (S_CONTEXT, S_SHARP):
        out_P[0] += x_S[f] * coef_F[DENSE + f]

"""How an item that a memory speaks of becomes a candidate.

In `seen` [M] the item of slot c of the query at hand holds base + c, a barred item base + BARRED: one array
answers whether, and where. `base` is the query's number << SHIFT, larger than that of any query before.
"""

import numpy as np
from numba import njit

from pipeline.state.tables import LIVE

SPOKEN_OF = 320  # slots for what the history's items speak of; the rest is for popular items
SHIFT = 11  # a query has fewer than 2 ** SHIFT slots: 320, 40 a list, and at most 1,000 for a list of K
BARRED = (1 << SHIFT) - 1


# Inlined: as a call it takes nine times as long, since numba counts references to every array at each call.
@njit(inline="always")
def slot_of(m, n, base, status_M, seen, rows_C):  # type: ignore[no-untyped-def]
    """Return the slot of item row `m`, a new one where there is room, and the number of slots in use.

    -1: none, as the row holds no item that may be shown or all slots are taken. `rows_C[c]` is slot c's row.
    """
    c = np.int64(-1)
    if m >= 0 and status_M[m] == LIVE:
        c = seen[m] - base
        if c < 0 and n < SPOKEN_OF:
            c = n
            seen[m], rows_C[n] = base + n, m
            n += 1
        elif c < 0 or c == BARRED:
            c = np.int64(-1)
    return c, n

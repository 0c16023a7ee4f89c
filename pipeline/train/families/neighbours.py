"""What else lies in stretches of others' histories that look like this one: session-kNN on short stretches.

    S_NEIGHBOUR   ln(1 + sum_k sum_r w_kr^2 (1 if m comes next, .5 if it came before) / (20 p_m))

Sums over the last occurrences r of each of the newest items h_k, k < LOOKED_AT: the stretch of BEFORE items
before it and the one after. w_kr = .8^k + sum over the stretch's items of .8^i where h_i holds them,
i < REACH.
"""

import numpy as np
from numba import njit

from pipeline.state.successors import BEFORE
from pipeline.train.families.slots import slot_of
from pipeline.train.memories import DENSE, S_NEIGHBOUR

LOOKED_AT = 3  # five bring nothing more
REACH = 10
FADE = 0.8
ASIDE = 0.5  # how much an item counts that came before, of one that comes next


@njit(cache=True, nogil=True)
def mark(history, near_M):  # type: ignore[no-untyped-def]
    """Write .8^i of each newest item's newest place to the scratch array `near` [M], all 0 before."""
    fade = np.float32(1)
    for k in range(min(history.shape[0], REACH)):
        near_M[history[k]] = max(near_M[history[k]], fade)
        fade *= np.float32(FADE)


@njit(cache=True, nogil=True)
def unmark(history, near_M):  # type: ignore[no-untyped-def]
    """Bring the scratch array back to 0."""
    for k in range(min(history.shape[0], REACH)):
        near_M[history[k]] = 0


@njit(inline="always")
def _likeness(stretch, fade, near_M):  # type: ignore[no-untyped-def]
    """Return w^2."""
    match = fade
    for q in range(1 + BEFORE):
        if stretch[q] >= 0:
            match += near_M[stretch[q]]
    return match * match


@njit(cache=True, nogil=True)
def speak(n, history, context, contexts, status_M, base, seen, near_M, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Add the sums; see the package."""
    mark(history, near_M)
    fade = np.float32(1)
    for k in range(min(history.shape[0], LOOKED_AT)):
        h = history[k]
        for r in range(min(contexts[h], context.shape[1])):
            square = _likeness(context[h, r], fade, near_M)
            for q in range(1 + BEFORE):
                c, n = slot_of(context[h, r, q], n, base, status_M, seen, rows_C)
                if c >= 0:
                    X_CS[c, S_NEIGHBOUR] += square if q == 0 else square * np.float32(ASIDE)
        fade *= np.float32(FADE)
    unmark(history, near_M)
    return n


@njit(cache=True, nogil=True)
def share(history, rows_K, at_K, X_CS, coef_F, context, contexts, near_M, out_KP):  # type: ignore[no-untyped-def]
    """Share out each shown item's feature (that of slot at_k, -1: none) among the newest items, each by its
    summand. See the package.
    """
    part = np.zeros((rows_K.shape[0], LOOKED_AT), np.float32)
    mark(history, near_M)
    fade = np.float32(1)
    parents = min(history.shape[0], LOOKED_AT)
    for k in range(parents):
        h = history[k]
        for r in range(min(contexts[h], context.shape[1])):
            square = _likeness(context[h, r], fade, near_M)
            for q in range(1 + BEFORE):
                m = context[h, r, q]
                for i in range(rows_K.shape[0]):
                    if rows_K[i] == m and m >= 0:
                        part[i, k] += square if q == 0 else square * np.float32(ASIDE)
        fade *= np.float32(FADE)
    unmark(history, near_M)
    for i in range(rows_K.shape[0]):
        total = part[i].sum()
        if at_K[i] >= 0 and total > 0:
            value = X_CS[at_K[i], S_NEIGHBOUR] * coef_F[DENSE + S_NEIGHBOUR]
            for k in range(parents):
                out_KP[i, k] += value * part[i, k] / total

"""What came after or near the newest items, anywhere in anyone's history, by the successor tables.

    S_BACKOFF   ln(1 + sum_k .6^k forward / (20 p_m))                 backed off to popularity p_m
    S_COSINE    ln(1 + 1000 sum_k .8^k both / sqrt(1 + count of h_k))
    S_NAIVE     sum_k .8^k ln(1 + both / (40 p_m))                    each item's word for itself

both = forward + backward; k < PARENTS; p_m the smoothed popularity share at half-life 1,000.
"""

import numpy as np
from numba import njit

from pipeline.train.families.slots import slot_of
from pipeline.train.memories import DENSE, PARENTS, S_BACKOFF, S_COSINE, S_NAIVE

FORWARD_FADE, BOTH_FADE = 0.6, 0.8


@njit(cache=True, nogil=True)
def speak(  # type: ignore[no-untyped-def]
    n, history, partner, forward, backward, count_M, prior_M, status_M, base, seen, rows_C, X_CS
):
    """Add the sums; `prior_M` is 20 p_m. See the package."""
    fade6, fade8, one = np.float32(1), np.float32(1), np.float32(1)
    for k in range(min(history.shape[0], PARENTS)):
        h = history[k]
        norm = fade8 / np.sqrt(one + count_M[h])
        for s in range(partner.shape[1]):
            m = partner[h, s]
            c, n = slot_of(m, n, base, status_M, seen, rows_C)
            if c >= 0:
                both = forward[h, s] + backward[h, s]
                X_CS[c, S_BACKOFF] += fade6 * forward[h, s]
                X_CS[c, S_COSINE] += norm * both
                X_CS[c, S_NAIVE] += fade8 * np.log(one + both / (prior_M[m] + prior_M[m]))
        fade6 *= np.float32(FORWARD_FADE)
        fade8 *= np.float32(BOTH_FADE)
    return n


@njit(cache=True, nogil=True)
def share(history, m, x_S, coef_F, partner, forward, backward, count_M, prior_M, out_P):  # type: ignore[no-untyped-def]
    """Share out item m's features x among the newest items, each by its summand. See the package."""
    one = np.float32(1)
    part = np.zeros((3, PARENTS), np.float32)
    fade6, fade8 = one, one
    parents = min(history.shape[0], PARENTS)
    for k in range(parents):
        h = history[k]
        for s in range(partner.shape[1]):
            if partner[h, s] == m:
                both = forward[h, s] + backward[h, s]
                part[0, k] = fade6 * forward[h, s]
                part[1, k] = fade8 * both / np.sqrt(one + count_M[h])
                part[2, k] = fade8 * np.log(one + both / (prior_M[m] + prior_M[m]))
                break
        fade6 *= np.float32(FORWARD_FADE)
        fade8 *= np.float32(BOTH_FADE)
    for i in range(3):
        f = S_BACKOFF if i == 0 else (S_COSINE if i == 1 else S_NAIVE)
        total = part[i].sum()
        if total > 0:
            for k in range(parents):
                out_P[k] += x_S[f] * coef_F[DENSE + f] * part[i, k] / total

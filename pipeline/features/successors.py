"""What came after or near the newest items, anywhere in anyone's history, by the successor tables.

    S_BACKOFF   ln(1 + sum_k .6^k forward / (20 p_m))                       backed off to popularity p_m
    S_NAIVE     sum_k .8^k ln(1 + both / (40 p_m))                          each item's word for itself
    S_LIFT      ln(1 + 300 sum_k .9^k both / (sqrt(1 + n(h_k)) (1 + n(m)))) reaches far back
    S_LATEST    ln(1 + latest / (10 r_m))                                   by counts that fade, of h_0 alone

both = forward + backward; k < PARENTS, in S_LIFT k < REACHED; n counts events; p_m and r_m the smoothed
popularity shares at half-lives of 1,000 and 300 events.
"""

import numpy as np

from pipeline.features.memories import DENSE, PARENTS, REACHED, S_BACKOFF, S_LATEST, S_LIFT, S_NAIVE
from pipeline.features.slots import slot_of
from pipeline.kernels import kernel

FORWARD_FADE, BOTH_FADE, LIFT_FADE = 0.6, 0.8, 0.9


@kernel()
def speak(  # type: ignore[no-untyped-def]
    n, history, partner, forward, backward, count_M, prior_M, status_M, base, seen, rows_C, X_CS
):
    """Add the newest items' sums, S_LATEST left out; `prior_M` is 20 p_m. See the package."""
    fade6, fade8, fade9, one = np.float32(1), np.float32(1), np.float32(1), np.float32(1)
    for k in range(min(history.shape[0], PARENTS)):
        h = history[k]
        norm = fade9 / np.sqrt(one + count_M[h])
        for s in range(partner.shape[1]):
            m = partner[h, s]
            c, n = slot_of(m, n, base, status_M, seen, rows_C)
            if c >= 0:
                both = forward[h, s] + backward[h, s]
                X_CS[c, S_BACKOFF] += fade6 * forward[h, s]
                X_CS[c, S_LIFT] += norm * both / (one + count_M[m])
                X_CS[c, S_NAIVE] += fade8 * np.log(one + both / (prior_M[m] + prior_M[m]))
        fade6 *= np.float32(FORWARD_FADE)
        fade8 *= np.float32(BOTH_FADE)
        fade9 *= np.float32(LIFT_FADE)
    return n


@kernel()
def speak_of_latest(n, history, partner, stored, scale, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Add what lately came right after the newest item. See the package."""
    if history.shape[0] > 0:
        h = history[0]
        for s in range(partner.shape[1]):
            c, n = slot_of(partner[h, s], n, base, status_M, seen, rows_C)
            if c >= 0:
                X_CS[c, S_LATEST] += scale * stored[h, s]
    return n


@kernel()
def speak_from_afar(n, history, partner, forward, backward, count_M, status_M, base, seen, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Add the lift of the items past the newest; last, as others' candidates come first. See the package."""
    fade, one = np.float32(LIFT_FADE**PARENTS), np.float32(1)
    for k in range(PARENTS, min(history.shape[0], REACHED)):
        h = history[k]
        norm = fade / np.sqrt(one + count_M[h])
        for s in range(partner.shape[1]):
            m = partner[h, s]
            c, n = slot_of(m, n, base, status_M, seen, rows_C)
            if c >= 0:
                X_CS[c, S_LIFT] += norm * (forward[h, s] + backward[h, s]) / (one + count_M[m])
        fade *= np.float32(LIFT_FADE)
    return n


@kernel()
def share(history, m, x_S, coef_F, partner, forward, backward, count_M, prior_M, part, out_P):  # type: ignore[no-untyped-def]
    """Share out item m's features x among the newest items, each by its summand. See the package.

    `part` [3, REACHED] is scratch.
    """
    one = np.float32(1)
    part[:, :] = 0
    fade6, fade8, fade9 = one, one, one
    parents = min(history.shape[0], REACHED)
    for k in range(parents):
        h = history[k]
        for s in range(partner.shape[1]):
            if partner[h, s] == m:
                both = forward[h, s] + backward[h, s]
                part[0, k] = fade9 * both / np.sqrt(one + count_M[h])
                if k < PARENTS:
                    part[1, k] = fade6 * forward[h, s]
                    part[2, k] = fade8 * np.log(one + both / (prior_M[m] + prior_M[m]))
                break
        fade6 *= np.float32(FORWARD_FADE)
        fade8 *= np.float32(BOTH_FADE)
        fade9 *= np.float32(LIFT_FADE)
    for i in range(3):
        f = S_LIFT if i == 0 else (S_BACKOFF if i == 1 else S_NAIVE)
        total = part[i].sum()
        if total > 0:
            for k in range(parents):
                out_P[k] += x_S[f] * coef_F[DENSE + f] * part[i, k] / total
    if parents > 0:
        out_P[0] += x_S[S_LATEST] * coef_F[DENSE + S_LATEST]

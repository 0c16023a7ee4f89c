"""What else lies in sessions of others that share items with this history: session-kNN as a memory.

    S_SESSION   ln(1 + 300 sum near_s^2 / sqrt(1 + length of s))     over the places that hold m in sessions s

near_s = sum over the distinct h_k, k < REACH, among whose newest sessions s is, of .8^k / sqrt(1 + sessions
of h_k): rare items bind more. The user's own session is left out, and so is, in each session, the newest item
that it shares. N = session slots, see `pipeline.state.sessions`.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.features.memories import DENSE, S_SESSION
from pipeline.features.slots import slot_of
from pipeline.kernels import kernel
from pipeline.state.sessions import is_repeat, session_of

REACH = 4
FADE = 0.8


def scratch(visits: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the arrays `found` and `shared` that the kernels need beside these `visits`."""
    most = REACH * visits.shape[1]
    return np.empty(most, np.int64), np.empty(most, np.int32)


@njit(inline="always")
def _word(h, fade, visited):  # type: ignore[no-untyped-def]
    """Return what sharing item h adds to near_s."""
    return fade / np.sqrt(np.float32(1) + np.float32(visited[h]))


@kernel()
def _find(history, own, number, visits, visited, near_N, found, shared):  # type: ignore[no-untyped-def]
    """Write near_s to the scratch array `near` [N], all 0 before; return how many sessions there are.

    `found` gets their slots, `shared` the newest item that each shares.
    """
    count, fade = 0, np.float32(1)
    for k in range(min(history.shape[0], REACH)):
        h = history[k]
        if not is_repeat(history, k):
            for v in range(min(visited[h], visits.shape[1])):
                s = session_of(h, v, number, visits, visited, own)
                if s >= 0:
                    if near_N[s] == 0:
                        found[count], shared[count] = s, h
                        count += 1
                    near_N[s] += _word(h, fade, visited)
        fade *= np.float32(FADE)
    return count


@njit(inline="always")
def _worth(near, length):  # type: ignore[no-untyped-def]
    """Return what a session adds to the sum of each of its items."""
    return near * near / np.sqrt(np.float32(1) + np.float32(length))


@kernel()
def speak(  # type: ignore[no-untyped-def]
    n, history, own, items, number, steps, visits, visited, near_N, found, shared, status_M, base, seen,
    rows_C, X_CS,
):  # fmt: skip
    """Add the sums; `own` is the number of the user's own session. See the package.

    Scratch: `near` [N], all 0; `found` and `shared`, see `scratch`.
    """
    places = items.shape[1]
    for i in range(_find(history, own, number, visits, visited, near_N, found, shared)):
        s = found[i]
        length = min(steps[s], places)
        worth = _worth(near_N[s], length)
        near_N[s] = 0
        for p in range(length):
            if items[s, p] != shared[i]:
                c, n = slot_of(items[s, p], n, base, status_M, seen, rows_C)
                if c >= 0:
                    X_CS[c, S_SESSION] += worth
    return n


@kernel()
def share(  # type: ignore[no-untyped-def]
    history, own, rows_K, at_K, X_CS, coef_F, items, number, steps, visits, visited, near_N, found, shared,
    newest_N, place_M, part_KP, out_KP,
):  # fmt: skip
    """Share out each shown item's feature (that of slot at_k, -1: none) among the newest items, each by what
    it adds to near_s. See the package.

    Scratch: that of `speak`, `newest` int32 [N], `place` int32 [M], all 0, and `part` float32 [K, >= REACH].
    """
    places, parents = items.shape[1], min(history.shape[0], REACH)
    part_KP[:, :] = 0
    for i in range(rows_K.shape[0]):
        if rows_K[i] >= 0:
            place_M[rows_K[i]] = i + 1
    count = _find(history, own, number, visits, visited, near_N, found, shared)
    for i in range(count):
        newest_N[found[i]] = shared[i]
    fade = np.float32(1)
    for k in range(parents):
        h = history[k]
        for v in range(0 if is_repeat(history, k) else min(visited[h], visits.shape[1])):
            s = session_of(h, v, number, visits, visited, own)
            if s < 0:
                continue
            length = min(steps[s], places)
            worth = _worth(near_N[s], length) * _word(h, fade, visited) / near_N[s]
            for p in range(length):
                m = items[s, p]
                if m >= 0 and m != newest_N[s] and place_M[m] > 0:
                    part_KP[place_M[m] - 1, k] += worth
        fade *= np.float32(FADE)
    for i in range(count):
        near_N[found[i]] = 0
    for i in range(rows_K.shape[0]):
        if rows_K[i] >= 0:
            place_M[rows_K[i]] = 0
        total = part_KP[i].sum()
        if at_K[i] >= 0 and total > 0:
            value = X_CS[at_K[i], S_SESSION] * coef_F[DENSE + S_SESSION]
            for k in range(parents):
                out_KP[i, k] += value * part_KP[i, k] / total

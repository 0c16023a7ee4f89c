"""What else is in sessions of others that share items with this history: session-kNN as a count feature.

    session  ln(1 + 300 sum near_s^2 / sqrt(1 + length of s))     over the places that hold m in sessions s

near_s = sum over the distinct h_k, k < REACH, with s among their newest sessions, of .8^k / sqrt(1 + sessions
of h_k): rare items bind more. Left out: the user's own session, and in each the newest item that it shares.
An incremental form of Kersbergen, Sprangers and Schelter, "Serenade" (SIGMOD 2022). Axes: M = item rows, N =
session slots, P = places of a session, R = sessions kept of an item.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, slot_of
from pipeline.features.family import Family, FloatArray, Shown, bits_of, place_in
from pipeline.features.lessons import Lessons
from pipeline.features.popularity import SCALE
from pipeline.kernels import inlined, kernel, log_all
from pipeline.state.store import Column, Store

# measured on recorded streams: from 5,000 to 50,000 sessions and from 32 to 256 visits, no figure moves by
# more than a fiftieth of itself
SESSIONS = 20_000  # the newest ones are kept
PLACES = 20  # newest items kept of a session
VISITS = 16  # newest sessions kept of an item
REACH = 4
FADE = 0.8
LIFTED = 300.0  # brings sums of small numbers to where ln(1 + .) bends


class Index(NamedTuple):
    """The arrays that kernels read sessions from."""

    items_NP: npt.NDArray[np.int32]
    key_N: npt.NDArray[np.uint64]
    number_N: npt.NDArray[np.int64]
    slot_T: npt.NDArray[np.int32]
    steps_N: npt.NDArray[np.int32]
    visits_MR: npt.NDArray[np.int64]
    visited_M: npt.NDArray[np.int64]


class SessionIndex(Store):
    """A bounded index of the newest sessions and their items.

    Sessions are numbered from 1 as they begin; slot = number % N. Columns: `items` int32 [N, P] (place = step
    % P, -1: empty), `key` uint64 [N] (see UserSessions), `number` int64 [N] (0: empty), `slot` int32 [T]
    (slots by key: open addressing with linear probing, -1: free), `steps` int32 [N], `last` int64 [1] (the
    newest number), `visits` int64 [M, R] (numbers of the sessions that held the item), `visited` int64 [M].
    """

    def __init__(self, capacity: int, visits: int = VISITS, sessions: int = SESSIONS) -> None:
        self.items = Column(np.full((sessions, PLACES), -1, np.int32), "none", -1, of_items=True)
        self.key = Column(np.zeros(sessions, np.uint64), "none")
        self.number = Column(np.zeros(sessions, np.int64), "none")
        self.slot = Column(np.full(1 << (2 * sessions).bit_length(), -1, np.int32), "none", -1)
        self.steps = Column(np.zeros(sessions, np.int32), "none")
        self.last = Column(np.zeros(1, np.int64), "none")
        self.visits = Column(np.zeros((capacity, visits), np.int64), "item")
        self.visited = Column(np.zeros(capacity, np.int64), "item")

    @property
    def index(self) -> Index:
        return Index(
            self.items.data, self.key.data, self.number.data, self.slot.data, self.steps.data,
            self.visits.data, self.visited.data,
        )  # fmt: skip

    def update(
        self, session_B: npt.NDArray[np.uint64], item_B: npt.NDArray[np.int32], weight_B: FloatArray
    ) -> None:
        """Add events to their sessions in order; keys of 0, rows below 0 and weights of 0 are left out."""
        _add(session_B, item_B, weight_B, self.index, self.last.data)


class Sessions(Family):
    """Its columns are those of a `SessionIndex`."""

    features = ("session",)

    def __init__(self, capacity: int) -> None:
        self.index = SessionIndex(capacity)
        self._near = np.zeros(SESSIONS, np.float32)  # scratch: all 0 between calls
        self._found = np.empty(REACH * VISITS, np.int64)
        self._shared = np.empty(REACH * VISITS, np.int32)

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self.index.index, self._near, self._found, self._shared, at)

    def finish(self, block: Block, at: int) -> None:
        _finish(block, at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        """Share the feature among the newest items, each by what it adds to near_s."""
        part = np.zeros((shown.rows_BK.shape[1], REACH), np.float32)
        _attribute(shown, self.index.index, self._near, self._found, self._shared, part, at, out_BKP)

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        self.index.update(lessons.session_B, lessons.item_B, lessons.weight_B)


@inlined
def is_repeat(history, k):  # type: ignore[no-untyped-def]
    """Return whether a newer place holds the item of place k."""
    again = False
    for j in range(k):
        again = again or history[j] == history[k]
    return again


@inlined
def _place_of(index, key):  # type: ignore[no-untyped-def]
    """Return the place of a key's slot in `slot_T`; without one, the free place for it."""
    mask = np.uint64(index.slot_T.shape[0] - 1)
    t = key & mask
    while index.slot_T[t] >= 0 and index.key_N[index.slot_T[t]] != key:
        t = (t + np.uint64(1)) & mask
    return t


@inlined
def slot_of_key(index, key):  # type: ignore[no-untyped-def]
    """Return the slot of a session by its key, -1 where it is not kept."""
    return np.int64(index.slot_T[_place_of(index, key)])


@inlined
def session_of(index, h, v, own):  # type: ignore[no-untyped-def]
    """Return the slot of the v-th newest session that holds item h; -1: replaced, or the slot `own`."""
    number = index.visits_MR[h, (index.visited_M[h] - 1 - v) % index.visits_MR.shape[1]]
    s = number % index.number_N.shape[0]
    return s if index.number_N[s] == number and s != own else np.int64(-1)


@inlined
def _binding(index, h, fade):  # type: ignore[no-untyped-def]
    """Return what sharing item h adds to near_s."""
    return fade / np.sqrt(np.float32(1) + np.float32(index.visited_M[h]))


@inlined
def _worth(near, length):  # type: ignore[no-untyped-def]
    """Return what a session adds to the sum of each of its items."""
    return near * near / np.sqrt(np.float32(1) + np.float32(length))


@kernel()
def _find(history, length, own, index, near_N, found, shared):  # type: ignore[no-untyped-def]
    """Write near_s to the scratch array `near` [N], all 0 before; return how many sessions there are.

    `found` gets their slots, `shared` the newest item that each shares; the slot `own` is left out.
    """
    count, fade = 0, np.float32(1)
    for k in range(min(length, REACH)):
        h = history[k]
        if not is_repeat(history, k):
            for v in range(min(index.visited_M[h], index.visits_MR.shape[1])):
                s = session_of(index, h, v, own)
                if s >= 0:
                    if near_N[s] == 0:
                        found[count], shared[count] = s, h
                        count += 1
                    near_N[s] += _binding(index, h, fade)
        fade *= np.float32(FADE)
    return count


@kernel()
def _retrieve(block, index, near_N, found, shared, at):  # type: ignore[no-untyped-def]
    places = index.items_NP.shape[1]
    for b in range(block.length_B.shape[0]):
        own = slot_of_key(index, block.session_B[b])
        count = _find(block.items_BL[b], block.length_B[b], own, index, near_N, found, shared)
        for i in range(count):
            s = found[i]
            length = min(index.steps_N[s], places)
            worth = _worth(near_N[s], length)
            near_N[s] = 0
            for p in range(length):
                if index.items_NP[s, p] != shared[i]:
                    c = slot_of(block, b, index.items_NP[s, p], RETRIEVED)
                    if c >= 0:
                        block.features_BCF[b, c, at] += worth


@kernel()
def _finish(block, at):  # type: ignore[no-untyped-def]
    for b in range(block.length_B.shape[0]):
        n, values = block.count_B[b], block.scratch_C
        for c in range(n):
            values[c] = np.float32(1) + np.float32(LIFTED) * block.features_BCF[b, c, at]
        log_all(values, n)
        for c in range(n):
            block.features_BCF[b, c, at] = values[c] * np.float32(SCALE)


@inlined
def _shared_of(s, found, shared, count):  # type: ignore[no-untyped-def]
    """Return the newest item that session s shares."""
    newest = -1
    for i in range(count):
        if found[i] == s:
            newest = shared[i]
    return newest


@kernel()
def _attribute(shown, index, near_N, found, shared, part_KP, at, out_BKP):  # type: ignore[no-untyped-def]
    places, rest = index.items_NP.shape[1], out_BKP.shape[2] - 1
    for b in range(shown.rows_BK.shape[0]):
        history, own = shown.items_BL[b], slot_of_key(index, shown.session_B[b])
        rows_K, parents = shown.rows_BK[b], min(shown.length_B[b], REACH)
        bits = bits_of(rows_K)
        part_KP[:, :] = 0
        count = _find(history, shown.length_B[b], own, index, near_N, found, shared)
        fade = np.float32(1)
        for k in range(parents):
            h = history[k]
            for v in range(0 if is_repeat(history, k) else min(index.visited_M[h], index.visits_MR.shape[1])):
                s = session_of(index, h, v, own)
                if s < 0:
                    continue
                length, newest = min(index.steps_N[s], places), -2  # -2: not looked up yet
                for p in range(length):
                    i = place_in(rows_K, bits, index.items_NP[s, p])
                    if i >= 0:
                        if newest == -2:
                            newest = _shared_of(s, found, shared, count)
                            worth = _worth(near_N[s], length) * _binding(index, h, fade) / near_N[s]
                        if rows_K[i] != newest:
                            part_KP[i, k] += worth
            fade *= np.float32(FADE)
        for i in range(count):
            near_N[found[i]] = 0
        for i in range(rows_K.shape[0]):
            if rows_K[i] < 0:
                continue
            total, value = part_KP[i].sum(), shown.value_BKF[b, i, at]
            for k in range(parents if total > 0 else 0):
                out_BKP[b, i, k] += value * part_KP[i, k] / total
            if total <= 0:
                out_BKP[b, i, rest] += value


@inlined
def _remove(index, key):  # type: ignore[no-untyped-def]
    """Free a key's place; what follows moves up, so that no search ends too early."""
    mask = np.uint64(index.slot_T.shape[0] - 1)
    free = _place_of(index, key)
    t = (free + np.uint64(1)) & mask
    while index.slot_T[t] >= 0:
        home = index.key_N[index.slot_T[t]] & mask
        if ((t - home) & mask) >= ((t - free) & mask):
            index.slot_T[free] = index.slot_T[t]
            free = t
        t = (t + np.uint64(1)) & mask
    index.slot_T[free] = -1


@kernel()
def _add(session_B, item_B, weight_B, index, last):  # type: ignore[no-untyped-def]
    slots, places = index.items_NP.shape
    for b in range(item_B.shape[0]):
        m, key = item_B[b], session_B[b]
        if m < 0 or weight_B[b] <= 0 or key == 0:
            continue
        s = slot_of_key(index, key)
        if s < 0:
            last[0] += 1
            s = last[0] % slots
            if index.number_N[s] > 0:
                _remove(index, index.key_N[s])
            index.items_NP[s, :] = -1
            index.key_N[s], index.number_N[s], index.steps_N[s] = key, last[0], 0
            index.slot_T[_place_of(index, key)] = s
        number = index.number_N[s]
        new = True
        for p in range(places):
            new = new and index.items_NP[s, p] != m
        if index.steps_N[s] >= places:  # it may have been here before what is kept of the session
            for v in range(index.visits_MR.shape[1]):
                new = new and index.visits_MR[m, v] != number
        index.items_NP[s, index.steps_N[s] % places] = m
        index.steps_N[s] += 1
        if new:
            index.visits_MR[m, index.visited_M[m] % index.visits_MR.shape[1]] = number
            index.visited_M[m] += 1

"""Which items each user has consumed: packed item rows, at most `LIMIT` a user, the oldest given up first.

All users share one flat array of blocks with sizes that are powers of two; a full block moves to a larger
one, without items that are no longer known.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.state.store import Column, Store
from pipeline.state.tables import HELD, is_held

LIMIT = 1000
SMALLEST = 4  # blocks hold 4, 8, ... 1024
CLASSES = 9

IntArray = npt.NDArray[np.int32]


class Consumed(Store):
    """Columns: `start` int64 [U] (-1: no block), `size` int32 [U], `room` int32 [U].

    `values` int32 is the shared array. It is no column, since its places mean nothing: `ragged` and `put`
    move its content. The first entry of a free block is -2 - start of the next free one of its size.
    """

    def __init__(self, capacity: int) -> None:
        self.start = Column(np.full(capacity, -1, np.int64), "user", -1)
        self.size = Column(np.zeros(capacity, np.int32), "user")
        self.room = Column(np.zeros(capacity, np.int32), "user")
        self.values = np.full(4096, -1, np.int32)
        self._free = np.full(CLASSES, -1, np.int64)  # first free block of each size
        self._used = np.zeros(1, np.int64)

    def add(self, user_B: IntArray, item_B: IntArray, add_B: Any, status_M: Any) -> None:
        """Add events in order where `add_B`; an item that is there already moves to the newest place."""
        done = 0
        while True:
            done = _add(
                done, user_B, item_B, add_B, status_M, self.start.data, self.size.data, self.room.data,
                self.values, self._free, self._used,
            )  # fmt: skip
            if done == user_B.shape[0]:
                return
            self._extend()

    def of(self, user: int, status_M: Any) -> IntArray:
        """Return one user's consumed items that are still known, oldest first."""
        rows, _ = self.ragged(np.array([user], np.int32))
        return rows[(rows >= 0) & np.isin(status_M[rows], HELD)]

    def ragged(self, user_B: IntArray) -> tuple[IntArray, npt.NDArray[np.int64]]:
        """Return the users' blocks one behind the other (-1 where an item went) and the borders [B + 1]."""
        border = np.zeros(user_B.shape[0] + 1, np.int64)
        np.cumsum(self.size.data[user_B], out=border[1:])
        out = np.empty(border[-1], np.int32)
        _copy_out(user_B, self.start.data, self.size.data, self.values, border, out)
        return out, border

    def put(
        self, user_B: IntArray, values: IntArray, border: npt.NDArray[np.int64], room_B: IntArray
    ) -> None:
        """Set the blocks of users that have none, with the room they had: when a block moves must stay."""
        for b, u in enumerate(user_B.tolist()):
            room = int(room_B[b])
            if room:
                while (place := _allocate(room, self.values, self._free, self._used)) < 0:
                    self._extend()
                start, stop = int(border[b]), int(border[b + 1])
                self.values[place : place + stop - start] = values[start:stop]
                self.start.data[u], self.size.data[u], self.room.data[u] = place, stop - start, room

    def release(self, rows: npt.NDArray[np.integer]) -> None:
        """Give the blocks of these users back (before their rows are cleared)."""
        for u in rows.tolist():
            if self.room.data[u]:
                _release(self.start.data[u], self.room.data[u], self.values, self._free)

    def remove_references(self, start: int, stop: int, doomed_M: npt.NDArray[np.bool_]) -> None:
        """Replace doomed items by -1 in the blocks of users `start <= row < stop`."""
        _remove(start, stop, self.start.data, self.size.data, self.values, doomed_M)

    def _extend(self) -> None:
        self.values = np.concatenate([self.values, np.full_like(self.values, -1)])


@kernel()
def _class_of(room):  # type: ignore[no-untyped-def]
    index = 0
    while (SMALLEST << index) < room:
        index += 1
    return index


@kernel()
def _allocate(room, values, free, used):  # type: ignore[no-untyped-def]
    """Return the start of a block of `room` entries, -1 when the array is too short."""
    index = _class_of(room)
    place = free[index]
    if place >= 0:
        free[index] = -2 - values[place]  # -1 there, no further block, gives -1
        return place
    if used[0] + (SMALLEST << index) > values.shape[0]:
        return np.int64(-1)
    place = used[0]
    used[0] += SMALLEST << index
    return place


@kernel()
def _release(place, room, values, free):  # type: ignore[no-untyped-def]
    index = _class_of(room)
    values[place : place + room] = -1
    values[place] = -2 - free[index] if free[index] >= 0 else -1
    free[index] = place


@kernel()
def _add(done, user_B, item_B, add_B, status_M, start, size, room, values, free, used):  # type: ignore[no-untyped-def]
    """Add from event `done` on; return the event that found no space, or B."""
    for b in range(done, user_B.shape[0]):
        m = item_B[b]
        if not add_B[b] or m < 0:
            continue
        u = user_B[b]
        first, n = start[u], size[u]
        for k in range(n):
            if values[first + k] == m:  # move to the newest place: one item, one entry
                for q in range(k, n - 1):
                    values[first + q] = values[first + q + 1]
                n -= 1
                break
        if n == room[u] or n == LIMIT:
            known = 0
            for k in range(n):
                v = values[first + k]
                known += v >= 0 and is_held(status_M[v])
            drop = max(0, known + 1 - LIMIT)  # the oldest of those that are known
            wanted = max(SMALLEST, min(2 * (known - drop), LIMIT + 24))
            wanted = SMALLEST << _class_of(max(wanted, known - drop + 1))
            place = _allocate(wanted, values, free, used)
            if place < 0:
                size[u] = n
                return b
            kept = 0
            for k in range(n):
                v = values[first + k]
                if v >= 0 and is_held(status_M[v]):
                    if drop > 0:
                        drop -= 1
                    else:
                        values[place + kept] = v
                        kept += 1
            if room[u] > 0:
                _release(first, room[u], values, free)
            start[u], room[u], first, n = place, wanted, place, kept
        values[first + n] = m
        size[u] = n + 1
    return user_B.shape[0]


@kernel()
def _remove(first_user, last_user, start, size, values, doomed_M):  # type: ignore[no-untyped-def]
    for u in range(first_user, last_user):
        for k in range(size[u]):
            v = values[start[u] + k]
            if v >= 0 and doomed_M[v]:
                values[start[u] + k] = -1


@kernel()
def _copy_out(user_B, start, size, values, border, out):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        for k in range(size[u]):
            out[border[b] + k] = values[start[u] + k]

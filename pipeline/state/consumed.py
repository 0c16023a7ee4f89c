"""Which items each user has consumed: packed item rows, at most `LIMIT` a user, the oldest given up first.

All users share one flat array of blocks whose sizes are powers of two; a block that is full moves to a larger one.
Which rows are still known decides alone what a block drops, so content never depends on when a sweep came by.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.state.store import Column
from pipeline.state.tables import LIVE, NEW

LIMIT = 1000
_SMALLEST, _CLASSES = 4, 9  # block sizes 4, 8, ... 1024

IntArray = npt.NDArray[np.int32]


class Consumed:
    """Packed sets of consumed items.

    Columns: `start` int64 [U] (-1: no block), `size` int32 [U], `room` int32 [U]. `values` int32 is the shared
    array; it is not a column of its own, since its rows mean nothing: `ragged` and `put` move its content.
    """

    def __init__(self, capacity: int) -> None:
        self.start = Column(np.full(capacity, -1, np.int64), "user", -1)
        self.size = Column(np.zeros(capacity, np.int32), "user")
        self.room = Column(np.zeros(capacity, np.int32), "user")
        self.values = Column(np.full(4096, -1, np.int32), "none", -1, of_items=True)
        self._used = 0
        self._spare: list[list[int]] = [[] for _ in range(_CLASSES)]  # free blocks by size class

    def columns(self) -> dict[str, Column]:
        return {"start": self.start, "size": self.size, "room": self.room}

    def add(self, user_B: IntArray, item_B: IntArray, add_B: Any, status_M: Any) -> None:
        """Add events in order where `add_B`; an item that is there already moves to the newest place."""
        for b in _full(
            user_B, item_B, add_B, self.start.data, self.size.data, self.room.data, self.values.data
        ).tolist():
            self._make_room(int(user_B[b]), int(np.count_nonzero(add_B & (user_B == user_B[b]))), status_M)
        _add(user_B, item_B, add_B, self.start.data, self.size.data, self.values.data)

    def of(self, user: int, status_M: Any) -> IntArray:
        """Return one user's consumed items that are still known, oldest first."""
        rows, _ = self.ragged(np.array([user], np.int32))
        return rows[(rows >= 0) & np.isin(status_M[rows], (LIVE, NEW))]

    def ragged(self, user_B: IntArray) -> tuple[IntArray, npt.NDArray[np.int64]]:
        """Return all blocks of these users one behind the other (with -1 where an item went) and the borders [B+1]."""
        border = np.zeros(user_B.shape[0] + 1, np.int64)
        np.cumsum(self.size.data[user_B], out=border[1:])
        out = np.empty(border[-1], np.int32)
        _copy_out(user_B, self.start.data, self.size.data, self.values.data, border, out)
        return out, border

    def put(
        self, user_B: IntArray, values: IntArray, border: npt.NDArray[np.int64], room_B: IntArray
    ) -> None:
        """Set the blocks of users that have none, with the room they had: when a block moves must not change."""
        for b, u in enumerate(user_B.tolist()):
            start, stop = int(border[b]), int(border[b + 1])
            if room_B[b]:
                place, room = self._allocate(int(room_B[b]))
                self.values.data[place : place + stop - start] = values[start:stop]
                self.start.data[u], self.size.data[u], self.room.data[u] = place, stop - start, room

    def release(self, rows: npt.NDArray[np.integer]) -> None:
        """Give the blocks of these users back (before their rows are cleared)."""
        for u in rows.tolist():
            self._free(u)

    def scrub(self, start: int, stop: int, doomed_M: npt.NDArray[np.bool_]) -> None:
        """Replace doomed items by -1 in one stretch of the shared array."""
        part = self.values.data[start:stop]
        part[(part >= 0) & doomed_M[part]] = -1

    def _make_room(self, user: int, more: int, status_M: Any) -> None:
        """Let `more` items fit in: drop what is no longer known, then the oldest; move to a larger block."""
        held = self.of(user, status_M)
        held = held[max(0, held.size + more - LIMIT) :] if more < LIMIT else held[:0]
        place, room = self._allocate(min(max(held.size + more, 2 * held.size), LIMIT + 24))
        self.values.data[place : place + held.size] = held
        self._free(user)
        self.start.data[user], self.size.data[user], self.room.data[user] = place, held.size, room

    def _allocate(self, size: int) -> tuple[int, int]:
        index = max(0, (max(size, 1) - 1).bit_length() - 2)
        room = _SMALLEST << index
        while index >= len(self._spare):
            self._spare.append([])
        if self._spare[index]:
            return self._spare[index].pop(), room
        place = self._used
        self._used += room
        while self.values.data.size < self._used:
            self.values.data = np.concatenate([self.values.data, np.full_like(self.values.data, -1)])
        return place, room

    def _free(self, user: int) -> None:
        room = int(self.room.data[user])
        if room:
            self._spare[(room // _SMALLEST).bit_length() - 1].append(int(self.start.data[user]))
            self.start.data[user], self.size.data[user], self.room.data[user] = -1, 0, 0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _full(user_B, item_B, add_B, start, size, room, values):  # type: ignore[no-untyped-def]
    """Return one event each of the users whose block could overflow in this batch."""
    need = np.zeros(user_B.shape[0], np.int32)
    last = np.full(user_B.shape[0], -1, np.int64)
    count = {0: 0}
    count.clear()
    for b in range(user_B.shape[0]):
        if add_B[b] and item_B[b] >= 0:
            u = user_B[b]
            if u in count:
                count[u] += 1
            else:
                count[u] = 1
    out = np.empty(len(count), np.int64)
    n = 0
    for b in range(user_B.shape[0]):
        if add_B[b] and item_B[b] >= 0:
            u = user_B[b]
            if u in count:
                if size[u] + count[u] > room[u]:
                    out[n] = b
                    n += 1
                del count[u]
    return out[:n]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add(user_B, item_B, add_B, start, size, values):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
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
        values[first + n] = m
        size[u] = n + 1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _copy_out(user_B, start, size, values, border, out):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        for k in range(size[u]):
            out[border[b] + k] = values[start[u] + k]

"""What each user did last, and the windows that the models see of it.

Axes: B = events or users of a batch, L = places of a window, newest first, U = user rows, H = ring slots a
user.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.state.store import Column, Store
from pipeline.state.tables import is_held

IntArray = npt.NDArray[np.int32]
Windows = tuple[IntArray, npt.NDArray[np.uint16], npt.NDArray[np.int64], IntArray]


class Histories(Store):
    """A ring of each user's last interactions, plus what is remembered of the user beyond it.

    Columns: `items` int32 [U, H], `types` uint16 [U, H] (a stable hash of the event type's name), `times`
    int64 [U, H] (ms), `pushed` int64 [U] (ever), `repeats` float32 [U] (interactions with an item already in
    the ring), `newest_ms` int64 [U] (event time of the newest event of any kind).
    """

    def __init__(self, capacity: int, length: int) -> None:
        self.length = length
        self.items = Column(np.full((capacity, length), -1, np.int32), "user", -1, of_items=True, stretch=1)
        self.types = Column(np.zeros((capacity, length), np.uint16), "user", stretch=1)
        self.times = Column(np.zeros((capacity, length), np.int64), "user", stretch=1)
        self.pushed = Column(np.zeros(capacity, np.int64), "user")
        self.repeats = Column(np.zeros(capacity, np.float32), "user")
        self.newest_ms = Column(np.zeros(capacity, np.int64), "user")

    def push(
        self, user_B: IntArray, item_B: IntArray, type_B: Any, moment_ms_B: Any, push_B: Any, time_ms_B: Any
    ) -> None:
        """Append events in order, at `moment_ms_B`; those with `push_B` false only move `newest_ms` to
        `time_ms_B`.
        """
        _push(
            user_B, item_B, type_B, moment_ms_B, push_B, time_ms_B, self.items.data, self.types.data,
            self.times.data, self.pushed.data, self.repeats.data, self.newest_ms.data,
        )  # fmt: skip

    def latest(self, user_B: IntArray, status_M: npt.NDArray[np.uint8]) -> Windows:
        """Return the users' windows as they are now: items, types, times [B, L] and lengths [B]."""
        count = user_B.shape[0]
        none = np.full(count, -1, np.int32)
        return self.windows(
            user_B, none, none, np.zeros(count, np.uint16), np.zeros(count, np.int64),
            np.zeros(count, np.bool_), status_M,
        )  # fmt: skip

    def windows(
        self,
        user_B: IntArray,
        previous_B: IntArray,
        item_B: IntArray,
        type_B: Any,
        time_ms_B: Any,
        push_B: Any,
        status_M: npt.NDArray[np.uint8],
    ) -> Windows:
        """Return each event's window just before it: items, types, times [B, L] and lengths [B].

        `previous_B[b]` is the place of the user's event before b in the same batch, -1 for none: a window
        holds the batch's own earlier events first, then the ring. Items that are no longer known are passed
        over; places past the length hold -1 and 0.
        """
        shape = (user_B.shape[0], self.length)
        items, types = np.full(shape, -1, np.int32), np.zeros(shape, np.uint16)
        times, length = np.zeros(shape, np.int64), np.zeros(shape[0], np.int32)
        _windows(
            user_B, previous_B, item_B, type_B, time_ms_B, push_B, status_M, self.items.data, self.types.data,
            self.times.data, self.pushed.data, items, types, times, length,
        )  # fmt: skip
        return items, types, times, length


@kernel()
def _push(user_B, item_B, type_B, moment_B, push_B, time_B, items, types, times, pushed, repeats, newest_ms):  # type: ignore[no-untyped-def]
    length = items.shape[1]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        if time_B[b] > newest_ms[u]:
            newest_ms[u] = time_B[b]
        m = item_B[b]
        if not push_B[b] or m < 0:
            continue
        for k in range(length):
            if items[u, k] == m:
                repeats[u] += 1
                break
        slot = pushed[u] % length
        items[u, slot], types[u, slot], times[u, slot] = m, type_B[b], moment_B[b]
        pushed[u] += 1


@kernel()
def _windows(  # type: ignore[no-untyped-def]
    user_B, previous_B, item_B, type_B, time_B, push_B, status_M, items, types, times, pushed,
    out_items, out_types, out_times, out_length,
):  # fmt: skip
    length = items.shape[1]
    for b in range(user_B.shape[0]):
        n = 0
        taken = 0  # ring slots that the batch's own events will overwrite
        p = previous_B[b]
        while p >= 0 and n < length:
            if push_B[p] and item_B[p] >= 0:
                out_items[b, n], out_types[b, n], out_times[b, n] = item_B[p], type_B[p], time_B[p]
                n += 1
                taken += 1
            p = previous_B[p]
        u = user_B[b]
        for k in range(min(length - taken, pushed[u])):
            slot = (pushed[u] - 1 - k) % length
            m = items[u, slot]
            if m >= 0 and is_held(status_M[m]):
                out_items[b, n], out_types[b, n], out_times[b, n] = m, types[u, slot], times[u, slot]
                n += 1
        out_length[b] = n

"""Ids and rows: admission, least-recently-used order, statuses of rows.

A row is FREE, NEW (admitted in this batch), LIVE, HIDDEN (known, but shown to no user), ANNOUNCED (of an item
that no event has named: it can be on a list, and nothing is learned about it), or RETIRED (without an id, but
perhaps still referred to by histories and transitions; reused once all references are removed). SWEPT: the
running cycle removes the references.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import inlined
from pipeline.state.positions import DAY_MS
from pipeline.state.store import Column, Store

FREE, LIVE, NEW, RETIRED, SWEPT, HIDDEN, ANNOUNCED = range(7)
HELD = (LIVE, NEW, HIDDEN, ANNOUNCED)  # the row belongs to an id
NEVER = np.iinfo(np.int64).max  # as `last_event`: this row is never the oldest
IntRows = npt.NDArray[np.int32]


class IdTable(Store):
    """A table of ids, each with one row. Rows are handed out lowest first on a fresh table, then reused.

    `row_of` holds the ids that were admitted, `announced` those that have a row without any event: they count
    nowhere else, neither in the table's length nor as admitted or evicted.

    Columns (all on `axis`): `status` uint8, `last_event` int64 (the number of the learned event that touched
    the row last: unique, so the order of eviction depends on no row number), `last_ms` int64 (event time).
    """

    def __init__(
        self, axis: str, capacity: int = 1024, admit_after: int = 1, pending_limit: int = 100_000
    ) -> None:
        self.axis = axis
        self.admit_after = admit_after
        self.row_of: dict[str, int] = {}
        self.announced: dict[str, int] = {}
        self.id_of: list[str] = [""] * capacity
        self.free: list[int] = list(range(capacity - 1, -1, -1))  # a stack: the lowest row comes first
        self.pending: dict[str, int] = {}  # sightings of ids that are not admitted yet, oldest first
        self.pending_limit = pending_limit
        self.status = Column(np.zeros(capacity, np.uint8), axis)  # type: ignore[arg-type]
        self.last_event = Column(np.full(capacity, -1, np.int64), axis, -1)  # type: ignore[arg-type]
        self.last_ms = Column(np.zeros(capacity, np.int64), axis)  # type: ignore[arg-type]
        self.id_hash = np.zeros(capacity, np.uint64)  # of users' ids: the same in every process
        self.used = 0  # rows below it have been handed out once; saved with the checkpoint
        self.live = self.retired = 0  # rows of status LIVE, and RETIRED: derived
        self.admitted = 0  # ever
        self.reshown = 0  # how often hidden rows were shown again; not saved
        self.evicted = 0
        self._oldest: list[tuple[int, int]] = []  # (last_event, row), newest first: a derived queue

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self.id_of)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return the ids without a row at their `admit_after`-th sighting, each once, in order."""
        row_of = self.row_of
        unknown = [text for text in ids if text not in row_of]
        if not unknown:
            return unknown
        if self.admit_after == 1:
            return list(dict.fromkeys(unknown))
        pending, ready = self.pending, dict[str, None]()
        for text in unknown:
            seen = pending.pop(text, 0) + 1
            if seen >= self.admit_after:
                ready[text] = None
            pending[text] = seen
        for text in ready:
            pending.pop(text, None)
        while len(pending) > self.pending_limit:
            del pending[next(iter(pending))]
        return list(ready)

    def admit(self, ids: Sequence[str]) -> IntRows:
        """Give each id a row, status NEW: its own where it is announced. The caller has made `room`."""
        rows = self._take(ids, self.row_of, NEW)
        self.admitted += len(ids)
        return rows

    def announce(self, ids: Sequence[str]) -> IntRows:
        """Give each id without a row one of status ANNOUNCED. The caller has made `room`."""
        return self._take(ids, self.announced, ANNOUNCED)

    def retract(self, ids: Sequence[str]) -> IntRows:
        """Take the rows of announced ids away; return them, RETIRED."""
        rows = np.array([self.announced.pop(text) for text in ids], np.int32)
        for row in rows.tolist():
            self.id_of[row] = ""
        self.status.data[rows] = RETIRED
        self.retired += len(rows)
        return rows

    def _take(self, ids: Sequence[str], held: dict[str, int], status: int) -> IntRows:
        rows = np.empty(len(ids), np.int32)
        for index, text in enumerate(ids):
            row = self.announced.pop(text, -1)
            if row < 0:
                row = self.free.pop()
            held[text] = row
            self.id_of[row] = text
            rows[index] = row
            if self.axis == "user":
                self.id_hash[row] = hash_of(text)
        self.used = max(self.used, int(rows.max(initial=-1)) + 1)
        self.status.data[rows], self.last_event.data[rows], self.last_ms.data[rows] = status, -1, 0
        return rows

    def room(self, wanted: int) -> int:
        """Return the capacity that `wanted` more rows need: the present one, doubled as often as it takes."""
        capacity = self.capacity
        while capacity - self.capacity + len(self.free) < wanted:
            capacity *= 2
        return capacity

    def extend(self, capacity: int) -> None:
        """Add the rows of columns that have grown to `capacity`."""
        self.free = list(range(capacity - 1, self.capacity - 1, -1)) + self.free
        self.id_hash = np.concatenate((self.id_hash, np.zeros(capacity - self.capacity, np.uint64)))
        self.id_of.extend([""] * (capacity - self.capacity))

    def ids(self, rows: npt.NDArray[np.integer]) -> list[str]:
        """Return the id of each row."""
        return [self.id_of[row] for row in rows.tolist()]

    def rows(self, ids: Sequence[str]) -> IntRows:
        """Return the row of each id, -1 where it has none."""
        get = self.row_of.get
        return np.array([get(text, -1) for text in ids], np.int32)

    def find(self, ids: Sequence[str]) -> IntRows:
        """Return the row of each id, announced ones included, -1 where it has none."""
        rows = self.rows(ids)
        for index in np.flatnonzero(rows < 0).tolist():
            rows[index] = self.announced.get(ids[index], -1)
        return rows

    def touch(self, row_B: IntRows, event_B: npt.NDArray[np.int64], time_ms_B: npt.NDArray[np.int64]) -> None:
        """Note the number and time of each row's newest event; later ones win, rows below 0 are left out."""
        known = row_B >= 0
        rows, events = row_B[known], event_B[known]
        self.last_event.data[rows] = events
        np.maximum.at(self.last_ms.data, rows, time_ms_B[known])

    def settle(self, rows: IntRows) -> None:
        """Make NEW rows LIVE, at the end of their batch."""
        self.status.data[rows] = LIVE
        self.live += len(rows)

    def show(self, rows: IntRows, shown: bool) -> IntRows:
        """Let settled rows be shown, or hide them; return those for which that is new."""
        before, after = (HIDDEN, LIVE) if shown else (LIVE, HIDDEN)
        changed: IntRows = rows[self.status.data[rows] == before]
        self.status.data[changed] = after
        self.live += len(changed) if shown else -len(changed)
        self.reshown += len(changed) if shown else 0
        return changed

    def doomed(self) -> int:
        """Return how many rows a sweep will free."""
        return int(np.count_nonzero(np.isin(self.status.data, (RETIRED, SWEPT))))

    def oldest(self) -> int:
        """Return the live row that was touched longest ago; -1 without one (`last_event` NEVER keeps a row).

        The queue is made in one pass over the table. Rows touched since have a newer number and are skipped.
        """
        status, last = self.status.data, self.last_event.data
        for _ in range(2):
            while self._oldest:
                event, row = self._oldest[-1]
                if status[row] in (LIVE, HIDDEN) and last[row] == event:
                    return row
                self._oldest.pop()
            live = np.flatnonzero(((status == LIVE) | (status == HIDDEN)) & (last != NEVER))
            if live.size == 0:
                return -1
            some = live
            if live.size > 4096:
                some = live[np.argpartition(last[live], 4096)[:4096]]
            some = some[np.argsort(-last[some], kind="stable")]
            self._oldest = list(zip(last[some].tolist(), some.tolist(), strict=True))
        raise AssertionError("unreachable: the queue was just made from live rows")

    def reorder(self) -> None:
        """Forget the queue: rows with an old `last_event` were added."""
        self._oldest.clear()

    def forget(self, row: int, status: int) -> str:
        """Take a row's id away and leave the row in `status` (FREE rows can be used again at once)."""
        text = self.id_of[row]
        del self.row_of[text]
        self.id_of[row] = ""
        self.live -= int(self.status.data[row] == LIVE)
        self.status.data[row] = status
        if status == FREE:
            self.free.append(row)
        else:
            self.retired += 1
        self.evicted += 1
        return text

    def evict(self, limit: int, ttl_days: float, now_ms: int, status: int) -> tuple[IntRows, list[str]]:
        """Forget ids over `limit` or unseen for `ttl_days` (0: no limit), the longest unseen first; return
        their rows and ids.
        """
        rows: list[int] = []
        ids: list[str] = []
        too_old_ms = now_ms - math.floor(ttl_days * DAY_MS)
        while (over := 0 < limit < len(self)) or ttl_days:
            row = self.oldest()
            if row < 0 or not (over or self.last_ms.data[row] < too_old_ms):
                break
            rows.append(row)
            ids.append(self.forget(row, status))
        return np.array(rows, np.int32), ids

    def reuse(self, rows: IntRows) -> None:
        """Put scrubbed rows back on the stack of free ones."""
        self.status.data[rows] = FREE
        self.free.extend(rows[::-1].tolist())

    def recount(self) -> None:
        """Count the rows by status, after the columns were restored."""
        self.live = int(np.count_nonzero(self.status.data == LIVE))
        self.retired = int(np.count_nonzero(self.status.data == RETIRED))

    def canonical(self) -> tuple[IntRows, IntRows]:
        """Return the held rows in order of their ids, and the place of each row in it (-1: not held)."""
        order = self.find(sorted([*self.row_of, *self.announced]))
        place = np.full(self.capacity, -1, np.int32)
        place[order] = np.arange(order.size, dtype=np.int32)
        return order, place


class ItemAge(Store):
    """Columns: `at_event` int64 [M], the events learned before the batch in which the item was admitted."""

    def __init__(self, capacity: int) -> None:
        self.at_event = Column(np.zeros(capacity, np.int64), "item")

    def note(self, rows: Any, at_event: int) -> None:
        """Note that these rows' items are admitted after `at_event` learned events."""
        self.at_event.data[rows] = at_event

    def young(self, item_B: Any, first_event: int, events: int) -> npt.NDArray[np.float64]:
        """Return 1 for each event, numbered from `first_event` on, with an item younger than `events` learned
        events or without a row (below 0), else 0, [B].
        """
        number_B = first_event + np.arange(len(item_B))
        age_B = number_B - self.at_event.data[np.maximum(item_B, 0)]
        return np.where((item_B < 0) | (age_B < events), 1.0, 0.0)


def hash_of(text: str) -> int:
    """Return 64 bits of an id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@inlined
def is_held(status):  # type: ignore[no-untyped-def]
    """Return whether a row of this status belongs to an id."""
    return status in (LIVE, NEW, HIDDEN, ANNOUNCED)

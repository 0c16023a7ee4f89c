"""Quarantine of freed item rows: bounded work a batch scrubs them out of everything, then they are reused.

A row that is reused while an old history still names it would show an old user a new item as their own. A
cycle takes all rows that are GONE at its start, scrubs them from every store in STEPS batches, and frees
them. Readers pass over rows that are not live, so no result depends on how far a sweep has come.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.state.consumed import Consumed
from pipeline.state.store import Store, scrub
from pipeline.state.tables import GONE, SWEPT, IdTable

STEPS = 16  # batches a cycle takes
BATCH_OF_GONE = 64  # rows worth a cycle


class Extent(NamedTuple):
    """How much a cycle has to go through: rows that came after its start can't name a row it scrubs."""

    users: int
    items: int


class Sweep:
    """Scrubs in steps. State: `step` (0: idle) and the rows' status, both saved with the item table."""

    def __init__(self, items: IdTable, consumed: Consumed, stores: Callable[[], Sequence[Store]]) -> None:
        self.items, self.consumed, self.stores = items, consumed, stores
        self.step = 0
        self._extent = Extent(0, 0)

    def advance(self, users: int, wanted_rows: bool) -> None:
        """Do one batch's share; all that is left at once when rows are wanted and none are free."""
        status = self.items.status.data
        if self.step == 0:
            gone = status == GONE
            if np.count_nonzero(gone) < BATCH_OF_GONE and not wanted_rows:
                return
            status[gone] = SWEPT
            self._extent = Extent(users, self.items.capacity)
        doomed = status == SWEPT
        last = STEPS if wanted_rows else self.step + 1
        for axis, rows in (("user", self._extent.users), ("item", self._extent.items)):
            scrub(self.stores(), axis, rows * self.step // STEPS, rows * last // STEPS, doomed)  # type: ignore[arg-type]
        users_n = self._extent.users
        self.consumed.scrub(users_n * self.step // STEPS, users_n * last // STEPS, doomed)
        self.step = last % STEPS
        if self.step == 0:
            scrub(self.stores(), "none", 0, sys.maxsize, doomed)  # small: at once
            self.items.reuse(np.flatnonzero(doomed).astype(np.int32))

    def resume(self, step: int) -> None:
        """Go on after a restart; the rows are freed when they would have been.

        Shards name no dead item, and the item side is scrubbed at once: how far the cycle had come hangs on
        the tables' size at its start.
        """
        self.step = step
        for axis in ("item", "none"):
            scrub(self.stores(), axis, 0, sys.maxsize, self.items.status.data == SWEPT)

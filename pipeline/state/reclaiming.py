"""Reclaiming item rows: bounded work a batch removes all references to freed rows, then they are reused.

A row that is reused while an old history still names it would show an old user a new item as their own. A
cycle takes all rows that are RETIRED at its start, removes them from every store in STEPS batches, and frees
them. Readers skip rows that are not live, so no result depends on how far a cycle has come.
"""

import sys
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from pipeline.state.consumed import Consumed
from pipeline.state.store import HasColumns, remove_references
from pipeline.state.tables import RETIRED, SWEPT, IdTable

STEPS = 16  # batches a cycle takes
ROWS_WORTH_A_CYCLE = 64


class Extent(NamedTuple):
    """How much a cycle has to go through: rows that came after its start can't name a row it reclaims."""

    users: int
    items: int


class Reclaimer:
    """Removes references in steps. State: `step` (0: idle) and the rows' status, both in checkpoints."""

    def __init__(self, items: IdTable, consumed: Consumed) -> None:
        self.items, self.consumed = items, consumed
        self.step = 0
        self._extent = Extent(0, 0)

    def advance(self, stores: Collection[HasColumns], users: int, wanted_rows: bool) -> None:
        """Do one batch's share; all that is left at once when rows are wanted and none are free."""
        status = self.items.status.data
        if self.step == 0:
            if self.items.retired < ROWS_WORTH_A_CYCLE and not wanted_rows:
                return
            status[status == RETIRED] = SWEPT
            self.items.retired = 0
            self._extent = Extent(users, self.items.capacity)
        doomed = status == SWEPT
        last = STEPS if wanted_rows else self.step + 1
        users_n, items_n = self._extent
        remove_references(stores, "user", users_n * self.step // STEPS, users_n * last // STEPS, doomed)
        remove_references(stores, "item", items_n * self.step // STEPS, items_n * last // STEPS, doomed)
        self.consumed.remove_references(users_n * self.step // STEPS, users_n * last // STEPS, doomed)
        self.step = last % STEPS
        if self.step == 0:
            remove_references(stores, "none", 0, sys.maxsize, doomed)  # small: at once
            self.items.reuse(np.flatnonzero(doomed).astype(np.int32))

    def resume(self, stores: Collection[HasColumns], step: int) -> None:
        """Go on after a restart; the rows are freed when they would have been.

        Shards name no row that is not held, and the item side is done at once: how far the cycle had
        come depends on the tables' size at its start.
        """
        self.step = step
        doomed = self.items.status.data == SWEPT
        for axis in ("item", "none"):
            remove_references(stores, axis, 0, sys.maxsize, doomed)

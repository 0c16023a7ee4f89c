"""Reclaiming item rows: all references to freed rows are removed, then the rows are reused.

A cycle takes all RETIRED rows, removes them from every store in STEPS batches, and frees
them. Readers skip rows that are not live, so no result depends on how far a cycle has come.
"""

import sys
from collections.abc import Collection

import numpy as np

from pipeline.state.consumed import Consumed
from pipeline.state.store import HasColumns, remove_references
from pipeline.state.tables import RETIRED, SWEPT, IdTable

STEPS = 16  # batches a cycle takes
ROWS_WORTH_A_CYCLE = 64


class Reclaimer:
    """Removes references in steps. State: `step` (0: idle) and the rows' status, both in checkpoints."""

    def __init__(self, items: IdTable, consumed: Consumed) -> None:
        self.items, self.consumed = items, consumed
        self.step = 0
        self._users = self._items = 0  # rows at the cycle's start: later ones can't name what it reclaims

    def advance(self, stores: Collection[HasColumns], capacity: int, wanted_rows: bool) -> None:
        """Do one batch's share, or all that is left when rows are wanted; `capacity` counts user rows."""
        status = self.items.status.data
        if self.step == 0:
            if self.items.retired < ROWS_WORTH_A_CYCLE and not wanted_rows:
                return
            status[status == RETIRED] = SWEPT
            self.items.retired = 0
            self._users, self._items = capacity, self.items.capacity
        doomed = status == SWEPT
        last = STEPS if wanted_rows else self.step + 1
        users = self._users * self.step // STEPS, self._users * last // STEPS
        items = self._items * self.step // STEPS, self._items * last // STEPS
        remove_references(stores, "user", *users, doomed)
        remove_references(stores, "item", *items, doomed)
        self.consumed.remove_references(*users, doomed)
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

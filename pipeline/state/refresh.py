"""Pending rankings: users who get a new list without an event of their own. Axis U = user rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.state.store import Column, Store

LATER, NOW = 1, 2  # once the backlog is learned; before anything else

IntArray = npt.NDArray[np.int32]


class Refresh(Store):
    """Column: `due` uint8 [U], 0 for a list that may stay as it is."""

    def __init__(self, capacity: int) -> None:
        self.due = Column(np.zeros(capacity, np.uint8), "user")
        self.look_again()

    def mark(self, rows: IntArray, level: int) -> None:
        """Let these users have a new list, at `LATER` or `NOW`; the more urgent one stays."""
        if rows.size:
            self.due.data[rows] = np.maximum(self.due.data[rows], level)
            self._perhaps[level] = True

    def look_again(self) -> None:
        """Let the next calls look at all users: some were added with pending rankings."""
        self._perhaps = {LATER: True, NOW: True}  # whether a look at all users is worth it; derived

    def done(self, rows: IntArray) -> None:
        """Remove the marks of users with a new list."""
        self.due.data[rows] = 0

    def waiting(self, level: int) -> int:
        """Return how many users wait at this level."""
        if not self._perhaps[level]:
            return 0
        count = int(np.count_nonzero(self.due.data == level))
        self._perhaps[level] = count > 0
        return count

    def next(
        self, level: int, limit: int, last_event_U: npt.NDArray[np.int64], id_of_U: Sequence[str]
    ) -> IntArray:
        """Return up to `limit` users who wait at this level, those seen last first, ties by id."""
        if not self._perhaps[level]:
            return np.empty(0, np.int32)
        rows = np.flatnonzero(self.due.data == level).astype(np.int32)
        self._perhaps[level] = rows.size > 0
        if rows.size > limit:
            least = -np.partition(-last_event_U[rows], limit - 1)[limit - 1]
            rows = rows[last_event_U[rows] >= least]
        ordered = sorted(rows.tolist(), key=lambda row: (-last_event_U[row], id_of_U[row]))
        return np.array(ordered[:limit], np.int32)

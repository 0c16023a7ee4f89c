"""The list last published to each user, and the users who get a new one without an event of their own.

Axes: U = user rows, K = places.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.state.store import Column, Store
from pipeline.state.tables import HELD

LATER, NOW = 1, 2  # pending rankings: once the backlog is learned; before anything else
IntArray = npt.NDArray[np.int32]
_IS_HELD = np.isin(np.arange(256), HELD)  # by status


class PublishedLists(Store):
    """Columns: `items` int32 [U, K], best first, -1 at the end; `length` int16 [U], how many items the list
    had when it was published, -1 where none was.
    """

    def __init__(self, capacity: int, k: int) -> None:
        self.items = Column(np.full((capacity, k), -1, np.int32), "user", -1, of_items=True, stretch=1)
        self.length = Column(np.full(capacity, -1, np.int16), "user", -1)
        self._may_be_short = True  # whether a look at all users is worth it; derived

    def put(self, user_B: IntArray, rows_BK: IntArray) -> None:
        """Note the lists just published."""
        self.items.data[user_B] = rows_BK
        length_B = (rows_BK >= 0).sum(1)
        self.length.data[user_B] = length_B
        self._may_be_short |= bool((length_B < rows_BK.shape[1]).any())

    def short(self) -> IntArray:
        """Return the rows of users with a list that was published with fewer than K items, in order."""
        if not self._may_be_short:
            return np.empty(0, np.int32)
        length_U = self.length.data
        rows = np.flatnonzero((length_U >= 0) & (length_U < self.items.data.shape[1])).astype(np.int32)
        self._may_be_short = bool(rows.size)
        return rows

    def look_again(self) -> None:
        """Let the next call of `short` look at all users: some have come with lists of their own."""
        self._may_be_short = True

    def holders(self, hidden_M: npt.NDArray[np.bool_]) -> IntArray:
        """Return the rows of users with one of these items on their list, in order."""
        items_UK = self.items.data
        return np.flatnonzero((hidden_M[items_UK] & (items_UK >= 0)).any(1)).astype(np.int32)

    def hits(
        self, user_B: IntArray, item_B: IntArray, status_M: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return, for each event, whether its user had a list at all, and whether the item was on it."""
        lists_BK = self.items.data[user_B]
        on_list_BK = (lists_BK == item_B[:, None]) & (item_B >= 0)[:, None]
        # a list without any item that is still held is none, whether references were removed or not
        shown_BK = (lists_BK >= 0) & _IS_HELD[status_M[lists_BK]]
        return np.any(shown_BK, axis=1), np.any(on_list_BK, axis=1)


class Refresh(Store):
    """Pending rankings. Column: `due` uint8 [U], 0 for a list that may stay as it is."""

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

"""Exposure: how often each item stood on published lists, how many items did, and how even the shares are.

Axes: I = item rows, U = lists, K = places.
"""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.integer] | npt.NDArray[np.floating]
Arrays = dict[str, npt.NDArray[np.generic]]

WINDOW_LISTS = 10_000


class Exposure:
    """Count the places of each item on published lists. Coverage is exact, over the last `window` lists."""

    def __init__(self, window: int = WINDOW_LISTS) -> None:
        self.window = window
        self.lists = 0
        self._places_I = np.zeros(0, np.int64)
        self._last_list_I = np.zeros(0, np.int64)  # counted from 1; 0: on no list

    def update(self, rows_UK: Rows) -> None:
        """Add published lists of item rows, in order of publishing; -1 is an empty place."""
        rows_UK = np.asarray(rows_UK)
        if rows_UK.size and (top := int(rows_UK.max())) >= (held := len(self._places_I)):
            room = (0, max(2 * top, 1024) - held)
            self._places_I, self._last_list_I = np.pad(self._places_I, room), np.pad(self._last_list_I, room)
        filled_UK = rows_UK >= 0
        rows_N = rows_UK[filled_UK]
        numbers_U = np.arange(1, len(rows_UK) + 1) + self.lists
        np.add.at(self._places_I, rows_N, 1)
        np.maximum.at(self._last_list_I, rows_N, np.repeat(numbers_U, filled_UK.sum(axis=1)))
        self.lists += len(rows_UK)

    def clear(self, rows: Rows) -> None:
        """Reset item rows that now belong to another item or to none."""
        rows = rows[rows < len(self._places_I)]
        self._places_I[rows] = self._last_list_I[rows] = 0

    def of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return how many places these item rows had."""
        out = np.zeros(len(rows), np.int64)
        held = rows < len(self._places_I)
        out[held] = self._places_I[rows[held]]
        return out

    def coverage(self, rows: Rows) -> float:
        """Return the share of these item rows that the last `window` lists held; 0.0 for no rows."""
        if not len(rows):
            return 0.0
        newest = self._last_list_I[rows[rows < len(self._last_list_I)]]
        return float(np.count_nonzero(newest > max(self.lists - self.window, 0))) / len(rows)

    def arrays(self) -> Arrays:
        return {
            "places": self._places_I.copy(),
            "last_list": self._last_list_I.copy(),
            "lists": np.array([self.lists], np.int64),
        }

    def load(self, arrays: Arrays) -> None:
        self._places_I = np.array(arrays["places"], np.int64)
        self._last_list_I = np.array(arrays["last_list"], np.int64)
        self.lists = int(np.asarray(arrays["lists"], np.int64)[0])


def gini(counts: Numbers) -> float:
    """Return the Gini coefficient: 0 where all counts are equal or 0, towards 1 where one item has all.

    >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered = np.sort(np.asarray(counts, np.float64))
    n, total = len(ordered), float(ordered.sum())
    if not total:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)

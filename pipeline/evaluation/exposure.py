"""Exposure: how often each item stood on published lists, and how evenly that is spread over items."""

import numpy as np
import numpy.typing as npt

IntLike = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.integer] | npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[np.generic]]

POINTS = 200  # of a Lorenz curve


class Exposure:
    """Count the places that each item row had on published lists, 8 bytes an item. A store."""

    def __init__(self) -> None:
        """Start with no list published."""
        self.lists = 0
        self._shown_I = np.zeros(0, np.int64)

    def update(self, rows_UK: IntLike) -> None:
        """Add published lists [lists, places] of item rows; -1 is an empty place."""
        rows_N = rows_UK[rows_UK >= 0]
        if rows_N.size and (top := int(rows_N.max())) >= len(self._shown_I):
            self._shown_I = np.pad(self._shown_I, (0, max(2 * top, 1024) - len(self._shown_I)))
        np.add.at(self._shown_I, rows_N, 1)
        self.lists += len(rows_UK)

    def clear(self, rows: IntLike) -> None:
        """Forget item rows that now belong to another item or to none."""
        self._shown_I[rows[rows < len(self._shown_I)]] = 0

    def of(self, rows: IntLike) -> npt.NDArray[np.int64]:
        """Return how often these item rows were shown."""
        out = np.zeros(len(rows), np.int64)
        held = rows < len(self._shown_I)
        out[held] = self._shown_I[rows[held]]
        return out

    def arrays(self) -> Arrays:
        """Return the counts by row and the number of lists so far."""
        return {"shown": self._shown_I.copy(), "lists": np.array([self.lists], np.int64)}

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; an empty one, of a version that did not count, changes
        nothing.
        """
        if arrays:
            self._shown_I = np.array(arrays["shown"], np.int64)
            self.lists = int(np.asarray(arrays["lists"], np.int64)[0])


def gini(counts: Numbers) -> float:
    """Return the Gini coefficient: 0 where all counts are equal, towards 1 where one item has everything.

    It is the mean absolute difference of two items' counts over twice their mean (Gini, 1912), here by the
    formula over sorted counts. 0.0 where nothing was counted.

    >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered = np.sort(np.asarray(counts, np.float64))
    n, total = len(ordered), float(ordered.sum())
    if not total:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


def lorenz(counts: Numbers) -> tuple[Floats, Floats]:
    """Return the Lorenz curve: shares of items, least first, and the share of all counts that they hold.

    `POINTS` points or a few less, both ends included; the diagonal where nothing was counted.

    >>> [values.tolist() for values in lorenz(np.array([3, 1, 0, 0]))]
    [[0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.25, 1.0]]
    """
    ordered = np.sort(np.asarray(counts, np.float64))
    total = np.concatenate(([0.0], np.cumsum(ordered)))
    if not total[-1]:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    places = np.unique(np.linspace(0, len(ordered), POINTS + 1).astype(np.int64))
    return places / len(ordered), total[places] / total[-1]


def share_of_most(counts: Numbers, share: float) -> float:
    """Return which part of all counts this share of the items has, those with the most; 0.0 where none is.

    At least one item is taken.

    >>> share_of_most(np.array([5, 3, 1, 1]), 0.25)
    0.5
    """
    ordered = -np.sort(-np.asarray(counts, np.float64))
    total = float(ordered.sum())
    return float(ordered[: max(1, round(share * len(ordered)))].sum()) / total if total else 0.0

"""The K best of each query's candidates: (score desc, row asc), then announced items where these are fewer.

Axes: B = queries, K = places of a list, N = candidates of all queries, or announced items.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.kernels import inlined, kernel


def top_k(
    scores_N: npt.NDArray[np.float32], candidates: Candidates, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the places of the best candidates of each query among all [B, K] (-1 past the end), and their
    scores; -inf and NaN are never chosen.

    >>> nothing = np.zeros((3, 0), np.float32)
    >>> candidates = Candidates(np.int32([5, 9, 7]), np.array([0, 3]), nothing, nothing[:1])
    >>> places, scores = top_k(np.float32([1, 3, 3]), candidates, 2)
    >>> places.tolist(), scores.tolist()
    ([[2, 1]], [[3.0, 3.0]])
    """
    places = np.full((candidates.indptr.size - 1, k), -1, np.int64)
    scores = np.zeros(places.shape, np.float32)
    _top_k(scores_N, candidates.rows, candidates.indptr, places, scores)
    return places, scores


def filled_up(
    rows_BK: npt.NDArray[np.int32], scores_BK: npt.NDArray[np.float32], newest_N: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return lists and scores with `newest_N`, items that no event has named, in their empty places.

    They score 0, or as much as the item before them where that is less.

    >>> rows, scores = filled_up(np.int32([[3, -1], [-1, -1]]), np.float32([[-2, 0], [0, 0]]), np.int32([8]))
    >>> rows.tolist(), scores.tolist()
    ([[3, 8], [8, -1]], [[-2.0, -2.0], [0.0, 0.0]])
    """
    count_B1 = (rows_BK >= 0).sum(1, keepdims=True)
    if newest_N.size == 0 or count_B1.min(initial=rows_BK.shape[1]) == rows_BK.shape[1]:
        return rows_BK, scores_BK
    place_BK = np.arange(rows_BK.shape[1]) - count_B1
    put_BK = (place_BK >= 0) & (place_BK < newest_N.size)
    last_B1 = np.take_along_axis(scores_BK, np.maximum(count_B1 - 1, 0), 1)  # 0 where a list is empty
    rows_BK = np.where(put_BK, newest_N[np.clip(place_BK, 0, newest_N.size - 1)], rows_BK)
    return rows_BK, np.where(put_BK, np.minimum(last_B1, np.float32(0)), scores_BK)


@kernel()
def _top_k(scores_N, rows_N, indptr, out_places, out_scores):  # type: ignore[no-untyped-def]
    k = out_places.shape[1]
    for b in range(out_places.shape[0]):
        n = 0
        places, scores = out_places[b], out_scores[b]
        for c in range(indptr[b], indptr[b + 1]):
            value, row = scores_N[c], rows_N[c]
            if not value > -np.inf:
                continue
            if n == k and not _before(value, row, scores[k - 1], rows_N[places[k - 1]]):
                continue
            at = n if n < k else k - 1
            while at > 0 and _before(value, row, scores[at - 1], rows_N[places[at - 1]]):
                scores[at], places[at] = scores[at - 1], places[at - 1]
                at -= 1
            scores[at], places[at] = value, c
            n = min(n + 1, k)


@inlined
def _before(value, row, other_value, other_row):  # type: ignore[no-untyped-def]
    return value > other_value or (value == other_value and row < other_row)

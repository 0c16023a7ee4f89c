"""The K best of each query's candidates: (score desc, row asc). Axes: B = queries, C = candidate slots, K =
places.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel


def top_k(
    scores_BC: Any, rows_BC: Any, count_B: Any, k: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return rows int32 [B, K] (-1 past the end) and their scores; -inf and NaN are never chosen.

    >>> rows, scores = top_k(np.float32([[1, 3, 3]]), np.int32([[5, 9, 7]]), np.int32([3]), 2)
    >>> rows.tolist()
    [[7, 9]]
    """
    rows = np.full((rows_BC.shape[0], k), -1, np.int32)
    scores = np.zeros((rows_BC.shape[0], k), np.float32)
    _top_k(scores_BC, rows_BC, count_B, rows, scores)
    return rows, scores


@kernel()
def _top_k(scores_BC, rows_BC, count_B, out_rows, out_scores):  # type: ignore[no-untyped-def]
    k = out_rows.shape[1]
    for b in range(rows_BC.shape[0]):
        n = 0
        for c in range(count_B[b]):
            value, row = scores_BC[b, c], rows_BC[b, c]
            if not value > -np.inf or row < 0:
                continue
            if n == k and not _before(value, row, out_scores[b, k - 1], out_rows[b, k - 1]):
                continue
            at = n if n < k else k - 1
            while at > 0 and _before(value, row, out_scores[b, at - 1], out_rows[b, at - 1]):
                out_scores[b, at], out_rows[b, at] = out_scores[b, at - 1], out_rows[b, at - 1]
                at -= 1
            out_scores[b, at], out_rows[b, at] = value, row
            n = min(n + 1, k)


@kernel()
def _before(value, row, other_value, other_row):  # type: ignore[no-untyped-def]
    return value > other_value or (value == other_value and row < other_row)

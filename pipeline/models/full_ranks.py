"""Exact ranks by products of vectors over the whole catalogue.

Axes: B = queries, D = factors, M = item rows.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.memories import FEATURES, SPARSE
from pipeline.models.loss import exact_rank
from pipeline.models.model import FloatArray, Targets
from pipeline.models.tested import RankResult
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE

CELLS = 1 << 22  # scores held at a time


def full_ranks(
    user_BD: FloatArray,
    item_MD: FloatArray,
    status_M: npt.NDArray[np.uint8],
    queries: Queries,
    targets: Targets,
    bias_M: FloatArray | None = None,
) -> RankResult:
    """Return where each target stands by u . v (+ bias) among all rows that may be shown."""
    ranks = np.zeros((3, targets.row_B.shape[0]), np.int64)
    unseen = np.flatnonzero(status_M != LIVE)
    wanted = np.flatnonzero(targets.tested_B & (targets.row_B >= 0))
    for some in np.array_split(wanted, 1 + wanted.size * item_MD.shape[0] // CELLS):
        if some.size == 0:
            continue
        part, n = queries.pick(some), some.size
        scores_BM = user_BD[some] @ item_MD.T
        if bias_M is not None:
            scores_BM += bias_M
        out = np.zeros((3, n), np.int64)
        no_rows = np.zeros((n, 0), np.int32)
        exact_rank(
            scores_BM, np.zeros((n, FEATURES), np.float32), no_rows, np.zeros(n, np.int32),
            np.zeros((n, 0, SPARSE), np.float32), targets.row_B[some], part.barred, part.border_B, unseen,
            *out,
        )  # fmt: skip
        ranks[:, some] = out
    return RankResult(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B)

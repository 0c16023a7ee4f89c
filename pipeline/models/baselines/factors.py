"""Exact ranks by products of vectors over the whole catalogue: of baselines that are evaluated, not served.

Axes: B = queries, D = factors, M = item rows, S = negatives.
"""

import numpy as np

from pipeline.kernels import kernel
from pipeline.models.baselines.baseline import exact_below, share_below
from pipeline.models.model import MISS, FloatArray, RankResult, Targets, TrainingCandidates
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE, IdTable

CELLS = 1 << 22  # scores held at a time


def factor_ranks(
    user_BD: FloatArray,
    item_MD: FloatArray,
    items: IdTable,
    queries: Queries,
    training: TrainingCandidates,
    targets: Targets,
    bias_M: FloatArray | None = None,
) -> RankResult:
    """Return where each target stands by u . v (+ bias) among all rows that may be shown."""
    status_M, used = items.status.data[: items.used], items.used
    greater_B = np.full(targets.item_B.shape[0], MISS, np.int64)
    equal_B = np.zeros_like(greater_B)
    wanted = np.flatnonzero(targets.tested_B & (targets.item_B >= 0))
    bias_M = np.zeros(used, np.float32) if bias_M is None else bias_M[:used]
    for some in np.array_split(wanted, 1 + wanted.size * used // CELLS):
        scores_BM = user_BD[some] @ item_MD[:used].T + bias_M
        _ranks(
            scores_BM, some, status_M, targets.item_B, queries.excluded, queries.excluded_indptr, greater_B,
            equal_B,
        )  # fmt: skip
    own_B = np.einsum("bd,bd->b", user_BD, item_MD[np.maximum(targets.item_B, 0)])
    own_B += bias_M[np.maximum(targets.item_B, 0)]
    negative_BS = user_BD @ item_MD[training.negatives_S].T + bias_M[training.negatives_S]
    below_B = share_below(own_B.astype(np.float32), negative_BS, training.other_BS)
    return exact_below(
        RankResult(greater_B, equal_B, training.shown_B, targets.tested_B, targets.known_B, below_B)
    )


@kernel()
def _ranks(scores_BM, some, status_M, target_B, excluded, indptr, greater_B, equal_B):  # type: ignore[no-untyped-def]
    for i in range(some.shape[0]):
        b = some[i]
        own = scores_BM[i, target_B[b]]
        for e in range(indptr[b], indptr[b + 1]):
            if 0 <= excluded[e] < scores_BM.shape[1]:
                scores_BM[i, excluded[e]] = -np.inf
        greater, equal = 0, 0
        for m in range(scores_BM.shape[1]):
            if status_M[m] == LIVE:
                greater += scores_BM[i, m] > own
                equal += scores_BM[i, m] == own
        if np.isfinite(own):
            greater_B[b], equal_B[b] = greater, max(equal - 1, 0)

"""What matrix factorisations share: vectors of users and items, and exact ranks by their products.

The products are over the whole catalogue: these baselines are evaluated, not served. Axes: B = queries, D =
factors, M = item rows, S = negatives, U = user rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.models.baselines.baseline import Baseline, exact_ranks
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import (
    MISS,
    Config,
    FloatArray,
    IntArray,
    ModelContext,
    RankResult,
    Rows,
    Targets,
    TrainingCandidates,
)
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import LIVE

CELLS = 1 << 22  # scores held at a time


class FactorConfig(Config, frozen=True):
    """`negatives`: items that each event pulls towards 0."""

    dim: int = 16
    rate: float = 0.1
    negatives: int = 3


class FactorModel(Baseline):
    """Columns: `users` float32 [U, D] (0: not met yet) and `items` float32 [M, D]."""

    def __init__(self, context: ModelContext, name: str, config: FactorConfig) -> None:
        self.name, self.dim, self.rate, self.negatives = name, config.dim, config.rate, config.negatives
        self._users, self._items, self._seed = context.users, context.items, context.seed
        self.users = Column(np.zeros((context.users.capacity, config.dim), np.float32), "user", own=True)
        self.items = Column(np.zeros((context.items.capacity, config.dim), np.float32), "item")

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        if axis == "item" and rows.size:
            self.items.data[rows] = first_embeddings(ids, self._seed, self.dim)

    def ranks(
        self,
        user_BD: FloatArray,
        bias_M: FloatArray,
        queries: Queries,
        training: TrainingCandidates,
        targets: Targets,
    ) -> RankResult:
        """Return where each target stands by u . v + bias among all rows that may be shown."""
        item_MD, used = self.items.data, self._items.used
        greater_B = np.full(targets.item_B.shape[0], MISS, np.int64)
        equal_B = np.zeros_like(greater_B)
        wanted = np.flatnonzero(targets.tested_B & (targets.item_B >= 0))
        for some in np.array_split(wanted, 1 + wanted.size * used // CELLS):
            scores_BM = user_BD[some] @ item_MD[:used].T + bias_M[:used]
            _ranks(
                scores_BM, some, self._items.status.data, targets.item_B, queries.excluded,
                queries.excluded_indptr, greater_B, equal_B,
            )  # fmt: skip
        target_B = np.maximum(targets.item_B, 0)
        own_B = np.einsum("bd,bd->b", user_BD, item_MD[target_B]) + bias_M[target_B]
        negatives_S = training.negatives_S
        negative_BS = user_BD @ item_MD[negatives_S].T + bias_M[negatives_S]
        below_B = share_below(own_B.astype(np.float32), negative_BS, training.other_BS)
        return exact_ranks(greater_B, equal_B, below_B, training, targets)


def share_below(own_B: FloatArray, negative_BS: FloatArray, used_BS: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the share of each query's used negatives that score below the target, ties counted half [B].

    NaN where none is used.

    >>> used = np.array([[True, True, True, False]])
    >>> share_below(np.float32([2]), np.float32([[1, 2, 3, 0]]), used).tolist()
    [0.5]
    """
    below_BS = (negative_BS < own_B[:, None]) + 0.5 * (negative_BS == own_B[:, None])
    drawn_B = used_BS.sum(1)
    total_B = np.where(used_BS, below_BS, 0).sum(1)
    share_B = np.divide(total_B, drawn_B, out=np.full(own_B.shape, np.nan), where=drawn_B > 0)
    return np.asarray(share_B, np.float32)


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

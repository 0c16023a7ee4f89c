"""Incremental matrix factorisation by stochastic gradient descent (ISGD): users and items as vectors.

Vinagre, Jorge and Gama, "Fast incremental matrix factorization for recommendation with positive-only
feedback" (UMAP 2014): for every positive event (u, v) one step down (1 - u . v)^2 / 2 + DECAY (|u|^2 + |v|^2)
/ 2. With `negatives` (the same authors, "Collaborative filtering with recency-based negative feedback", SAC
2015; here drawn from all known items) each event pulls so many other items towards 0 as well. Ranks by u . v.
Axes: B = queries, C = candidate slots, D = factors, K = rows asked for, M = item rows, U = user rows.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.features.block import Candidates
from pipeline.features.popularity import P1000
from pipeline.kernels import kernel
from pipeline.models.baselines.baseline import Baseline
from pipeline.models.baselines.factors import factor_ranks
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import FloatArray, IntArray, Rows, Scores, Targets, TrainingCandidates, TrainResult
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

DECAY = 0.05  # of 0.001 to 0.05: the best on three of four recorded streams
MOST = 2.0  # errors are held within -MOST .. MOST, so that no vector can run away
TYPICAL_STEP = 0.001  # how far a user's step moves the typical user


class IsgdModel(Baseline):
    """Columns: `users` float32 [U, D] (0: not met yet), `items` float32 [M, D], `typical` float32 [D]: a
    running mean of the users that came, from which new ones start. (From random vectors, as in the paper, a
    user's first lists are random too.)
    """

    lists: tuple[int, ...] = (P1000,)

    def __init__(
        self,
        users: IdTable,
        items: IdTable,
        dim: int,
        rate: float,
        negatives: int,
        name: str = "isgd",
        seed: int = 0,
    ) -> None:
        self.name, self.dim, self.rate, self.negatives, self.seed = name, dim, rate, negatives, seed
        self._items = items
        self.users = Column(np.zeros((users.capacity, dim), np.float32), "user", own=True)
        self.items = Column(np.zeros((items.capacity, dim), np.float32), "item")
        self.typical = Column(np.full(dim, 0.1, np.float32), "none")

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Draw the vectors of new items from their ids."""
        if axis == "item" and rows.size:
            self.items.data[rows] = first_embeddings(ids, self.seed, self.dim)

    def vectors(self, user_B: IntArray) -> FloatArray:
        """Return the users' vectors [B, D], the typical one of those not met yet."""
        held_BD = self.users.data[user_B]
        met_B1 = held_BD.any(1, keepdims=True)
        return np.asarray(np.where(met_B1, held_BD, self.typical.data), np.float32)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        """Return u . v of the candidates [N]; pure."""
        user_ND = self.vectors(queries.user_B)[candidates.query_N]
        return Scores(np.einsum("nd,nd->n", user_ND, self.items.data[candidates.rows]).astype(np.float32))

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets, then step down event by event; see `Model`."""
        ranks = factor_ranks(
            self.vectors(queries.user_B), self.items.data, self._items, queries, training, targets
        )
        events, loss, squares = _step(
            queries.user_B, targets.counted_B, targets.weight_B, self.users.data, self.items.data,
            self.typical.data, np.float32(self.rate), self.negatives, training.negatives_S,
        )  # fmt: skip
        if events == 0:
            return TrainResult(ranks, float("nan"), 0.0, "no_target")
        return TrainResult(ranks, loss / events, float(np.sqrt(squares)), "")


@kernel()
def _step(user_B, item_B, weight_B, users, items, typical, rate, negatives, negative_N):  # type: ignore[no-untyped-def]
    """Take the steps; return the events learned, the sum of their losses, and that of squared slopes."""
    events, at, loss, squares = 0, 0, 0.0, 0.0
    one, most, decay, dim = np.float32(1), np.float32(MOST), np.float32(DECAY), users.shape[1]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        if item_B[b] < 0 or weight_B[b] <= 0:
            continue
        if not users[u].any():
            for d in range(dim):
                users[u, d] = typical[d]
        for j in range(1 + (negatives if negative_N.shape[0] > 0 else 0)):
            m, wanted = item_B[b], one
            if j > 0:
                m, wanted = negative_N[at % negative_N.shape[0]], np.float32(0)
                at += 1
                if m == item_B[b]:
                    continue
            product = np.float32(0)
            for d in range(dim):
                product += users[u, d] * items[m, d]
            error = min(max(wanted - product, -most), most)
            if j == 0:
                events += 1
                loss += float((wanted - product) ** 2) / 2
            for d in range(dim):
                x, y = users[u, d], items[m, d]
                of_user, of_item = error * y - decay * x, error * x - decay * y
                squares += float(of_user * of_user + of_item * of_item)
                users[u, d] += rate * of_user
                items[m, d] += rate * of_item
        for d in range(dim):
            typical[d] += np.float32(TYPICAL_STEP) * (users[u, d] - typical[d])
    return events, loss, squares

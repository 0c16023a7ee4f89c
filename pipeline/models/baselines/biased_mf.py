"""River's biased matrix factorisation (`river.reco.BiasedMF`) as the learner, ranking by its own factors.

    score(user, item) = mean + b_user + b_item + u . v

River keeps every user's and item's factors in a dictionary, and its `rank` asks for one prediction after the
other: over a catalogue that takes hours. Here the dictionaries are views of columns, so river learns into the
very matrices that one product scores with. It learns 1 from each positive event and 0 from `negatives` items
drawn from the known ones: from positive events alone it would learn that everything is 1.
Axes: B = queries, C = candidate slots, D = factors, K = rows asked for, M = item rows, U = user rows.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
from river import optim, reco

from pipeline.features.block import Candidates
from pipeline.features.popularity import P1000
from pipeline.models.baselines.baseline import Baseline
from pipeline.models.baselines.factors import factor_ranks
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import IntArray, Rows, Scores, Targets, TrainingCandidates, TrainResult
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

L2 = 0.01


class BiasedMfModel(Baseline):
    """Columns: `users` float32 [U, D] (0: not met yet), `items` float32 [M, D], `user_bias` float32 [U],
    `item_bias` float32 [M], `mean` float64 [2] (river's running mean of the targets and how many there were).
    """

    lists: tuple[int, ...] = (P1000,)

    def __init__(
        self,
        users: IdTable,
        items: IdTable,
        dim: int,
        rate: float,
        negatives: int,
        name: str = "biased_mf",
        seed: int = 0,
    ) -> None:
        self.name, self.dim, self.negatives, self.seed = name, dim, negatives, seed
        self._users, self._items = users, items
        self.users = Column(np.zeros((users.capacity, dim), np.float32), "user", own=True)
        self.items = Column(np.zeros((items.capacity, dim), np.float32), "item")
        self.user_bias = Column(np.zeros(users.capacity, np.float32), "user", own=True)
        self.item_bias = Column(np.zeros(items.capacity, np.float32), "item")
        self.mean = Column(np.zeros(2), "none")
        self.learner = reco.BiasedMF(
            dim, bias_optimizer=optim.SGD(rate), latent_optimizer=optim.SGD(rate), l2_bias=L2, l2_latent=L2
        )
        self.learner.u_latents, self.learner.i_latents = _Rows(self.users), _Rows(self.items)
        self.learner.u_biases, self.learner.i_biases = _Rows(self.user_bias), _Rows(self.item_bias)

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Draw the vectors of new items from their ids."""
        if axis == "item" and rows.size:
            self.items.data[rows] = first_embeddings(ids, self.seed, self.dim)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        """Return the predictions [N] of the candidates; pure."""
        user_N, rows = queries.user_B[candidates.query_N], candidates.rows
        product_N = np.einsum("nd,nd->n", self.users.data[user_N], self.items.data[rows])
        bias_N = self.mean.data[0] + self.user_bias.data[user_N] + self.item_bias.data[rows]
        return Scores((product_N + bias_N).astype(np.float32))

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets, then let river learn event by event; see `Model`."""
        ranks = factor_ranks(
            self.users.data[queries.user_B], self.items.data, self._items, queries, training, targets,
            self.item_bias.data,
        )  # fmt: skip
        learner, at, losses = self.learner, 0, []
        # river's mean lives in its own object: brought from the column, which a checkpoint may have filled
        learner.global_mean._mean, learner.global_mean.n = self.mean.data.tolist()
        pairs = zip(queries.user_B.tolist(), targets.counted_B.tolist(), strict=True)
        for user, item in pairs:
            if item < 0:
                continue
            self._init_user(user)
            losses.append((1 - learner.predict_one(user, item)) ** 2)
            learner.learn_one(user, item, 1.0)
            for _ in range(min(self.negatives, training.negatives_S.size)):
                other = int(training.negatives_S[at % training.negatives_S.size])
                at += 1
                if other != item:
                    learner.learn_one(user, other, 0.0)
        self.mean.data[:] = learner.global_mean.get(), learner.global_mean.n
        if not losses:
            return TrainResult(ranks, float("nan"), 0.0, "no_target")
        return TrainResult(ranks, float(np.mean(losses)), 0.0, "")

    def _init_user(self, user: int) -> None:
        """Give a new user a first vector, from the id, as river draws one at random."""
        if not self.users.data[user].any():
            self.users.data[user] = first_embeddings([self._users.id_of[user]], self.seed + 1, self.dim)[0]


class _Rows(MutableMapping[int, Any]):
    """A column as the dictionary that river expects: row -> its vector (a view), or its number."""

    def __init__(self, column: Column) -> None:
        self._column = column

    def __getitem__(self, row: int) -> Any:
        return self._column.data[row]

    def __setitem__(self, row: int, value: Any) -> None:
        self._column.data[row] = value

    def __delitem__(self, row: int) -> None:
        self._column.data[row] = self._column.fill

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._column.data)

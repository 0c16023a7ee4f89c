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

from pipeline.models.embeddings import first_embeddings
from pipeline.models.full_ranks import full_ranks
from pipeline.models.model import FloatArray, IntArray, Pool, Targets, TrainResult
from pipeline.state.popularity import P1000
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

L2 = 0.01


class BiasedMfModel:
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
        self.users = Column(np.zeros((users.capacity, dim), np.float32), "user")
        self.items = Column(np.zeros((items.capacity, dim), np.float32), "item")
        self.user_bias = Column(np.zeros(users.capacity, np.float32), "user")
        self.item_bias = Column(np.zeros(items.capacity, np.float32), "item")
        self.mean = Column(np.zeros(2), "none")
        self.learner = reco.BiasedMF(
            dim, bias_optimizer=optim.SGD(rate), latent_optimizer=optim.SGD(rate), l2_bias=L2, l2_latent=L2
        )
        self.learner.u_latents, self.learner.i_latents = _Rows(self.users), _Rows(self.items)
        self.learner.u_biases, self.learner.i_biases = _Rows(self.user_bias), _Rows(self.item_bias)

    def columns(self) -> dict[str, Column]:
        """Return the columns by name."""
        return {
            "users": self.users, "items": self.items, "user_bias": self.user_bias,
            "item_bias": self.item_bias, "mean": self.mean,
        }  # fmt: skip

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Give new items their first vectors, from their ids."""
        if rows.size:
            self.items.data[rows] = first_embeddings(ids, self.seed, self.dim)

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the predictions [B, C] of the candidates; pure."""
        return self._predictions(queries, pool.candidates.rows)

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Rank the targets, then let river learn event by event; see `Model`."""
        tested = full_ranks(
            self.users.data[queries.user_B], self.items.data, self._items.status.data, queries, targets,
            self.item_bias.data,
        )  # fmt: skip
        learner, at, losses = self.learner, 0, []
        # river's mean lives in its own object: brought from the column, which a checkpoint may have filled
        learner.global_mean._mean, learner.global_mean.n = self.mean.data.tolist()
        pairs = zip(queries.user_B.tolist(), targets.counted_B.tolist(), strict=True)
        for user, item in pairs:
            if item < 0:
                continue
            self._meet(user)
            losses.append((1 - learner.predict_one(user, item)) ** 2)
            learner.learn_one(user, item, 1.0)
            for _ in range(min(self.negatives, pool.negatives_N.size)):
                other = int(pool.negatives_N[at % pool.negatives_N.size])
                at += 1
                if other != item:
                    learner.learn_one(user, other, 0.0)
        self.mean.data[:] = learner.global_mean.get(), learner.global_mean.n
        if not losses:
            return TrainResult(tested, float("nan"), 0.0, "no_target")
        return TrainResult(tested, float(np.mean(losses)), 0.0, "")

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """A vector is no single history item's doing: all of the score lies in the last place."""
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, -1] = self._predictions(queries, rows_BK)
        return out

    def _meet(self, user: int) -> None:
        """Give a new user a first vector, from the id, as river draws one at random."""
        if not self.users.data[user].any():
            self.users.data[user] = first_embeddings([self._users.id_of[user]], self.seed + 1, self.dim)[0]

    def _predictions(self, queries: Queries, rows_BK: IntArray) -> FloatArray:
        rows_BK = np.maximum(rows_BK, 0)
        user_BD = self.users.data[queries.user_B]
        product_BK = np.einsum("bd,bkd->bk", user_BD, self.items.data[rows_BK])
        bias_B = self.mean.data[0] + self.user_bias.data[queries.user_B]
        return np.asarray(product_BK + self.item_bias.data[rows_BK] + bias_B[:, None], np.float32)


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

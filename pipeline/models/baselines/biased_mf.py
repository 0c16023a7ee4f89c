"""River's biased matrix factorisation (`river.reco.BiasedMF`) as the learner, ranking by its own factors.

    score(user, item) = mean + b_user + b_item + u . v

River keeps factors in dictionaries and predicts one pair at a time: over a catalogue that takes hours. Here
the dictionaries are views of columns, so river learns into the matrices that one product scores with. It
learns 1 from each positive event and 0 from `negatives` drawn known items. Axes as in factors.py.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from river import optim, reco

from pipeline.features.block import Candidates
from pipeline.models.baselines.factors import FactorConfig, FactorModel
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import ModelContext, Scores, Targets, TrainingCandidates, TrainResult
from pipeline.state.queries import Queries
from pipeline.state.store import Column

L2 = 0.01


class BiasedMfConfig(FactorConfig, frozen=True):
    """Settings of `biased_mf`."""

    rate: float = 0.005
    negatives: int = 1


class BiasedMfModel(FactorModel):
    """Columns beside the vectors: the biases, and river's running mean of the targets with their number."""

    def __init__(self, context: ModelContext, name: str, config: BiasedMfConfig) -> None:
        super().__init__(context, name, config)
        self.user_bias = Column(np.zeros(context.users.capacity, np.float32), "user", own=True)
        self.item_bias = Column(np.zeros(context.items.capacity, np.float32), "item")
        self.mean = Column(np.zeros(2), "none")
        sgd = optim.SGD(config.rate)
        self.learner = reco.BiasedMF(
            config.dim, bias_optimizer=sgd, latent_optimizer=sgd, l2_bias=L2, l2_latent=L2
        )
        self.learner.u_latents, self.learner.i_latents = _Rows(self.users), _Rows(self.items)
        self.learner.u_biases, self.learner.i_biases = _Rows(self.user_bias), _Rows(self.item_bias)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        user_N, rows = queries.user_B[candidates.query_N], candidates.rows
        product_N = np.einsum("nd,nd->n", self.users.data[user_N], self.items.data[rows])
        bias_N = self.mean.data[0] + self.user_bias.data[user_N] + self.item_bias.data[rows]
        return Scores((product_N + bias_N).astype(np.float32))

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        user_BD, bias_M = self.users.data[queries.user_B], self.item_bias.data
        ranks = self.ranks(user_BD, bias_M, queries, training, targets)
        learner, at, losses = self.learner, 0, []
        # river's mean lives in its own object: brought from the column, which a checkpoint may have filled
        learner.global_mean._mean, learner.global_mean.n = self.mean.data.tolist()
        for user, item in zip(queries.user_B.tolist(), targets.counted_B.tolist(), strict=True):
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
            self.users.data[user] = first_embeddings([self._users.id_of[user]], self._seed + 1, self.dim)[0]


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

"""What models written in torch share: gathering, autograd, growth, saving.

Axes as in model.py; R = distinct item rows of a batch, P = (query, item) pairs to be scored: all candidates,
then the target of each query, then each query's negatives.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.features.block import Candidates
from pipeline.models.embeddings import Table
from pipeline.models.gradient_model import GradientModel
from pipeline.models.loss import Logits, Loss
from pipeline.models.model import (
    FloatArray,
    IntArray,
    ModelContext,
    Rows,
    Scores,
    Targets,
    TrainingCandidates,
)
from pipeline.models.optimizer import RowSums, add_rows
from pipeline.models.parameters import TorchParameters
from pipeline.state.queries import Queries


class TorchBatch:
    """Queries and pairs as tensors. Rows of tables are leaves: gradients stop at the rows of this batch."""

    def __init__(
        self,
        tables: dict[str, Table],
        queries: Queries,
        candidates: Candidates,
        target_B: IntArray | None = None,
        negatives_S: IntArray | None = None,
    ) -> None:
        """Gather rows for the candidates alone, or for targets (-1: none) and negatives as well."""
        self._tables, self._leaves = tables, dict[str, tuple[IntArray, Tensor]]()
        self.queries, batch = queries, queries.user_B.shape[0]
        self.n_pairs, self.n_negatives = candidates.rows.shape[0], 0  # pairs that are no negatives
        item_P, query_P = [candidates.rows], [candidates.query_N]
        if target_B is not None and negatives_S is not None:
            self.n_pairs, self.n_negatives = self.n_pairs + batch, negatives_S.shape[0]
            item_P += [target_B, np.tile(negatives_S, batch)]
            query_P += [np.arange(batch), np.repeat(np.arange(batch), self.n_negatives)]
        window_BL = queries.items_BL[:, : max(1, int(queries.length_B.max(initial=1)))]
        items_P = np.concatenate(item_P)
        rows_R, places = np.unique(
            np.concatenate((window_BL.reshape(-1), items_P, [-1])), return_inverse=True
        )
        self._rows_R = rows_R.astype(np.int32)  # the first is -1: a row of zeros
        places = places.reshape(-1)
        self.window_BL = torch.from_numpy(places[: window_BL.size].reshape(window_BL.shape).copy())
        self.empty_BL = torch.from_numpy(window_BL < 0)
        self.item_P = torch.from_numpy(places[window_BL.size : -1].copy())
        self.query_P = torch.from_numpy(np.concatenate(query_P))
        self.negatives_S = self.item_P[self.n_pairs : self.n_pairs + self.n_negatives]
        self.losses: list[Tensor] = []

    def add_loss(self, loss: Tensor) -> None:
        """Train on this loss too, a sum over queries, beside that of the targets."""
        self.losses.append(loss)

    def items(self, table: str = "item") -> Tensor:
        """Return a table's distinct item rows [R, D], which `window_BL` and `item_P` index; 0 for none."""
        return self._leaf(table, self._rows_R)

    def users(self, table: str = "user") -> Tensor:
        """Return the queries' user rows of a table [B, D]."""
        rows, first, places = np.unique(self.queries.user_B, return_index=True, return_inverse=True)
        order = np.argsort(first)  # of appearance: no row number may decide the order of a sum
        return self._leaf(table, rows[order].astype(np.int32))[torch.from_numpy(np.argsort(order)[places])]

    def dot(self, user_BD: Tensor, items_RD: Tensor) -> Tensor:
        """Return the inner product of every pair [P]."""
        own = slice(self.n_pairs)
        pairs = (user_BD[self.query_P[own]] * items_RD[self.item_P[own]]).sum(1)
        if not self.n_negatives:
            return pairs
        return torch.cat((pairs, (user_BD @ items_RD[self.negatives_S].T).reshape(-1)))

    def _leaf(self, table: str, rows: IntArray) -> Tensor:
        if table not in self._leaves:
            leaf = torch.from_numpy(self._tables[table].gather(rows))
            self._leaves[table] = (rows, leaf.requires_grad_(torch.is_grad_enabled()))
        return self._leaves[table][1]

    def gradients(self) -> dict[str, tuple[IntArray, FloatArray]]:
        """Return the rows of each table that were read, with their gradients."""
        return {
            table: (rows, leaf.grad.numpy())
            for table, (rows, leaf) in self._leaves.items()
            if leaf.grad is not None
        }


class TorchModel(GradientModel):
    """Base of models that are written in torch.

    A subclass calls `super().__init__`, sets `net` with `seeded` and fills `tables` (read through
    `TorchBatch.items` and `.users` alone), then calls `ready`.
    """

    net: nn.Module

    def __init__(self, context: ModelContext, name: str, count_features: bool) -> None:
        super().__init__(context, name, count_features)
        self.tables: dict[str, Table] = {}

    def logits(self, batch: TorchBatch) -> Tensor:
        """Return the logit of every pair of the batch [P], without count features."""
        raise NotImplementedError

    def seeded(self, build: Any) -> Any:
        """Return `build()`, its random initial values drawn from the seed and the model's name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._context.seed * 2**32 + zlib.crc32(self.name.encode()))
            return build()

    def item_table(self, name: str, dim: int) -> None:
        """Add a table of item embeddings, drawn from the items' ids."""
        self.tables[name] = Table("item", self._context.items.capacity, dim, self._context.seed)

    def user_table(self, name: str, dim: int) -> None:
        """Add a table of user embeddings that starts at 0: add a learned default to it."""
        self.tables[name] = Table("user", self._context.users.capacity, dim, self._context.seed)

    def ready(self) -> None:
        """Make columns of the net's parameters."""
        self.parameters = TorchParameters(self.net)

    def columns(self) -> dict[str, Any]:
        found = super().columns()
        for name, table in self.tables.items():
            found |= {f"table_{name}_{key}": column for key, column in table.columns().items()}
        return found

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Draw new items' embeddings from their ids, set new users' to 0."""
        for name, table in self.tables.items():
            if table.values.axis != axis:
                continue
            if axis == "user":
                table.values.data[rows], table.squares.data[rows] = 0, 0
            else:
                table.init_rows(rows, [f"{name}/{text}" for text in ids])

    @torch.no_grad()
    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        if candidates.rows.size == 0:
            return Scores(np.zeros(0, np.float32))
        logits = self.logits(TorchBatch(self.tables, queries, candidates))
        scores_N = np.array(logits.numpy(), np.float32)
        return Scores(scores_N, self.add_features(candidates, scores_N))

    def forward(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> tuple[Logits, Any]:
        candidates, size = training.candidates, targets.item_B.shape[0]
        batch = TorchBatch(self.tables, queries, candidates, targets.item_B, training.negatives_S)
        outputs = self.logits(batch)
        flat, count = outputs.detach().numpy().copy(), candidates.rows.size
        negatives_BS = flat[count + size :].reshape(size, -1)
        return Logits(flat[:count], flat[count : count + size], negatives_BS), (batch, outputs)

    def backward(
        self, held: Any, queries: Queries, training: TrainingCandidates, targets: Targets, loss: Loss
    ) -> Sequence[tuple[Table, RowSums]]:
        batch, outputs = held
        slopes = torch.from_numpy(np.concatenate([part.reshape(-1) for part in loss.slopes]))
        torch.autograd.backward((outputs, *batch.losses), (slopes, *(None for _ in batch.losses)))
        moved = []
        for name, (rows, gradient) in batch.gradients().items():
            sums = self.tables[name].begin(rows.size)
            add_rows(rows, gradient, (gradient**2).mean(1), sums)
            moved.append((self.tables[name], sums))
        return moved

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray | None:
        """Return the count features' parts, the net's in the last place; None without count features."""
        if scores.detail is None or candidates.rows.size == 0:
            return None
        held_BK = np.maximum(places_BK, 0)
        value_BKF = candidates.features[held_BK] * scores.detail[:, None, :]
        out = self._context.bank.attribute(queries, candidates, places_BK, value_BKF)
        net_BK = scores.values[held_BK] - value_BKF.sum(2)
        out[:, :, -1] += np.where(places_BK >= 0, net_BK, np.float32(0))
        return out

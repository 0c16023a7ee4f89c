"""The default model `attention`: attention over the history plus gated streaming memories.

    score_b(m) = u_b . e_m + x_bm . c_b

u_b from attention.py over the tied item embeddings e, x the features of memories.py, c from gate.py. One pass
is the test and the lesson: ranks, loss and gradients come from the same parameters, which move only
afterwards. Axes as in loss.py, attention.py and memories.py; P = dense feature columns, T = rows of the item
table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.features import memories
from pipeline.features.halves import in_halves
from pipeline.features.memories import COLUMNS, D_CELL, FEATURES, KINDS
from pipeline.features.popularity import columns_of_nothing, dense_columns, priors
from pipeline.models import embeddings, optimizer
from pipeline.models import loss as loss_kernels
from pipeline.models.attention_net import Attention, side_buckets
from pipeline.models.explain import explain
from pipeline.models.gate import Gate
from pipeline.models.model import FloatArray, IntArray, Pool, Targets, TrainResult
from pipeline.models.optimizer import RowGradients
from pipeline.models.success import success_of, update_success
from pipeline.models.tested import RankResult
from pipeline.state.counts import Counts
from pipeline.state.histories import Histories
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import LIVE, IdTable

EMBEDDING_RATE = 0.05
WEIGHT_RATE, WEIGHT_MOST = 0.02, 0.05
STRETCH = {"place": 0}  # a place that no window has reached yet is all zeros
ATTENDED = 20  # newest places of a window: 50 rank no better on any stream, and take a quarter of all time
BLOCK = 64  # queries ranked exactly at a time: bounds the memory of [BLOCK, M] scores


class StreamingAttention:
    """Attention and memories behind the protocol `Model`.

    Columns: `table` float32 [M, D + P] (embedding, then the dense features, derived from the popularity),
    `table_squares` float32 [M], the gate's, the module's parameters with an accumulator each, and `success`
    float32 [U, KINDS + 1] of every user beside `typical` float32 [KINDS], see success.py.
    """

    name = "attention"
    lists = memories.LISTS_SHOWN

    def __init__(
        self,
        items: IdTable,
        histories: Histories,
        counts: Counts,
        dim: int,
        length: int,
        seed: int,
        with_memories: bool = True,
    ) -> None:
        self.items, self.histories, self.counts = items, histories, counts
        self.dim, self.seed, self.with_memories = dim, seed, with_memories
        self.module = Attention(dim, 2 if dim % 2 == 0 else 1, min(length, ATTENDED), seed)
        self.table = Column(np.zeros((items.capacity, dim + COLUMNS), np.float32), "item")
        self.table_squares = Column(np.zeros(items.capacity, np.float32), "item")
        self.success = Column(np.zeros((histories.pushed.data.shape[0], KINDS + 1), np.float32), "user")
        self.typical = Column(np.zeros(KINDS, np.float32), "none")
        self.gate = Gate(np.full(FEATURES, 1.0 if with_memories else 0.0, np.float32))
        self.parameters = dict(self.module.named_parameters())
        self.weights = {  # numpy views of the module's own memory
            name: Column(p.detach().numpy(), "none", stretch=STRETCH.get(name, -1))
            for name, p in self.parameters.items()
        }
        self.squares = {
            name: Column(np.zeros(p.shape, np.float32), "none", stretch=STRETCH.get(name, -1))
            for name, p in self.parameters.items()
        }
        self.gradients = RowGradients(dim)
        self._stamp = np.zeros(0, np.int64)
        self._tag = 1
        self._fresh = -1  # the popularity's version that the dense columns show

    def columns(self) -> dict[str, Column]:
        named = {f"module_{name}": column for name, column in self.weights.items()}
        named |= {f"module_{name}_squares": column for name, column in self.squares.items()}
        return named | self.gate.columns() | {
            "table": self.table,
            "table_squares": self.table_squares,
            "success": self.success,
            "typical": self.typical,
        }  # fmt: skip

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Give new item rows their first embedding: drawn from the id, so that no row number decides."""
        if rows.size:
            self.table.data[rows, : self.dim] = embeddings.first_embeddings(ids, self.seed, self.dim)
            self.table.data[rows, self.dim :] = columns_of_nothing()

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return scores [B, C]; see `Model`."""
        self._refresh()
        with torch.no_grad():
            user_BD = self.module(*self._inputs(queries)).numpy()
        return self._logits(queries, pool, user_BD, self.gate.coefficients(self._context(queries)))

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Test, then update; see `Model`."""
        self._refresh()
        context = self._context(queries)
        coef = self.gate.coefficients(context)
        items_BLD, *sides = self._inputs(queries)
        items_BLD.requires_grad_()
        vectors = self.module(items_BLD, *sides)
        user_BD = vectors.detach().numpy()
        logit_BC = self._logits(queries, pool, user_BD, coef)
        tested = self._test(queries, pool, targets, user_BD, coef)
        loss_B, slopes, coef_gradient = self._loss(queries, pool, targets, user_BD, coef, logit_BC)
        taught = targets.row_B >= 0
        mean = float(loss_B[taught].mean()) if taught.any() else float("nan")
        tested = tested._replace(loss_B=np.where(taught, loss_B, np.float32(np.nan)))
        if not taught.any():
            return TrainResult(tested, mean, 0.0, "no_target")
        user_gradient = self._gather_gradients(queries, pool, targets, user_BD, slopes)
        vectors.backward(torch.from_numpy(user_gradient))
        optimizer.add_windows(
            queries.items_BL, queries.length_B, items_BLD.grad.numpy(), *self.gradients.scratch
        )
        norm = self._norm(coef_gradient)
        if not (np.isfinite(mean) and np.isfinite(norm)):
            self._drop_gradients()
            return TrainResult(tested, mean, norm, "non_finite")
        self._update(context, coef_gradient, targets.pace)
        update_success(
            queries, pool.candidates, targets.row_B, self.table.data, self.dim, self.success.data,
            self.typical.data,
        )  # fmt: skip
        return TrainResult(tested, mean, norm, "")

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Return the parts of the scores [B, K, L + 1]; see `Model`."""
        self._refresh()
        coef = self.gate.coefficients(self._context(queries))
        inputs = self._inputs(queries)
        held = torch.from_numpy(self.table.data[np.maximum(rows_BK, 0), : self.dim])
        parts, rest = self.module.contributions(*inputs, held)
        out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        out[:, :, : parts.shape[2]] = parts.numpy()
        out[:, :, -1] = rest.numpy()
        explain(
            queries, rows_BK, pool.candidates, coef, self.table.data, self.dim, self.counts,
            priors(self.counts.popularity, len(self.items)), out,
        )  # fmt: skip
        return out

    def _refresh(self) -> None:
        if self._fresh != self.counts.popularity.version:
            dense_columns(self.counts.popularity, self.table.data[: self.items.used, self.dim :])
            self._fresh = self.counts.popularity.version

    def _context(self, queries: Queries) -> FloatArray:
        success = success_of(queries.user_B, self.success.data, self.typical.data)
        return memories.contexts(
            queries.user_B, queries.items_BL, queries.times_BL, queries.length_B, queries.now_ms_B,
            queries.cell_B, self.histories.pushed.data, self.histories.repeats.data, success,
            self.counts.successors,
        )  # fmt: skip

    def _inputs(self, queries: Queries) -> tuple[Any, Any, Any, Any]:
        """Return the module's inputs: the newest places, no more than the longest window of the batch."""
        longest = min(self.module.length, max(1, int(queries.length_B.max(initial=1))))
        items = queries.items_BL[:, :longest]
        gathered = np.empty((*items.shape, self.dim), np.float32)
        embeddings.gather_items(items, self.table.data, gathered)
        gaps, types = side_buckets(
            queries.times_BL[:, :longest], queries.now_ms_B, queries.types_BL[:, :longest]
        )
        return torch.from_numpy(gathered), torch.from_numpy(items < 0), gaps, types

    def _logits(self, queries: Queries, pool: Pool, user_BD: FloatArray, coef: FloatArray) -> FloatArray:
        candidates = pool.candidates
        out = np.zeros(candidates.rows.shape, np.float32)

        def work(half: int, a: int, b: int) -> None:
            loss_kernels.pool_logits(
                user_BD[a:b], self.table.data, self.dim, queries.cell_B[a:b], coef[a:b],
                candidates.rows[a:b], candidates.count[a:b], candidates.features[a:b], out[a:b],
            )  # fmt: skip

        in_halves(work, user_BD.shape[0])
        return out

    def _wide(self, queries: Queries, user_BD: FloatArray, coef: FloatArray) -> FloatArray:
        """Return each query as one vector [B, D + P] against the item table: one matrix product scores all
        rows.
        """
        wide = np.zeros((user_BD.shape[0], self.dim + COLUMNS), np.float32)
        wide[:, : self.dim] = user_BD
        wide[:, self.dim : self.dim + D_CELL] = coef[:, :D_CELL]
        cell_B = queries.cell_B.astype(np.int64)  # int8 can't count the columns
        wide[np.arange(user_BD.shape[0]), self.dim + D_CELL + cell_B] = coef[:, D_CELL]
        return wide

    def _test(
        self, queries: Queries, pool: Pool, targets: Targets, user_BD: FloatArray, coef: FloatArray
    ) -> RankResult:
        count = targets.row_B.shape[0]
        ranks = np.zeros((3, count), np.int64)
        exact = np.flatnonzero(targets.tested_B & (targets.row_B >= 0))
        wide = self._wide(queries, user_BD, coef)
        used = self.items.used
        table = self.table.data[:used]
        unseen = np.flatnonzero(self.items.status.data[:used] != LIVE)
        blocks = [exact[first : first + BLOCK] for first in range(0, exact.size, BLOCK)]

        def work(half: int, a: int, b: int) -> None:
            for some in blocks[a:b]:
                part = queries.pick(some)
                scores = wide[some] @ table.T  # by numpy: in two thirds of the time that torch takes
                out = np.zeros((3, some.size), np.int64)
                loss_kernels.exact_rank(
                    scores, coef[some], pool.candidates.rows[some], pool.candidates.count[some],
                    pool.candidates.features[some], targets.row_B[some], part.barred, part.border_B,
                    unseen, *out,
                )  # fmt: skip
                ranks[:, some] = out

        in_halves(work, len(blocks), least=2)
        return RankResult(ranks[0], ranks[1], ranks[2], targets.tested_B, targets.known_B)

    def _loss(
        self,
        queries: Queries,
        pool: Pool,
        targets: Targets,
        user_BD: FloatArray,
        coef: FloatArray,
        logit_BC: FloatArray,
    ) -> tuple[FloatArray, tuple[FloatArray, FloatArray, FloatArray], FloatArray]:
        """Return losses [B], slopes of candidates, target and sample, and the gradient of the coefficients
        [B, F].
        """
        batch, drawn = user_BD.shape[0], pool.negatives_N.shape[0]
        sampled = np.ascontiguousarray(
            self._wide(queries, user_BD, coef) @ self.table.data[pool.negatives_N].T
        )
        loss_B, slope_B = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
        slope_BC, slope_BN = np.zeros_like(logit_BC), np.zeros((batch, drawn), np.float32)
        gradient = np.zeros((batch, FEATURES), np.float32)
        if self._stamp.shape[0] < self.items.capacity:
            self._stamp, self._tag = np.zeros(self.items.capacity, np.int64), 1
        candidates = pool.candidates
        loss_kernels.softmax_loss(
            user_BD, self.table.data, self.dim, queries.cell_B, coef, candidates.rows, candidates.count,
            candidates.features, logit_BC, targets.row_B, targets.weight_B, queries.barred, queries.border_B,
            pool.known, self.items.status.data, pool.negatives_N, sampled, self._tag, self._stamp,
            loss_kernels.UNFORESEEN, loss_kernels.FLOOR, loss_B, slope_BC, slope_B, slope_BN, gradient,
        )  # fmt: skip
        self._tag += batch
        return loss_B, (slope_BC, slope_B, slope_BN), gradient

    def _gather_gradients(
        self,
        queries: Queries,
        pool: Pool,
        targets: Targets,
        user_BD: FloatArray,
        slopes: tuple[FloatArray, FloatArray, FloatArray],
    ) -> FloatArray:
        """Collect the item rows' gradients of the output side; return the users' [B, D]."""
        slope_BC, slope_B, slope_BN = slopes
        batch, window = queries.items_BL.shape
        self.gradients.begin(
            self.items.capacity, batch * (window + pool.candidates.rows.shape[1] + 1) + slope_BN.shape[1]
        )
        table = self.table.data
        drawn = table[pool.negatives_N, : self.dim]
        user_gradient = np.ascontiguousarray(slope_BN @ drawn)
        norms = (user_BD**2).mean(1)
        embeddings.output_gradients(
            user_BD, norms, table, pool.candidates.rows, pool.candidates.count, slope_BC, targets.row_B,
            slope_B, user_gradient, *self.gradients.scratch,
        )  # fmt: skip
        optimizer.add_rows(
            pool.negatives_N,
            np.ascontiguousarray(slope_BN.T @ user_BD),
            norms @ slope_BN**2,
            *self.gradients.scratch,
        )
        return user_gradient

    def _norm(self, coef_gradient: FloatArray) -> float:
        """Return the norm of the whole gradient."""
        parts = [float(p.grad.norm()) for p in self.parameters.values() if p.grad is not None]
        return float(
            np.linalg.norm([*parts, self.gradients.norm(), float(np.linalg.norm(coef_gradient.sum(0)))])
        )

    def _drop_gradients(self) -> None:
        self.module.zero_grad(set_to_none=True)

    def _update(self, context: FloatArray, coef_gradient: FloatArray, pace: float) -> None:
        optimizer.apply(
            self.table.data,
            self.table_squares.data,
            np.float32(pace * EMBEDDING_RATE),
            *self.gradients.scratch,
        )
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None  # backward has just run
            gradient = parameter.grad.numpy()
            # single events' gradients of a dense weight aren't kept: the square of their sum stands for them
            optimizer.adagrad(
                self.weights[name].data,
                self.squares[name].data,
                gradient,
                gradient**2,
                pace * WEIGHT_RATE,
                WEIGHT_MOST,
            )
            np.clip(self.weights[name].data, -optimizer.BOUND, optimizer.BOUND, out=self.weights[name].data)
        self._drop_gradients()
        if self.with_memories:
            self.gate.update(context, coef_gradient, pace)

"""The default model `attention`: attention over the history plus gated count features.

    score_n = u_b . e_n + x_n . c_b

u_b from attention_net.py over the tied item embeddings e, x the count features, c from gate.py. Axes as in
model.py and attention_net.py.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from pipeline.features.block import Candidates
from pipeline.models import optimizer
from pipeline.models.attention_net import Attended, Attention, Windows, side_buckets
from pipeline.models.embeddings import Table, dot_candidates, dot_gradients
from pipeline.models.gradient_model import GradientModel
from pipeline.models.loss import Logits, Loss
from pipeline.models.model import (
    Config,
    FloatArray,
    IntArray,
    ModelContext,
    Rows,
    Scores,
    Targets,
    TrainingCandidates,
)
from pipeline.state.queries import Queries

ATTENDED = 20  # newest places of a window: 50 rank no better on any stream, and take a quarter of all time


class AttentionConfig(Config, frozen=True):
    """Settings of the model `attention`."""

    dim: Annotated[int, msgspec.Meta(ge=4, le=1024)] = 64  # of an item's embedding
    history: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50  # interactions kept a user
    count_features: bool = True


class Detail(NamedTuple):
    """What an explanation needs of scores; `coef_BF`: coefficients of the count features."""

    coef_BF: FloatArray | None
    windows: Windows
    attended: Attended


class AttentionModel(GradientModel):
    """Columns: those of the item embeddings, of the gate, and of the net's parameters."""

    def __init__(self, context: ModelContext, name: str, config: AttentionConfig) -> None:
        super().__init__(context, name, config.count_features)
        dim = config.dim
        self.net = Attention(dim, 2 if dim % 2 == 0 else 1, min(config.history, ATTENDED), context.seed)
        self.items = Table("item", context.items.capacity, dim, context.seed)
        self.parameters = self.net.trained

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        if axis == "item":
            self.items.init_rows(rows, ids)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        windows = self._windows(queries)
        attended = self.net.attend(windows)
        scores_N = self._products(attended.user_BD, candidates)
        coef_BF = self.add_features(candidates, scores_N)
        return Scores(scores_N, Detail(coef_BF, windows, attended))

    def forward(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> tuple[Logits, Any]:
        windows = self._windows(queries)
        attended = self.net.attend(windows)
        user_BD = attended.user_BD
        scores_N = self._products(user_BD, training.candidates)
        target_B = np.einsum("bd,bd->b", user_BD, self.items.gather(targets.item_B))
        negatives_BS = user_BD @ self.items.values.data[training.negatives_S].T
        logits = Logits(scores_N, target_B.astype(np.float32), np.ascontiguousarray(negatives_BS))
        return logits, (windows, attended)

    def backward(
        self, held: Any, queries: Queries, training: TrainingCandidates, targets: Targets, loss: Loss
    ) -> Sequence[tuple[Table, optimizer.RowSums]]:
        windows, attended = held
        user_BD, values = attended.user_BD, self.items.values.data
        candidates, negatives, slope_BS = training.candidates, training.negatives_S, loss.slopes.negatives_BS
        sums = self.items.begin(
            candidates.rows.size + queries.items_BL.size + targets.item_B.size + negatives.size
        )
        user_gradient = np.ascontiguousarray(slope_BS @ values[negatives])
        norm_B = (user_BD**2).mean(1)
        dot_gradients(
            user_BD, norm_B, values, candidates.rows, candidates.indptr, training.place_B, targets.item_B,
            loss.slopes, user_gradient, sums,
        )  # fmt: skip
        optimizer.add_rows(negatives, np.ascontiguousarray(slope_BS.T @ user_BD), norm_B @ slope_BS**2, sums)
        self.net.backward(windows, attended, user_gradient, sums)
        return [(self.items, sums)]

    def explain(self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: Any) -> FloatArray:
        detail: Detail = scores.detail
        out = np.zeros((*places_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
        if candidates.rows.size == 0:
            return out
        if detail.coef_BF is not None:
            value_BKF = candidates.features[np.maximum(places_BK, 0)] * detail.coef_BF[:, None, :]
            out = self._context.bank.attribute(queries, candidates, places_BK, value_BKF)
        shown_BKD = self.items.gather(candidates.at(places_BK))
        parts_BKL, rest_BK = self.net.contributions(detail.windows, detail.attended, shown_BKD)
        out[:, :, : parts_BKL.shape[2]] += parts_BKL
        out[:, :, -1] += rest_BK
        return out

    def _windows(self, queries: Queries) -> Windows:
        """Return the net's inputs: the newest places, no more than the longest window of the batch."""
        longest = min(self.net.length, max(1, int(queries.length_B.max(initial=1))))
        gaps, types = side_buckets(
            queries.times_BL[:, :longest], queries.now_ms_B, queries.types_BL[:, :longest]
        )
        items_BL = np.ascontiguousarray(queries.items_BL[:, :longest])
        return Windows(self.items.values.data, items_BL, queries.length_B, gaps, types)

    def _products(self, user_BD: FloatArray, candidates: Candidates) -> FloatArray:
        """Return the inner product of each candidate's embedding and its query's vector [N]."""
        out_N = np.zeros(candidates.rows.shape[0], np.float32)
        dot_candidates(user_BD, self.items.values.data, candidates.rows, candidates.indptr, out_N)
        return out_N

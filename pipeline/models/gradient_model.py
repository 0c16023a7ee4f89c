"""What models trained by gradients share: gated count features, loss, a training step. Axes: model.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.features.block import Candidates
from pipeline.features.gate_inputs import GATE
from pipeline.models.embeddings import Table
from pipeline.models.gate import Gate, add_features, add_training_features, coefficient_gradient
from pipeline.models.loss import Logits, Loss, softmax_loss
from pipeline.models.model import (
    FloatArray,
    ModelContext,
    Targets,
    TrainingCandidates,
    TrainResult,
    ranks_within,
)
from pipeline.models.optimizer import RowSums, norm_of
from pipeline.models.parameters import TorchParameters
from pipeline.state.queries import Queries
from pipeline.state.store import Store


class GradientModel(Store):
    """Ranks, loss and gradients come from the same parameters, which move only afterwards.

    A subclass sets `parameters`, those of its net.
    """

    parameters: TorchParameters

    def __init__(self, context: ModelContext, name: str, count_features: bool) -> None:
        self.name, self._context = name, context
        gated = context.gated and count_features
        self.gate = Gate(len(context.bank.names), GATE) if gated else None

    def forward(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> tuple[Logits, Any]:
        """Return logits without count features, and what `backward` needs of the computation."""
        raise NotImplementedError

    def backward(
        self, held: Any, queries: Queries, training: TrainingCandidates, targets: Targets, loss: Loss
    ) -> Sequence[tuple[Table, RowSums]]:
        """Set the gradients of the net's parameters; return those of the tables' rows."""
        raise NotImplementedError

    def add_features(self, candidates: Candidates, scores_N: FloatArray) -> FloatArray | None:
        """Add the gated count features to scores; return their coefficients [B, F], None without a gate."""
        if self.gate is None:
            return None
        coef_BF = self.gate.coefficients(candidates.gate_inputs)
        add_features(coef_BF, candidates.indptr, candidates.features, scores_N)
        return coef_BF

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        inputs_BG, taught_B = training.candidates.gate_inputs, training.place_B >= -1
        if not taught_B.any():
            nan_B = np.full(taught_B.size, np.nan, np.float32)
            ranks = ranks_within(nan_B, training, targets, nan_B)._replace(loss_B=nan_B)
            return TrainResult(ranks, float("nan"), 0.0, "no_target")
        logits, held = self.forward(queries, training, targets)
        if self.gate is not None:
            add_training_features(self.gate.coefficients(inputs_BG), queries, training, logits)
        loss = softmax_loss(logits, training, targets.weight_B)
        ranks = ranks_within(logits.candidates_N, training, targets, loss.below_B)
        ranks = ranks._replace(loss_B=np.where(taught_B, loss.loss_B, np.float32(np.nan)))
        moved = self.backward(held, queries, training, targets, loss)
        norms = [self.parameters.norm(), *(norm_of(sums) for _, sums in moved)]
        if self.gate is not None:
            gradient_BF = coefficient_gradient(queries, training, loss.slopes)
            norms.append(float(np.linalg.norm(gradient_BF.sum(0))))
        mean, norm = float(loss.loss_B[taught_B].mean()), float(np.linalg.norm(norms))
        if not (np.isfinite(mean) and np.isfinite(norm)):
            self.parameters.drop_gradients()
            return TrainResult(ranks, mean, norm, "non_finite")
        for table, sums in moved:
            table.step(sums, targets.step_scale)
        self.parameters.step(targets.step_scale)
        if self.gate is not None:
            self.gate.update(inputs_BG, gradient_BF, targets.step_scale)
        return TrainResult(ranks, mean, norm, "")

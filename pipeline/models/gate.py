"""The gate: how much each count feature counts, given the user and the moment.

    c_bf = w_f + sum over g of W_fg input_bg                 logit_n += sum over f of x_nf c_bf

Few features with a free gate can diverge, so every parameter is held within BOUND and moves at most MAX_STEP
at once. Axes: B = queries, N = candidates, S = negatives, F = features, G = gate inputs.
"""

import numpy as np

from pipeline.kernels import summing
from pipeline.models.loss import Logits
from pipeline.models.model import FloatArray, TrainingCandidates
from pipeline.models.optimizer import adagrad
from pipeline.state.queries import Queries
from pipeline.state.store import Column, Store

RATE, MAX_STEP, BOUND, START = 0.06, 0.25, 4.0, 0.1


class Gate(Store):
    """Columns: `weight` float32 [F], `slope` float32 [F, G], and an Adagrad accumulator of each."""

    def __init__(self, features: int, inputs: int) -> None:
        self.weight = Column(np.full(features, START, np.float32), "none", stretch=0)
        self.slope = Column(np.zeros((features, inputs), np.float32), "none", stretch=0)
        self.weight_squares = Column(np.zeros(features, np.float32), "none", stretch=0)
        self.slope_squares = Column(np.zeros((features, inputs), np.float32), "none", stretch=0)

    def coefficients(self, inputs_BG: FloatArray) -> FloatArray:
        """Return c [B, F]."""
        mixed: FloatArray = self.weight.data + inputs_BG @ self.slope.data.T
        return np.ascontiguousarray(mixed)

    def update(self, inputs_BG: FloatArray, gradient_BF: FloatArray, step_scale: float = 1.0) -> None:
        """Take one step from the loss's gradient with respect to c, `step_scale` times as long as usual."""
        squares = gradient_BF**2
        pairs = (
            (self.weight, self.weight_squares, gradient_BF.sum(0), squares.sum(0)),
            (self.slope, self.slope_squares, gradient_BF.T @ inputs_BG, squares.T @ inputs_BG**2),
        )
        for parameter, accumulator, total, square in pairs:
            adagrad(parameter.data, accumulator.data, total, square, step_scale * RATE, MAX_STEP, BOUND)


def add_training_features(
    coef_BF: FloatArray, queries: Queries, training: TrainingCandidates, logits: Logits
) -> None:
    """Add the gated features of candidates, other targets and negatives to their logits."""
    add_features(coef_BF, training.candidates.indptr, training.candidates.features, logits.candidates_N)
    logits.target_B[...] += (training.target_features * coef_BF).sum(1)
    _add_negatives(coef_BF, queries.position_B, training.negative_features, logits.negatives_BS)


def coefficient_gradient(queries: Queries, training: TrainingCandidates, slopes: Logits) -> FloatArray:
    """Return the gradient of the loss with respect to c [B, F]."""
    out: FloatArray = training.target_features * slopes.target_B[:, None]
    _gradient(
        training.candidates.indptr, training.candidates.features, queries.position_B,
        training.negative_features, slopes, out,
    )  # fmt: skip
    return out


@summing
def add_features(coef_BF, indptr, features_NF, out_N):  # type: ignore[no-untyped-def]
    """Add every candidate's gated features to its logit."""
    for b in range(coef_BF.shape[0]):
        for n in range(indptr[b], indptr[b + 1]):
            total = np.float32(0)
            for f in range(coef_BF.shape[1]):
                total += features_NF[n, f] * coef_BF[b, f]
            out_N[n] += total


@summing
def _add_negatives(coef_BF, position_B, features_PSF, out_BS):  # type: ignore[no-untyped-def]
    for b in range(coef_BF.shape[0]):
        for s in range(out_BS.shape[1]):
            total = np.float32(0)
            for f in range(coef_BF.shape[1]):
                total += features_PSF[position_B[b], s, f] * coef_BF[b, f]
            out_BS[b, s] += total


@summing
def _gradient(indptr, features_NF, position_B, features_PSF, slopes, out_BF):  # type: ignore[no-untyped-def]
    slope_N, _, slope_BS = slopes
    for b in range(out_BF.shape[0]):
        for n in range(indptr[b], indptr[b + 1]):
            if slope_N[n] != 0:
                for f in range(out_BF.shape[1]):
                    out_BF[b, f] += slope_N[n] * features_NF[n, f]
        for s in range(slope_BS.shape[1]):
            if slope_BS[b, s] != 0:
                for f in range(out_BF.shape[1]):
                    out_BF[b, f] += slope_BS[b, s] * features_PSF[position_B[b], s, f]

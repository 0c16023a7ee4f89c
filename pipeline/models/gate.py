"""The gate: how much each memory counts, given the user and the moment.

    c_bf = w_f + sum over g of W_fg context_bg

Linear, trained by the loss's gradient with respect to c. Few features with a free gate can run away, so every
parameter is held within BOUND and moves at most MOST in a step. Axes: B = queries, F = features, G = context.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.memories import FEATURES, GATE
from pipeline.models.optimizer import adagrad
from pipeline.state.store import Column

FloatArray = npt.NDArray[np.float32]
RATE, MOST, BOUND, START = 0.06, 0.25, 4.0, 0.1


class Gate:
    """Columns: `weight` float32 [F], `slope` float32 [F, G], and an Adagrad accumulator of each."""

    def __init__(self, active_F: FloatArray) -> None:
        self.active_F = active_F  # 0 switches a feature off
        self.weight = Column(np.full(FEATURES, START, np.float32) * active_F, "none", stretch=0)
        self.slope = Column(np.zeros((FEATURES, GATE), np.float32), "none", stretch=0)
        self.weight_squares = Column(np.zeros(FEATURES, np.float32), "none", stretch=0)
        self.slope_squares = Column(np.zeros((FEATURES, GATE), np.float32), "none", stretch=0)

    def columns(self) -> dict[str, Column]:
        return {
            "gate_weight": self.weight,
            "gate_slope": self.slope,
            "gate_weight_squares": self.weight_squares,
            "gate_slope_squares": self.slope_squares,
        }

    def coefficients(self, context_BG: FloatArray) -> FloatArray:
        """Return c [B, F]."""
        mixed: FloatArray = self.weight.data + context_BG @ self.slope.data.T
        return np.ascontiguousarray(mixed * self.active_F)

    def update(self, context_BG: FloatArray, gradient_BF: FloatArray, pace: float = 1.0) -> None:
        """Take one step from the loss's gradient with respect to c, `pace` times as long as usual."""
        gradient_BF = gradient_BF * self.active_F
        squares = gradient_BF**2
        pairs = (
            (self.weight, self.weight_squares, gradient_BF.sum(0), squares.sum(0)),
            (self.slope, self.slope_squares, gradient_BF.T @ context_BG, squares.T @ context_BG**2),
        )
        for parameter, accumulator, total, square in pairs:
            adagrad(parameter.data, accumulator.data, total, square, pace * RATE, MOST)
            np.clip(parameter.data, -BOUND, BOUND, out=parameter.data)

"""The dense parameters of a torch module: one array holds all, so that a norm or a step is one call."""

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from pipeline.models.model import FloatArray
from pipeline.models.optimizer import BOUND, adagrad
from pipeline.state.store import Column, Store

RATE, MAX_STEP = 0.02, 0.05


class TorchParameters(Store):
    """Columns: every parameter of the module (in memory that torch shares), and an accumulator of each.

    `gradients`, by name, are the parameters' `grad`: 0 after every step, so a backward pass may add to them.
    """

    def __init__(self, module: nn.Module, stretched: Collection[str] = ()) -> None:
        """`stretched`: parameters with a length that a setting chooses, see `Column`."""
        size = sum(parameter.numel() for parameter in module.parameters())
        self._value, self._squares, self._gradient = (np.zeros(size, np.float32) for _ in range(3))
        self.values, self.squares = dict[str, Column](), dict[str, Column]()
        self.gradients = dict[str, FloatArray]()
        start = 0
        for name, parameter in module.named_parameters():
            stop, stretch = start + parameter.numel(), 0 if name in stretched else -1
            value, squares, gradient = (
                part[start:stop].reshape(parameter.shape)
                for part in (self._value, self._squares, self._gradient)
            )
            value[...] = parameter.detach().numpy()
            parameter.data, parameter.grad = torch.from_numpy(value), torch.from_numpy(gradient)
            self.values[name] = Column(value, "none", stretch=stretch)
            self.squares[name] = Column(squares, "none", stretch=stretch)
            self.gradients[name] = gradient
            start = stop

    def norm(self) -> float:
        """Return the norm of all gradients."""
        return math.sqrt(float(self._gradient @ self._gradient))

    def drop_gradients(self) -> None:
        """Set all gradients to 0."""
        self._gradient.fill(0)

    def step(self, step_scale: float) -> None:
        """Move every parameter within BOUND, `step_scale` times as far as usual; drop the gradients."""
        # single events' gradients of a dense weight aren't kept: the square of their sum stands for them
        adagrad(
            self._value, self._squares, self._gradient, self._gradient**2, step_scale * RATE, MAX_STEP,
            float(BOUND),
        )  # fmt: skip
        self.drop_gradients()

"""The dense parameters of a torch module as columns, moved by Adagrad."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from pipeline.models.optimizer import BOUND, adagrad
from pipeline.state.store import Column, Store

RATE, MAX_STEP = 0.02, 0.05


class TorchParameters(Store):
    """Columns: every parameter of the module (a view of torch's own memory), and an accumulator of each.

    `stretch`: parameters of which a setting chooses the length along this axis, see `Column`.
    """

    def __init__(
        self, module: nn.Module, stretch: Mapping[str, int] | None = None, rate: float = RATE
    ) -> None:
        self._module, self.rate = module, rate
        self._parameters = dict(module.named_parameters())
        lengths = stretch or {}
        self.values = {
            name: Column(p.detach().numpy(), "none", stretch=lengths.get(name, -1))
            for name, p in self._parameters.items()
        }
        self.squares = {
            name: Column(np.zeros(p.shape, np.float32), "none", stretch=lengths.get(name, -1))
            for name, p in self._parameters.items()
        }

    def norm(self) -> float:
        """Return the norm of all gradients."""
        norms = [float(p.grad.norm()) for p in self._parameters.values() if p.grad is not None]
        return float(np.linalg.norm(norms)) if norms else 0.0

    def drop_gradients(self) -> None:
        """Forget the gradients of the last backward pass."""
        self._module.zero_grad(set_to_none=True)

    def step(self, step_scale: float) -> None:
        """Move every parameter within BOUND, `step_scale` times as far as usual; forget the gradients."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.numpy()
            value, squares = self.values[name].data, self.squares[name].data
            # single events' gradients of a dense weight aren't kept: the square of their sum stands for them
            adagrad(value, squares, gradient, gradient**2, step_scale * self.rate, MAX_STEP)
            np.clip(value, -BOUND, BOUND, out=value)
        self.drop_gradients()

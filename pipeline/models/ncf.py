"""NeuMF, neural collaborative filtering: a factorisation and a multilayer perceptron over user and item.

    g = p_u * q_i (elementwise),  h = MLP([p'_u, q'_i]),  score = w . [g, h]

He, Liao, Zhang, Nie, Hu and Chua, "Neural collaborative filtering" (WWW 2017). A user's vectors are a learned
default plus an offset that starts at 0, so that unknown users have scores too. Axes as in torch_model.py.
"""

from itertools import pairwise
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from pipeline.models.model import Config, ModelContext
from pipeline.models.torch_model import TorchBatch, TorchModel


class NcfConfig(Config, frozen=True):
    """Settings of the model `ncf`."""

    dim: Annotated[int, msgspec.Meta(ge=2, le=256)] = 16  # of the factorisation, and of each input of the MLP
    layers: tuple[int, ...] = (32, 16)  # widths of the MLP's hidden layers
    count_features: bool = True

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers = {self.layers}: expected one or more widths of 1 or more")


class _Net(nn.Module):
    def __init__(self, config: NcfConfig) -> None:
        super().__init__()
        self.default_gmf = nn.Parameter(torch.randn(config.dim) * 0.1)
        self.default_mlp = nn.Parameter(torch.randn(config.dim) * 0.1)
        widths = [2 * config.dim, *config.layers]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.mlp = nn.Sequential(*layers)
        self.output = nn.Linear(config.dim + widths[-1], 1)

    def forward(self, user_gmf: Tensor, item_gmf: Tensor, user_mlp: Tensor, item_mlp: Tensor) -> Tensor:
        product = (self.default_gmf + user_gmf) * item_gmf
        hidden = self.mlp(torch.cat((self.default_mlp + user_mlp, item_mlp), 1))
        logits_P: Tensor = self.output(torch.cat((product, hidden), 1)).squeeze(1)
        return logits_P


class NcfModel(TorchModel):
    """Columns: those of two user and two item tables, the net's parameters and the gate."""

    def __init__(self, context: ModelContext, name: str, config: NcfConfig) -> None:
        super().__init__(context, name, config.count_features)
        for part in ("gmf", "mlp"):
            self.user_table(f"user_{part}", config.dim)
            self.item_table(f"item_{part}", config.dim)
        self.net = self.seeded(lambda: _Net(config))
        self.ready()

    def logits(self, batch: TorchBatch) -> Tensor:
        inputs = []
        for part in ("gmf", "mlp"):
            inputs.append(batch.users(f"user_{part}")[batch.query_P])
            inputs.append(batch.items(f"item_{part}")[batch.item_P])
        logits_P: Tensor = self.net(*inputs)
        return logits_P

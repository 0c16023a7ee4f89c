"""A small torch model as a newcomer would add it: the mean of the newest items, and a user's own taste.

user = a . mean(e(h_k)) + d + o_u,  score_n = user . e_n + bias_n
"""

import msgspec
import torch
from torch import Tensor, nn

from pipeline.models.model import ModelContext
from pipeline.models.registry import ModelType
from pipeline.models.torch_model import TorchBatch, TorchModel


class ToyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the toy model."""

    dim: int = 8
    history: int = 5  # newest interactions that count
    count_features: bool = True


class _Net(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.default = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, items_BLD: Tensor, empty_BL: Tensor, offset_BD: Tensor) -> Tensor:
        """Return user vectors [B, D]."""
        count_B1 = (~empty_BL).sum(1, keepdim=True).clamp(min=1)
        user_BD: Tensor = self.scale * items_BLD.sum(1) / count_B1 + self.default + offset_BD
        return user_BD


class ToyModel(TorchModel):
    """Columns: item embeddings and biases, user offsets, the net's parameters and the gate."""

    def __init__(self, context: ModelContext, name: str, config: ToyConfig) -> None:
        super().__init__(context, name, config.count_features)
        self._history = config.history
        self.item_table("item", config.dim)
        self.item_table("bias", 1)
        self.user_table("user", config.dim)
        self.net = self.seeded(lambda: _Net(config.dim))
        self.ready()

    def logits(self, batch: TorchBatch) -> Tensor:
        """Return inner products and biases [P]."""
        items_RD, newest = batch.items(), slice(0, self._history)
        windows = items_RD[batch.window_BL[:, newest]], batch.empty_BL[:, newest]
        user_BD = self.net(*windows, batch.users())
        return batch.dot(user_BD, items_RD) + batch.items("bias")[batch.item_P, 0]


TOY = ModelType(ToyConfig, ToyModel)

"""The default net's attention as its formula says, in torch: the oracle of vectors and gradients."""

import copy

import torch
from torch import Tensor

from pipeline.models.attention_net import Attention


class TorchAttention(Attention):
    """The same parameters, `forward` by torch operations that autograd follows."""

    @classmethod
    def of(cls, net: Attention) -> "TorchAttention":
        """Return a copy of a net, in float64."""
        copied = copy.deepcopy(net).double()
        copied.__class__ = cls
        return copied  # type: ignore[return-value]

    def forward(self, items_BLD: Tensor, empty_BL: Tensor, gaps_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return user vectors [B, D]."""
        alpha_BHL = self.weights(items_BLD, empty_BL, gaps_BL, types_BL)
        values = torch.einsum("hed,bld->bhle", self.value, items_BLD)
        heads = (alpha_BHL[..., None] * values).sum(2)
        z_BD = torch.einsum("bhe,hde->bd", heads, self.output) + items_BLD[:, 0] @ self.newest.T
        return torch.nn.functional.layer_norm(z_BD, (self.dim,), self.gamma, self.beta)

    def weights(self, items_BLD: Tensor, empty_BL: Tensor, gaps_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return alpha [B, H, L]."""
        query = torch.einsum("bd,hed->bhe", items_BLD[:, 0], self.query)
        keyed = items_BLD + self.place[: items_BLD.shape[1]] + self.gap[gaps_BL] + self.kind[types_BL]
        keys = torch.einsum("hed,bld->bhle", self.key, keyed)
        logits = (query[:, :, None] * keys).sum(3) / self.head_dim**0.5
        logits = logits.masked_fill(empty_BL[:, None], -1e9)
        return torch.softmax(logits, 2).masked_fill(empty_BL[:, None], 0.0)

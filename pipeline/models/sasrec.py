"""SASRec: a causal Transformer over the history.

    x_l = e(item_l) + p_l;  twice: x = x + attention(norm(x)) with causal mask, x = x + ffn(norm(x));
    score_n = norm(x_newest) . e_n

Kang and McAuley, "Self-attentive sequential recommendation" (ICDM 2018). Trained at its newest position, as
every model here: events come one after the other, so that each position of a window has been the newest once.
With `all_positions` each event also trains every earlier position again, as in the paper, to predict the item
after it, by a softmax over that item and the batch's uniform negatives. No dropout: an event is seen once, so
there is nothing to overfit in many passes. Axes as in torch_model.py.
"""

from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from pipeline.models.model import Config, ModelContext
from pipeline.models.torch_model import TorchBatch, TorchModel


class SasRecConfig(Config, frozen=True):
    """Settings of the model `sasrec`."""

    dim: Annotated[int, msgspec.Meta(ge=4, le=1024)] = 64
    history: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50  # newest interactions that it attends to
    blocks: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2
    heads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2  # `dim` is a multiple of it
    all_positions: bool = False
    count_features: bool = True

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim}, heads = {self.heads}: expected a multiple of heads as dim")


class SasRecNet(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.position = nn.Parameter(torch.randn(config.history, dim) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, config.heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, items_BLD: Tensor, empty_BL: Tensor) -> Tensor:
        """Return the vectors of every place of windows [B, L, D], newest first; 0 for an empty place."""
        length = items_BLD.shape[1]
        # oldest first; places that hold nothing are the first ones and attend to themselves alone
        x_BLD = (items_BLD + self.position[:length]).flip(1)
        empty_BL = empty_BL.flip(1)
        causal_LL = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask_BLL = causal_LL | (empty_BL[:, None, :] & ~torch.eye(length, dtype=torch.bool))
        for block in self.blocks:
            x_BLD = block(x_BLD, src_mask=mask_BLL.repeat_interleave(self.heads, 0))
        vectors_BLD: Tensor = (self.norm(x_BLD) * ~empty_BL[:, :, None]).flip(1)
        return vectors_BLD


class SasRecModel(TorchModel):
    """Columns: those of the item embeddings, the net's parameters and the gate."""

    def __init__(self, context: ModelContext, name: str, config: SasRecConfig) -> None:
        super().__init__(context, name, config.count_features)
        self._history, self._all_positions = config.history, config.all_positions
        self.item_table("item", config.dim)
        self.net = self.seeded(lambda: SasRecNet(config))
        self.ready()

    def logits(self, batch: TorchBatch) -> Tensor:
        items_RD = batch.items()
        window_BL, empty_BL = batch.window_BL[:, : self._history], batch.empty_BL[:, : self._history]
        vectors_BLD: Tensor = self.net(items_RD[window_BL], empty_BL)
        if self._all_positions and batch.n_negatives:
            earlier = ~empty_BL[:, 1:]
            vectors_ND, item_N = vectors_BLD[:, 1:][earlier], window_BL[:, :-1][earlier]
            batch.add_loss(sampled_softmax(vectors_ND, item_N, batch.negatives_S, items_RD))
        return batch.dot(vectors_BLD[:, 0], items_RD)


def sampled_softmax(vectors_ND: Tensor, item_N: Tensor, negatives_S: Tensor, items_RD: Tensor) -> Tensor:
    """Return the sum of the cross entropies of item rows [N] against the same negatives."""
    own_N = (vectors_ND * items_RD[item_N]).sum(1)
    others_NS = (vectors_ND @ items_RD[negatives_S].T).masked_fill(negatives_S == item_N[:, None], -torch.inf)
    return (torch.cat((own_N[:, None], others_NS), 1).logsumexp(1) - own_N).sum()

"""Attention of a user's newest interaction over the last ones, as a torch module.

Axes: B = queries, L = places of a window (newest first), H = heads, D = embedding, E = D / H, S = side rows.

One query a user (the newest item) keeps a step linear in L. The keys' projection is folded into the query and
the values' projection follows the pooling, so that nothing [B, L, D] is computed but the gathered items.
Place, time gap and event type add learned keys, never values.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GAPS = 16  # buckets of the time since an interaction: log2 of seconds
TYPES = 16  # buckets of the event type's hash


def side_buckets(times_BL: Any, now_ms_B: Any, types_BL: Any) -> tuple[Tensor, Tensor]:
    """Return the gap bucket and the type bucket of every place, both int64 [B, L]."""
    seconds = np.maximum(now_ms_B[:, None] - times_BL, 0) / 1000.0
    gaps = np.minimum(np.log2(1.0 + seconds) * 0.6, GAPS - 1).astype(np.int64)
    return torch.from_numpy(gaps), torch.from_numpy(types_BL.astype(np.int64) % TYPES)


class Attention(nn.Module):
    """Turns a window into the user's vector: layer norm of (projected newest item + attended items).

        alpha_l = softmax_l( (q . k_l + side_l) / sqrt(E) ),  q = W_q x_0,  k_l = W_k x_l
        z = W_o [sum_l alpha_l W_v x_l] + W_p x_0
        user = gamma * (z - mean z) / std z + beta

    gamma starts small: an untrained vector must not drown the count features that it is added to.
    """

    def __init__(self, dim: int, heads: int, length: int, seed: int) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim, self.length = dim, heads, dim // heads, length
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * std)

        std = 1 / math.sqrt(dim)
        self.query = normal(heads, self.head_dim, dim, std=std)
        self.key = normal(heads, self.head_dim, dim, std=std)
        self.value = normal(heads, self.head_dim, dim, std=std)
        self.output = normal(heads, dim, self.head_dim, std=std)
        self.newest = nn.Parameter(torch.eye(dim))
        self.place = nn.Parameter(torch.zeros(length, dim))
        self.gap = nn.Parameter(torch.zeros(GAPS, dim))
        self.kind = nn.Parameter(torch.zeros(TYPES, dim))
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))
        self.beta = nn.Parameter(torch.zeros(dim))

    def weights(self, items_BLD: Tensor, empty_BL: Tensor, gaps_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return alpha [B, H, L]; places where `empty_BL` get 0, and so does a whole empty window."""
        batch, length = empty_BL.shape
        query = torch.einsum("bd,hed->bhe", items_BLD[:, 0], self.query)
        folded = torch.einsum("bhe,hed->bhd", query, self.key) / math.sqrt(
            self.head_dim
        )  # q W_k, once a query
        logits = folded @ items_BLD.transpose(1, 2) + folded @ self.place[:length].T
        for table, buckets in ((self.gap, gaps_BL), (self.kind, types_BL)):
            side = folded @ table.T
            logits = logits + side.gather(2, buckets[:, None, :].expand(batch, self.heads, length))
        # a large finite value, not -inf: an empty window must give 0 and no NaN
        logits = logits.masked_fill(empty_BL[:, None, :], -1e9)
        return torch.softmax(logits, 2).masked_fill(empty_BL[:, None, :], 0.0)

    def pre_norm(self, items_BLD: Tensor, alpha_BHL: Tensor) -> Tensor:
        """Return z [B, D]."""
        pooled = alpha_BHL @ items_BLD
        heads = torch.einsum("bhd,hed->bhe", pooled, self.value)
        attended = torch.einsum("bhe,hde->bd", heads, self.output)
        return attended + items_BLD[:, 0] @ self.newest.T

    def forward(self, items_BLD: Tensor, empty_BL: Tensor, gaps_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return user vectors [B, D]; an empty window gives beta."""
        alpha_BHL = self.weights(items_BLD, empty_BL, gaps_BL, types_BL)
        return self.normed(self.pre_norm(items_BLD, alpha_BHL))

    def normed(self, z_BD: Tensor) -> Tensor:
        """Return the layer norm [B, D] of z."""
        return nn.functional.layer_norm(z_BD, (self.dim,), self.gamma, self.beta)

    @torch.no_grad()
    def contributions(
        self, items_BLD: Tensor, alpha: Tensor, z: Tensor, targets_BKD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what each place adds to user . target [B, K, L], and beta's part [B, K].

        The layer norm is linear once its standard deviation is known, so the parts sum to the whole.
        """
        deviation = torch.sqrt(z.var(1, unbiased=False, keepdim=True) + 1e-5)
        pull = targets_BKD * (self.gamma / deviation)[:, None, :]
        pull = pull - pull.mean(2, keepdim=True)
        back = torch.einsum(
            "bkd,hde,hef->bhkf", pull, self.output, self.value
        )  # through W_o and W_v, per head
        batch, places, length = targets_BKD.shape[0], targets_BKD.shape[1], items_BLD.shape[1]
        mixed = back.reshape(batch, self.heads * places, self.dim) @ items_BLD.transpose(1, 2)
        parts = (mixed.view(batch, self.heads, places, length) * alpha[:, :, None, :]).sum(1)
        parts[:, :, 0] += torch.einsum("bkd,bd->bk", pull, items_BLD[:, 0] @ self.newest.T)
        return parts, targets_BKD @ self.beta

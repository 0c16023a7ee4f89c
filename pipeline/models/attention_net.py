"""Attention of a user's newest interaction over the last ones, with its gradients.

Axes: B = queries, L = places of a window (newest first), H = heads, D = embedding, E = D / H, S = side rows
(places, then gap buckets, then type buckets), K = places of a list.

One query a user (the newest item) keeps a step linear in L. The keys' projection is folded into the query and
the values' projection follows the pooling, so that nothing [B, L, D] is computed: kernels read the items'
rows, numpy multiplies what is dense. The parameters are a torch module's; tests hold vectors and gradients
against torch's own.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.kernels import summing
from pipeline.models.embeddings import dot
from pipeline.models.optimizer import RowSums, slot_of
from pipeline.models.parameters import TorchParameters

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
GAPS = 16  # buckets of the time since an interaction: log2 of seconds
TYPES = 16  # buckets of the event type's hash
EPSILON = np.float32(1e-5)  # of the layer norm


class Windows(NamedTuple):
    """The newest interactions of each query, for kernels; `values` [M, D] are all items' embeddings."""

    values: FloatArray
    items_BL: IntArray
    length_B: IntArray
    gaps_BL: npt.NDArray[np.int64]
    types_BL: npt.NDArray[np.int64]


def side_buckets(times_BL: Any, now_ms_B: Any, types_BL: Any) -> tuple[Any, Any]:
    """Return the gap bucket and the type bucket of every place, both int64 [B, L]."""
    seconds = np.maximum(now_ms_B[:, None] - times_BL, 0) / 1000.0
    gaps = np.minimum(np.log2(1.0 + seconds) * 0.6, GAPS - 1).astype(np.int64)
    return gaps, types_BL.astype(np.int64) % TYPES


class Attended(NamedTuple):
    """User vectors, and what the gradients and explanations need of their computation."""

    user_BD: FloatArray
    newest_BD: FloatArray  # the newest item's embedding; 0 of an empty window
    query_HBE: FloatArray
    folded_HBD: FloatArray  # q W_k / sqrt(E)
    alpha_HBL: FloatArray
    pooled_HBD: FloatArray
    heads_HBE: FloatArray
    normed_BD: FloatArray
    scale_B: FloatArray  # 1 / std z


class Attention(nn.Module):
    """Turns a window into the user's vector: layer norm of (projected newest item + attended items).

        alpha_l = softmax_l( q . (W_k x_l + W_k side_l) / sqrt(E) ),  q = W_q x_0
        z = W_o [sum_l alpha_l W_v x_l] + W_p x_0
        user = gamma * (z - mean z) / std z + beta

    Place, time gap and event type add learned keys, never values. gamma starts small: an untrained vector
    must not drown the count features that it is added to. An empty window gives beta.
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
        self.trained = TorchParameters(self, stretched=("place",))
        self.arrays = {name: column.data for name, column in self.trained.values.items()}

    def attend(self, windows: Windows) -> Attended:
        """Return user vectors [B, D], and what led to them."""
        p, batch, most = self.arrays, windows.length_B.shape[0], windows.items_BL.shape[1]
        newest_BD = windows.values[windows.items_BL[:, 0]]
        newest_BD[windows.length_B == 0] = 0
        query_HBE = np.matmul(newest_BD, p["query"].transpose(0, 2, 1))
        folded_HBD = np.matmul(query_HBE, p["key"]) / np.float32(math.sqrt(self.head_dim))
        side_HBS = folded_HBD @ self._sides(p, most).T
        alpha_HBL = np.zeros((self.heads, batch, most), np.float32)
        pooled_HBD = np.zeros_like(folded_HBD)
        _attend(windows, folded_HBD, side_HBS, alpha_HBL, pooled_HBD)
        heads_HBE = np.matmul(pooled_HBD, p["value"].transpose(0, 2, 1))
        z_BD = np.matmul(heads_HBE, p["output"].transpose(0, 2, 1)).sum(0) + newest_BD @ p["newest"].T
        user_BD, scale_B = np.empty_like(z_BD), np.empty(batch, np.float32)
        _normalise(z_BD, p["gamma"], p["beta"], scale_B, user_BD)
        return Attended(
            user_BD, newest_BD, query_HBE, folded_HBD, alpha_HBL, pooled_HBD, heads_HBE, z_BD, scale_B
        )

    def backward(self, windows: Windows, at: Attended, slope_BD: FloatArray, sums: RowSums) -> None:
        """Write the parameters' gradients, given the loss's with respect to user vectors; add the items'."""
        p, found = self.arrays, self.trained.gradients
        most, root = windows.items_BL.shape[1], np.float32(math.sqrt(self.head_dim))
        dz_BD = np.empty_like(slope_BD)
        _norm_slopes(at, slope_BD, p["gamma"], dz_BD, found["gamma"], found["beta"])
        np.matmul(dz_BD.T, at.newest_BD, out=found["newest"])
        np.matmul(dz_BD.T, at.heads_HBE, out=found["output"])
        d_heads_HBE = np.matmul(dz_BD, p["output"])
        np.matmul(d_heads_HBE.transpose(0, 2, 1), at.pooled_HBD, out=found["value"])
        d_pooled_HBD = np.matmul(d_heads_HBE, p["value"])
        d_folded_HBD, d_logit_HBL = np.zeros_like(at.folded_HBD), np.zeros_like(at.alpha_HBL)
        d_side_HBS = np.zeros((self.heads, slope_BD.shape[0], most + GAPS + TYPES), np.float32)
        _logit_slopes(windows, at.alpha_HBL, d_pooled_HBD, d_logit_HBL, d_folded_HBD, d_side_HBS)
        sides_SD = self._sides(p, most)
        d_folded_HBD += d_side_HBS @ sides_SD
        d_sides = d_side_HBS.reshape(-1, sides_SD.shape[0]).T @ at.folded_HBD.reshape(-1, self.dim)
        found["place"][:most], found["gap"][...] = d_sides[:most], d_sides[most : most + GAPS]
        found["kind"][...] = d_sides[most + GAPS :]
        d_folded_HBD /= root
        np.matmul(at.query_HBE.transpose(0, 2, 1), d_folded_HBD, out=found["key"])
        d_query_HBE = np.matmul(d_folded_HBD, p["key"].transpose(0, 2, 1))
        np.matmul(d_query_HBE.transpose(0, 2, 1), at.newest_BD, out=found["query"])
        d_newest_BD = np.matmul(d_query_HBE, p["query"]).sum(0) + dz_BD @ p["newest"]
        scratch_D = np.empty(self.dim, np.float32)
        _add_windows(windows, at, (d_pooled_HBD, d_logit_HBL, d_newest_BD), scratch_D, sums)

    def contributions(
        self, windows: Windows, at: Attended, shown_BKD: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return what each place adds to user . shown [B, K, L], and beta's part [B, K].

        The layer norm is linear once its standard deviation is known, so the parts sum to the whole.
        """
        p, (batch, places, dim) = self.arrays, shown_BKD.shape
        pull_BKD = shown_BKD * (p["gamma"] * at.scale_B[:, None])[:, None, :]
        pull_BKD -= pull_BKD.mean(2, keepdims=True)
        through_HDD = np.matmul(p["output"], p["value"])  # W_o W_v
        back_HBKD = (pull_BKD.reshape(-1, dim) @ through_HDD).reshape(self.heads, batch, places, dim)
        parts_BKL = np.zeros((batch, places, windows.items_BL.shape[1]), np.float32)
        _contribute(windows, at.alpha_HBL, back_HBKD, parts_BKL)
        parts_BKL[:, :, 0] += np.matmul(pull_BKD, (at.newest_BD @ p["newest"].T)[:, :, None])[:, :, 0]
        return parts_BKL, shown_BKD @ p["beta"]

    def _sides(self, p: dict[str, FloatArray], most: int) -> FloatArray:
        """Return the learned keys of places, gaps and types [S, D]."""
        return np.concatenate((p["place"][:most], p["gap"], p["kind"]))


@summing
def _normalise(z_BD, gamma, beta, scale_B, user_BD):  # type: ignore[no-untyped-def]
    """Normalise z in place; write 1 / std z, and user vectors."""
    dim = z_BD.shape[1]
    for b in range(z_BD.shape[0]):
        mean, square = np.float32(0), np.float32(0)
        for d in range(dim):
            mean += z_BD[b, d]
        mean /= np.float32(dim)
        for d in range(dim):
            z_BD[b, d] -= mean
            square += z_BD[b, d] * z_BD[b, d]
        scale = np.float32(1) / np.sqrt(square / np.float32(dim) + EPSILON)
        scale_B[b] = scale
        for d in range(dim):
            z_BD[b, d] *= scale
            user_BD[b, d] = gamma[d] * z_BD[b, d] + beta[d]


@summing
def _norm_slopes(at, slope_BD, gamma, dz_BD, d_gamma, d_beta):  # type: ignore[no-untyped-def]
    """Write the gradient of z; add those of gamma and beta."""
    dim = gamma.shape[0]
    for b in range(slope_BD.shape[0]):
        mean, shared = np.float32(0), np.float32(0)
        for d in range(dim):
            slope = slope_BD[b, d]
            d_gamma[d] += slope * at.normed_BD[b, d]
            d_beta[d] += slope
            dz_BD[b, d] = slope * gamma[d]
            mean += dz_BD[b, d]
            shared += dz_BD[b, d] * at.normed_BD[b, d]
        mean, shared = mean / np.float32(dim), shared / np.float32(dim)
        for d in range(dim):
            dz_BD[b, d] = (dz_BD[b, d] - mean - shared * at.normed_BD[b, d]) * at.scale_B[b]


@summing
def _attend(windows, folded_HBD, side_HBS, alpha_HBL, pooled_HBD):  # type: ignore[no-untyped-def]
    """Write the attention weights, and the items pooled by them."""
    heads, batch, most = alpha_HBL.shape
    for b in range(batch):
        length = min(windows.length_B[b], most)
        for h in range(heads):
            side, top, total = side_HBS[h, b], np.float32(-np.inf), np.float32(0)
            for k in range(length):
                logit = dot(folded_HBD[h, b], windows.values[windows.items_BL[b, k]]) + side[k]
                logit += side[most + windows.gaps_BL[b, k]] + side[most + GAPS + windows.types_BL[b, k]]
                alpha_HBL[h, b, k] = logit
                top = max(top, logit)
            for k in range(length):
                alpha_HBL[h, b, k] = np.exp(alpha_HBL[h, b, k] - top)
                total += alpha_HBL[h, b, k]
            for k in range(length):
                alpha = alpha_HBL[h, b, k] / total
                alpha_HBL[h, b, k] = alpha
                row = windows.items_BL[b, k]
                for d in range(pooled_HBD.shape[2]):
                    pooled_HBD[h, b, d] += alpha * windows.values[row, d]


@summing
def _logit_slopes(windows, alpha_HBL, d_pooled_HBD, d_logit_HBL, d_folded_HBD, d_side_HBS):  # type: ignore[no-untyped-def]
    """Write the gradients of logits, and with them those of folded queries and side logits."""
    heads, batch, most = alpha_HBL.shape
    for b in range(batch):
        length = min(windows.length_B[b], most)
        for h in range(heads):
            mean = np.float32(0)
            for k in range(length):
                slope = dot(d_pooled_HBD[h, b], windows.values[windows.items_BL[b, k]])
                d_logit_HBL[h, b, k] = slope
                mean += alpha_HBL[h, b, k] * slope
            for k in range(length):
                slope = alpha_HBL[h, b, k] * (d_logit_HBL[h, b, k] - mean)
                d_logit_HBL[h, b, k] = slope
                d_side_HBS[h, b, k] += slope
                d_side_HBS[h, b, most + windows.gaps_BL[b, k]] += slope
                d_side_HBS[h, b, most + GAPS + windows.types_BL[b, k]] += slope
                row = windows.items_BL[b, k]
                for d in range(d_folded_HBD.shape[2]):
                    d_folded_HBD[h, b, d] += slope * windows.values[row, d]


@summing
def _add_windows(windows, at, slopes, scratch_D, sums):  # type: ignore[no-untyped-def]
    """Add the gradients of window items; each place counts as one event."""
    d_pooled_HBD, d_logit_HBL, d_newest_BD = slopes
    heads, batch, most = d_logit_HBL.shape
    dim = scratch_D.shape[0]
    for b in range(batch):
        for k in range(min(windows.length_B[b], most)):
            for d in range(dim):
                scratch_D[d] = d_newest_BD[b, d] if k == 0 else np.float32(0)
            for h in range(heads):
                alpha, slope = at.alpha_HBL[h, b, k], d_logit_HBL[h, b, k]
                for d in range(dim):
                    scratch_D[d] += alpha * d_pooled_HBD[h, b, d] + slope * at.folded_HBD[h, b, d]
            s, square = slot_of(windows.items_BL[b, k], sums), np.float32(0)
            for d in range(dim):
                sums.total[s, d] += scratch_D[d]
                square += scratch_D[d] * scratch_D[d]
            sums.squares[s] += square / dim


@summing
def _contribute(windows, alpha_HBL, back_HBKD, parts_BKL):  # type: ignore[no-untyped-def]
    """Write what attention to each place adds to each score."""
    heads, batch, most = alpha_HBL.shape
    for b in range(batch):
        for k in range(parts_BKL.shape[1]):
            for e in range(min(windows.length_B[b], most)):
                value = windows.values[windows.items_BL[b, e]]
                for h in range(heads):
                    parts_BKL[b, k, e] += alpha_HBL[h, b, e] * dot(back_HBKD[h, b, k], value)

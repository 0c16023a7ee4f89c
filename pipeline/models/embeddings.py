"""Kernels on the item embeddings: their first values, windows of them, their gradients on the output side.

Axes: B = queries, C = candidate slots, D = embedding, L = places of a window, N = new items.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.models.optimizer import slot_of
from pipeline.state.splitmix import next_uniform

FloatArray = npt.NDArray[np.float32]
STD = 0.1
FAINT = 1e-3  # slopes below this move no embedding: most of the pool, and nothing of the quality


def first_embeddings(ids: Sequence[str], seed: int, dim: int) -> FloatArray:
    """Return new items' embeddings [N, D]: normal, from id and seed alone, so that no row number decides.

    >>> bool((first_embeddings(["a", "b"], 0, 4)[1] == first_embeddings(["b"], 0, 4)[0]).all())
    True
    """
    key = seed.to_bytes(8, "little")
    pieces = [hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in ids]
    normals = np.empty((len(ids), dim), np.float32)
    _normals(np.frombuffer(b"".join(pieces), "<u8"), normals)
    return normals * np.float32(STD)


@kernel()
def _normals(hash_N, out):  # type: ignore[no-untyped-def]
    """Write standard normal vectors [N, D], each from its hash (splitmix64, then Box and Muller 1958)."""
    dim = out.shape[1]
    for n in range(hash_N.shape[0]):
        state = hash_N[n]
        for d in range(0, dim, 2):
            state, first = next_uniform(state)
            state, second = next_uniform(state)
            radius = np.sqrt(-2.0 * np.log(first + 1e-300))
            out[n, d] = radius * np.cos(2 * np.pi * second)
            if d + 1 < dim:
                out[n, d + 1] = radius * np.sin(2 * np.pi * second)


@kernel()
def gather_items(items_BL, table, out_BLD):  # type: ignore[no-untyped-def]
    """Write the embeddings of windows to `out` [B, L, D]; 0 where there is no item."""
    dim = out_BLD.shape[2]
    for b in range(items_BL.shape[0]):
        for k in range(items_BL.shape[1]):
            m = items_BL[b, k]
            for d in range(dim):
                out_BLD[b, k, d] = table[m, d] if m >= 0 else np.float32(0)


@kernel()
def output_gradients(  # type: ignore[no-untyped-def]
    user_BD, norm_B, table, rows_BC, count_B, slope_BC, target_B, slope_B, user_gradient, tag, stamp, slot,
    rows, total, squares, used,
):  # fmt: skip
    """Add what candidates and targets give to the users' gradient [B, D] and to the item rows'."""
    dim = user_BD.shape[1]
    for b in range(user_BD.shape[0]):
        if target_B[b] < 0:
            continue
        for c in range(-1, count_B[b]):
            slope = slope_BC[b, c] if c >= 0 else slope_B[b]
            if abs(slope) < FAINT:
                continue
            row = rows_BC[b, c] if c >= 0 else target_B[b]
            s = slot_of(row, tag, stamp, slot, rows, total, squares, used)
            for d in range(dim):
                user_gradient[b, d] += slope * table[row, d]
                total[s, d] += slope * user_BD[b, d]
            squares[s] += slope * slope * norm_B[b]

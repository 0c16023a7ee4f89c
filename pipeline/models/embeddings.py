"""Embedding tables: their first values, growth and steps; inner products with candidates and their gradients.

Axes: B = queries, D = embedding, M = rows, N = candidates of all queries, or new ids.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel, summing
from pipeline.models.optimizer import RowGradients, RowSums, apply, slot_of
from pipeline.state.splitmix import next_uniform
from pipeline.state.store import Axis, Column, Store

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
RATE, STD = 0.05, 0.1
FAINT = 1e-3  # slopes below this move no embedding: most candidates, and nothing of the quality


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


class Table(Store):
    """A growing table of embeddings: row-wise Adagrad on the touched rows, each within BOUND.

    Columns: `values` float32 [M, D] and `squares` float32 [M], the accumulator.
    """

    def __init__(self, axis: Axis, rows: int, dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed
        own = axis == "user"
        self.values = Column(np.zeros((rows, dim), np.float32), axis, own=own)
        self.squares = Column(np.zeros(rows, np.float32), axis, own=own)
        self._gradients = RowGradients(dim)

    def init_rows(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Draw rows from their ids."""
        if rows.size:
            self.values.data[rows] = first_embeddings(ids, self.seed, self.dim)
            self.squares.data[rows] = 0

    def gather(self, rows: IntArray) -> FloatArray:
        """Return a copy of these rows [..., D]; 0 where a row is below 0."""
        out = np.zeros((*rows.shape, self.dim), np.float32)
        _gather(rows.reshape(-1), self.values.data, out.reshape(-1, self.dim))
        return out

    def begin(self, most: int) -> RowSums:
        """Start to sum the gradients of a batch that touches at most `most` rows."""
        return self._gradients.begin(self.values.data.shape[0], most)

    def step(self, sums: RowSums, step_scale: float) -> None:
        """Move the touched rows, `step_scale` times as far as usual."""
        apply(self.values.data, self.squares.data, np.float32(step_scale * RATE), sums)


@kernel()
def _gather(rows_N, values, out_ND):  # type: ignore[no-untyped-def]
    for n in range(rows_N.shape[0]):
        if rows_N[n] >= 0:
            for d in range(out_ND.shape[1]):
                out_ND[n, d] = values[rows_N[n], d]


@summing
def dot(a, b):  # type: ignore[no-untyped-def]
    """Return the inner product of two vectors."""
    total = np.float32(0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@kernel()
def dot_candidates(user_BD, values, rows_N, indptr, out_N):  # type: ignore[no-untyped-def]
    """Write the inner product of each candidate's embedding and its query's vector."""
    for b in range(user_BD.shape[0]):
        for n in range(indptr[b], indptr[b + 1]):
            out_N[n] = dot(user_BD[b], values[rows_N[n]])


@kernel()
def dot_gradients(user_BD, norm_B, values, rows_N, indptr, place_B, target_B, slopes, user_gradient_BD, sums):  # type: ignore[no-untyped-def]
    """Add what candidates and targets give to the users' gradient and to the item rows'."""
    slope_N, slope_B, _ = slopes
    for b in range(user_BD.shape[0]):
        if place_B[b] < -1:
            continue
        for n in range(indptr[b] - 1, indptr[b + 1]):
            outside = n < indptr[b]
            if outside and place_B[b] >= 0:
                continue
            slope = slope_B[b] if outside else slope_N[n]
            if abs(slope) < FAINT:
                continue
            row = target_B[b] if outside else rows_N[n]
            s = slot_of(row, sums)
            for d in range(user_BD.shape[1]):
                user_gradient_BD[b, d] += slope * values[row, d]
                sums.total[s, d] += slope * user_BD[b, d]
            sums.squares[s] += slope * slope * norm_B[b]

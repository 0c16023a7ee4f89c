"""A block of queries with their growing lists of candidates, and the candidates of a batch in CSR layout.

Axes: B = queries of the block (at most MAX_QUERIES), C = slots of a query, F = features, H = places of a
query's hash table, M = item rows, N = candidates of all queries, W = words of a Bloom filter.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import inlined, kernel
from pipeline.state.shards import pick
from pipeline.state.tables import LIVE

MAX_QUERIES = 32  # a block's candidates stay in the processor's L2 cache; one bit each in `excluded_M`
SEEN_WORDS = 64  # 4,096 bits for some 280 candidates
RETRIEVED = 200  # slots for items that the history leads to; those behind are for popular items


class Candidates(NamedTuple):
    """Candidates of B queries: those of query b are `rows[indptr[b]:indptr[b + 1]]`, each once.

    `gate_inputs` [B, G] describe the user and the moment, see gate_inputs.py.
    """

    rows: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]  # [N, F]
    gate_inputs: npt.NDArray[np.float32]

    @property
    def query_N(self) -> npt.NDArray[np.int64]:
        """Return the query of each candidate."""
        return np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))

    def at(self, places_BK: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the item rows at places among all candidates, -1 for none."""
        rows_BK = np.full(places_BK.shape, -1, np.int32)
        rows_BK[places_BK >= 0] = self.rows[places_BK[places_BK >= 0]]
        return rows_BK

    def pick(self, places: npt.NDArray[np.integer]) -> "Candidates":
        """Return the candidates of the queries at these places, in this order."""
        where, indptr = pick(np.arange(self.rows.size), self.indptr, np.asarray(places, np.int64))
        return Candidates(self.rows[where], indptr, self.features[where], self.gate_inputs[places])


class Block(NamedTuple):
    """Queries, and for each of them a growing list of candidates with their features.

    `key` and `slot`: a query's hash table from item rows to slots; `seen` is a Bloom filter of its keys, as
    most look-ups find nothing. Bit b of `excluded_M[m]`: item m is excluded for query b. `scratch` is for one
    family at a time.
    """

    items_BL: npt.NDArray[np.int32]
    length_B: npt.NDArray[np.int32]
    position_B: npt.NDArray[np.int8]
    session_B: npt.NDArray[np.uint64]
    status_M: npt.NDArray[np.uint8]
    excluded_M: npt.NDArray[np.uint32]
    seen_BW: npt.NDArray[np.uint64]
    key_BH: npt.NDArray[np.int32]
    slot_BH: npt.NDArray[np.int32]
    count_B: npt.NDArray[np.int32]
    rows_BC: npt.NDArray[np.int32]
    features_BCF: npt.NDArray[np.float32]
    scratch_C: npt.NDArray[np.float32]


@inlined
def _place_of(keys_H, m):  # type: ignore[no-untyped-def]
    """Return the place of item row `m` in a query's hash table, else the empty one where it belongs."""
    mask = np.uint64(keys_H.shape[0] - 1)
    h = (np.uint64(m) * np.uint64(2654435761) >> np.uint64(7)) & mask
    while keys_H[h] >= 0 and keys_H[h] != m:
        h = (h + np.uint64(1)) & mask
    return h


@inlined
def _bit_of(m):  # type: ignore[no-untyped-def]
    """Return the word and the bit of item row `m` in `seen_BW`."""
    x = np.uint64(m) * np.uint64(2654435761) >> np.uint64(20)
    return (x >> np.uint64(6)) % np.uint64(SEEN_WORDS), np.uint64(1) << (x & np.uint64(63))


@inlined
def find_slot(block, b, m):  # type: ignore[no-untyped-def]
    """Return the slot of item row `m` in query b's list, -1 where it has none."""
    w, bit = _bit_of(m)
    if not block.seen_BW[b, w] & bit:
        return np.int64(-1)
    h = _place_of(block.key_BH[b], m)
    return np.int64(block.slot_BH[b, h]) if block.key_BH[b, h] >= 0 else np.int64(-1)


@inlined
def may_show(block, b, m):  # type: ignore[no-untyped-def]
    """Return whether item row `m` may be shown for query b."""
    return block.status_M[m] == LIVE and not (block.excluded_M[m] >> np.uint32(b)) & np.uint32(1)


@inlined
def slot_of(block, b, m, limit):  # type: ignore[no-untyped-def]
    """Return the slot of item row `m` in query b's list, the next one, zeroed, where it has none yet.

    -1: the row holds no item that may be shown for this query, or `limit` slots are taken.
    """
    if m < 0:
        return np.int64(-1)
    c = find_slot(block, b, m)
    n = np.int64(block.count_B[b])
    if c >= 0 or n >= limit or not may_show(block, b, m):
        return c
    h = _place_of(block.key_BH[b], m)
    w, bit = _bit_of(m)
    block.key_BH[b, h], block.slot_BH[b, h], block.rows_BC[b, n] = m, n, m
    block.seen_BW[b, w] |= bit
    for f in range(block.features_BCF.shape[2]):
        block.features_BCF[b, n, f] = np.float32(0)
    block.count_B[b] = n + 1
    return n


class Workspace:
    """Scratch space for one block at a time: no state."""

    def __init__(self, slots: int, features: int) -> None:
        """Make room for `slots` candidates a query."""
        self.slots = slots
        places = 1 << (2 * slots).bit_length()
        self._excluded = np.zeros(0, np.uint32)
        self._key = np.full((MAX_QUERIES, places), -1, np.int32)
        self._seen = np.zeros((MAX_QUERIES, SEEN_WORDS), np.uint64)
        self._slot = np.zeros((MAX_QUERIES, places), np.int32)
        self._count = np.zeros(MAX_QUERIES, np.int32)
        self._rows = np.zeros((MAX_QUERIES, slots), np.int32)
        self._scratch = np.zeros(slots, np.float32)
        self._features = np.zeros((MAX_QUERIES, slots, features), np.float32)

    def begin(
        self,
        items_BL: npt.NDArray[np.int32],
        length_B: npt.NDArray[np.int32],
        position_B: npt.NDArray[np.int8],
        session_B: npt.NDArray[np.uint64],
        status_M: npt.NDArray[np.uint8],
    ) -> Block:
        """Return an empty block for these queries."""
        size = items_BL.shape[0]
        if self._excluded.size < status_M.size:
            self._excluded = np.zeros(status_M.size, np.uint32)
        self._key[:size], self._count[:size], self._seen[:size] = -1, 0, 0
        return Block(
            items_BL, length_B, position_B, session_B, status_M, self._excluded, self._seen, self._key,
            self._slot, self._count[:size], self._rows, self._features, self._scratch,
        )  # fmt: skip


@kernel()
def mark_excluded(block, excluded, indptr_B, mark):  # type: ignore[no-untyped-def]
    """Set the queries' bits of the items that are excluded for them, or clear all bits of these items."""
    for b in range(indptr_B.shape[0] - 1):
        for e in range(indptr_B[b], indptr_B[b + 1]):
            m = excluded[e]
            if m >= 0:
                if mark:
                    block.excluded_M[m] |= np.uint32(1) << np.uint32(b)
                else:
                    block.excluded_M[m] = np.uint32(0)


@kernel()
def top_up(block, order, least):  # type: ignore[no-untyped-def]
    """Give every query with fewer than `least` candidates more, in this order of item rows."""
    for b in range(block.count_B.shape[0]):
        for m in order:
            if block.count_B[b] >= least:
                break
            slot_of(block, b, m, block.rows_BC.shape[1])


@kernel()
def copy_out(block, start, rows_N, features_NF, indptr_B):  # type: ignore[no-untyped-def]
    """Write the candidates of all queries one after the other from place `start` on, and their ends."""
    n = start
    for b in range(block.count_B.shape[0]):
        for c in range(block.count_B[b]):
            rows_N[n] = block.rows_BC[b, c]
            for f in range(features_NF.shape[1]):
                features_NF[n, f] = block.features_BCF[b, c, f]
            n += 1
        indptr_B[b] = n

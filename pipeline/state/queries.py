"""Queries: a moment of a user each. Axes: B = queries, L = places of a window, newest first."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Batch
from pipeline.kernels import kernel
from pipeline.state.histories import Windows
from pipeline.state.positions import session_positions
from pipeline.state.shards import pick
from pipeline.state.state import State, pushes

IntArray = npt.NDArray[np.int32]


class Queries(NamedTuple):
    """What each user had done just before a moment, and which items are excluded.

    `excluded[excluded_indptr[b]:excluded_indptr[b + 1]]` are the item rows that are not shown for query b,
    each once (-1: none). `position_B` is the moment's session position, `session_B` the key of the user's
    newest session (0: none), `earlier_B` counts the user's interactions so far.
    """

    user_B: IntArray
    items_BL: IntArray
    types_BL: npt.NDArray[np.uint16]
    times_BL: npt.NDArray[np.int64]  # ms
    length_B: IntArray
    now_ms_B: npt.NDArray[np.int64]
    position_B: npt.NDArray[np.int8]
    session_B: npt.NDArray[np.uint64]
    earlier_B: npt.NDArray[np.int64]
    repeats_B: npt.NDArray[np.float32]  # of the interactions so far, those with an item of the window
    excluded: IntArray
    excluded_indptr: npt.NDArray[np.int64]

    def pick(self, places: npt.NDArray[np.integer]) -> "Queries":
        """Return the queries at these places, in this order."""
        excluded, indptr = pick(self.excluded, self.excluded_indptr, np.asarray(places, np.int64))
        columns = [column[places] for column in self[:-2]]
        return Queries._make([*columns, excluded, indptr])


def training_queries(state: State, batch: Batch) -> Queries:
    """Return each event's moment just before it, the batch's own earlier events included."""
    push_B = pushes(batch)
    windows = state.histories.windows(
        batch.user_B, batch.previous_B, batch.item_B, batch.type_B, batch.moment_ms_B, push_B,
        state.items.status.data,
    )  # fmt: skip
    held, held_indptr = state.consumed.ragged(batch.user_B)
    consumed_before_B = earlier_events(batch.previous_B, batch.consumes_B)
    indptr = held_indptr + np.append(0, np.cumsum(consumed_before_B))
    excluded = np.full(indptr[-1], -1, np.int32)
    _exclude(batch.previous_B, batch.item_B, batch.consumes_B, held, held_indptr, indptr, excluded)
    earlier = state.histories.pushed.data[batch.user_B] + earlier_events(batch.previous_B, push_B)
    return _queries(state, batch.user_B, windows, batch.moment_ms_B, earlier, (excluded, indptr))


def list_queries(state: State, user_B: IntArray) -> Queries:
    """Return each user's moment right after the newest interaction: what a published list answers."""
    windows = state.histories.latest(user_B, state.items.status.data)
    earlier = state.histories.pushed.data[user_B]
    return _queries(state, user_B, windows, windows[2][:, 0].copy(), earlier, state.consumed.ragged(user_B))


def _queries(
    state: State,
    user_B: IntArray,
    windows: Windows,
    now_ms_B: npt.NDArray[np.int64],
    earlier_B: npt.NDArray[np.int64],
    excluded: tuple[IntArray, npt.NDArray[np.int64]],
) -> Queries:
    items_BL, types_BL, times_BL, length_B = windows
    return Queries(
        user_B,
        items_BL,
        types_BL,
        times_BL,
        length_B,
        now_ms_B,
        session_positions(times_BL, length_B, now_ms_B),
        state.user_sessions.keys(user_B, state.users.id_hash),
        earlier_B,
        (state.histories.repeats.data[user_B] / np.maximum(earlier_B, 1)).astype(np.float32),
        *excluded,
    )


def excluded_targets(queries: Queries, item_B: IntArray) -> npt.NDArray[np.bool_]:
    """Return which items are excluded for their query, [B]."""
    out = np.zeros(item_B.shape[0], np.bool_)
    _excluded(item_B, queries.excluded, queries.excluded_indptr, out)
    return out


def earlier_events(previous_B: IntArray, counts_B: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return how many of the user's earlier events in the batch count, [B]."""
    out = np.zeros(previous_B.shape[0], np.int64)
    _earlier(previous_B, counts_B, out)
    return out


@kernel()
def _earlier(previous_B, counts_B, out):  # type: ignore[no-untyped-def]
    for b in range(previous_B.shape[0]):
        p = previous_B[b]
        if p >= 0:
            out[b] = out[p] + counts_B[p]


@kernel()
def _exclude(previous_B, item_B, consumes_B, held, held_indptr, indptr, excluded):  # type: ignore[no-untyped-def]
    for b in range(previous_B.shape[0]):
        n = indptr[b]
        for e in range(held_indptr[b], held_indptr[b + 1]):
            excluded[n] = held[e]
            n += 1
        p = previous_B[b]
        while p >= 0:
            if consumes_B[p]:
                new = True
                for e in range(indptr[b], n):
                    new = new and excluded[e] != item_B[p]
                if new:
                    excluded[n] = item_B[p]
                    n += 1
            p = previous_B[p]


@kernel()
def _excluded(item_B, excluded, indptr, out):  # type: ignore[no-untyped-def]
    for b in range(item_B.shape[0]):
        for e in range(indptr[b], indptr[b + 1]):
            if excluded[e] == item_B[b] and item_B[b] >= 0:
                out[b] = True

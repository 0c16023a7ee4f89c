"""Queries: a moment of a user each, which models score. Axes: B = queries, L = places of a window, newest
first.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Batch
from pipeline.kernels import kernel
from pipeline.state.popularity import cells
from pipeline.state.state import State, pushes

IntArray = npt.NDArray[np.int32]


class Queries(NamedTuple):
    """What each user had done just before a moment, and what may not be shown.

    `barred[border_B[b]:border_B[b + 1]]` are the item rows that query b may not show, each once (-1: none).
    `cell_B` is the moment's popularity cell, see `pipeline.state.popularity.cells`. `earlier_B` counts the
    user's interactions so far.
    """

    user_B: IntArray
    items_BL: IntArray
    types_BL: npt.NDArray[np.uint16]
    times_BL: npt.NDArray[np.int64]  # ms
    length_B: IntArray
    now_ms_B: npt.NDArray[np.int64]
    cell_B: npt.NDArray[np.int8]
    earlier_B: npt.NDArray[np.int64]
    barred: IntArray
    border_B: npt.NDArray[np.int64]

    def pick(self, rows: npt.NDArray[np.integer]) -> "Queries":
        """Return the queries at these places, in this order."""
        size = np.diff(self.border_B)[rows]
        border = np.zeros(rows.shape[0] + 1, np.int64)
        np.cumsum(size, out=border[1:])
        where = np.repeat(self.border_B[rows] - border[:-1], size) + np.arange(border[-1])
        columns = [column[rows] for column in self[:-2]]
        return Queries._make([*columns, self.barred[where], border])

    @property
    def windows(self) -> tuple[IntArray, npt.NDArray[np.int64], IntArray]:
        """Items, times and lengths: what the state's update needs of the lesson's queries."""
        return self.items_BL, self.times_BL, self.length_B


def lesson_queries(state: State, batch: Batch) -> Queries:
    """Return each event's moment just before it, the batch's own earlier events included."""
    push_B = pushes(batch)
    items, types, times, length = state.histories.windows(
        batch.user_B,
        batch.previous_B,
        batch.item_B,
        batch.type_B,
        batch.moment_ms_B,
        push_B,
        state.items.status.data,
    )
    held, held_border = state.consumed.ragged(batch.user_B)
    border = held_border + np.concatenate(
        ([0], np.cumsum(earlier_events(batch.previous_B, batch.consumes_B)))
    )
    barred = np.full(border[-1], -1, np.int32)
    _bar(batch.previous_B, batch.item_B, batch.consumes_B, held, held_border, border, barred)
    earlier = state.histories.pushed.data[batch.user_B] + earlier_events(batch.previous_B, push_B)
    cell_B = cells(times, length, batch.moment_ms_B)
    return Queries(
        batch.user_B, items, types, times, length, batch.moment_ms_B, cell_B, earlier, barred, border
    )


def serving_queries(state: State, user_B: IntArray) -> Queries:
    """Return each user's moment right after the newest interaction: what a published list answers."""
    count = user_B.shape[0]
    none = np.full(count, -1, np.int32)
    items, types, times, length = state.histories.windows(
        user_B, none, none, np.zeros(count, np.uint16), np.zeros(count, np.int64), np.zeros(count, np.bool_),
        state.items.status.data,
    )  # fmt: skip
    barred, border = state.consumed.ragged(user_B)
    now = times[:, 0].copy()
    earlier = state.histories.pushed.data[user_B]
    return Queries(
        user_B, items, types, times, length, now, cells(times, length, now), earlier, barred, border
    )


def barred_targets(queries: Queries, item_B: IntArray) -> npt.NDArray[np.bool_]:
    """Say which items are barred for their query."""
    out = np.zeros(item_B.shape[0], np.bool_)
    _barred(item_B, queries.barred, queries.border_B, out)
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
def _bar(previous_B, item_B, consumes_B, held, held_border, border, barred):  # type: ignore[no-untyped-def]
    for b in range(previous_B.shape[0]):
        n = border[b]
        for e in range(held_border[b], held_border[b + 1]):
            barred[n] = held[e]
            n += 1
        p = previous_B[b]
        while p >= 0:
            if consumes_B[p]:
                new = True
                for e in range(border[b], n):
                    new = new and barred[e] != item_B[p]
                if new:
                    barred[n] = item_B[p]
                    n += 1
            p = previous_B[p]


@kernel()
def _barred(item_B, barred, border, out):  # type: ignore[no-untyped-def]
    for b in range(item_B.shape[0]):
        for e in range(border[b], border[b + 1]):
            if barred[e] == item_B[b] and item_B[b] >= 0:
                out[b] = True

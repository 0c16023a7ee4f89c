"""Finds each query's candidates and what the memories say of them, in one pass over the counts.

Axes: B = queries, C = candidate slots, L = places of the window, M = item rows, S = sparse features. h_k is
the k-th newest item of the history.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features import occurrences, own, sessions, successors
from pipeline.features.halves import in_halves
from pipeline.features.memories import (
    POPULAR,
    S_AGAIN,
    S_BACKOFF,
    S_CONTEXT,
    S_LATEST,
    S_LIFT,
    S_NAIVE,
    S_OFTEN,
    S_OWN,
    S_SESSION,
    S_SHARP,
    SCALE,
    SPARSE,
    Candidates,
)
from pipeline.features.popularity import priors, recent_priors
from pipeline.features.slots import BARRED, SHIFT, SPOKEN_OF
from pipeline.kernels import kernel
from pipeline.state.counts import Counts
from pipeline.state.popularity import CELL
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE

IntArray = npt.NDArray[np.int32]


class Gatherer:
    """Finds candidates and their features for a batch of queries; holds scratch space only, no state."""

    def __init__(self, least: int) -> None:
        self.least = max(least, POPULAR)
        self._tag = 0
        self._seen = np.zeros((2, 0), np.int64)  # one for each half of the queries
        self._near = np.zeros((2, 0), np.float32)  # how near each session is

    def gather(
        self,
        queries: Queries,
        repeats: bool,
        wanted: tuple[int, ...],
        known: int,
        counts: Counts,
        lists: IntArray,
        status_M: npt.NDArray[np.uint8],
    ) -> Candidates:
        """Return the candidates of each query.

        `lists` int32 [WIDTH, LISTED] holds the most popular rows by each popularity column, -1 at the end;
        `wanted` names those to draw from. `known` rows hold an item. There is room for `least` more.
        """
        width = SPOKEN_OF + len(wanted) * POPULAR + self.least
        batch = queries.user_B.shape[0]
        rows = np.full((batch, width), -1, np.int32)
        count = np.zeros(batch, np.int32)
        features = np.zeros((batch, width, SPARSE), np.float32)
        popularity, tables, latest, held = counts
        if self._seen.shape[1] < status_M.shape[0]:
            self._seen, self._tag = np.zeros((2, status_M.shape[0]), np.int64), 0
        if self._near.shape[1] != held.number.data.shape[0]:
            self._near = np.zeros((2, held.number.data.shape[0]), np.float32)
        own_B = held.own(queries.user_B)
        scratch = [sessions.scratch(held.visits.data) for _ in range(2)]
        prior_M, recent_M = priors(popularity, known), recent_priors(popularity, known)

        def work(half: int, a: int, b: int) -> None:
            _gather(
                queries.items_BL[a:b], queries.length_B[a:b], queries.cell_B[a:b], own_B[a:b],
                queries.barred, queries.border_B[a : b + 1], repeats, tables.partner.data,
                tables.forward.data, tables.backward.data, tables.count.data, tables.context.data,
                tables.contexts.data, latest.partner.data, latest.stored.data, np.float32(latest.scale),
                held.items.data, held.number.data, held.steps.data, held.visits.data, held.visited.data,
                prior_M, recent_M, lists, np.array(wanted, np.int64), status_M, self._tag,
                self._seen[half], self._near[half], *scratch[half], rows[a:b], count[a:b], features[a:b],
            )  # fmt: skip

        in_halves(work, batch)
        self._tag += batch + 1
        return Candidates(rows, count, features)

    def top_up(
        self, found: Candidates, short: npt.NDArray[np.int64], queries: Queries, order: IntArray
    ) -> None:
        """Give the queries `short` the rows in `order`, up to `least` candidates each, unless they have them
        or must not show them.
        """
        _top_up(
            short, queries.barred, queries.border_B, order, self.least, self._tag, self._seen[0], found.rows,
            found.count,
        )  # fmt: skip
        self._tag += short.size


@kernel()
def _gather(  # type: ignore[no-untyped-def]
    items_BL, length_B, cell_B, own_B, barred, border, repeats, partner, forward, backward, count_M, context,
    contexts, latest, latest_stored, latest_scale, held, number, steps, visits, visited, prior_M, recent_M,
    lists, wanted, status_M, tag, seen, near_N, found, shared, rows, count_B, X,
):  # fmt: skip
    for b in range(items_BL.shape[0]):
        tag += 1
        base = tag << SHIFT
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                seen[barred[e]] = base + BARRED
        history = items_BL[b, : length_B[b]]
        n = successors.speak(
            0, history, partner, forward, backward, count_M, prior_M, status_M, base, seen, rows[b], X[b]
        )
        n = successors.speak_of_latest(
            n, history, latest, latest_stored, latest_scale, status_M, base, seen, rows[b], X[b]
        )
        n, weights = occurrences.speak(n, history, context, contexts, status_M, base, seen, rows[b], X[b])
        if repeats:
            n = own.speak(n, history, status_M, base, seen, rows[b], X[b])
        n = sessions.speak(
            n, history, own_B[b], held, number, steps, visits, visited, near_N, found, shared, status_M, base,
            seen, rows[b], X[b],
        )  # fmt: skip
        n = successors.speak_from_afar(
            n, history, partner, forward, backward, count_M, status_M, base, seen, rows[b], X[b]
        )
        _logarithms(n, weights, prior_M, recent_M, rows[b], X[b])
        count_B[b] = _popular(n, cell_B[b], lists, wanted, status_M, base, seen, rows[b])


@kernel()
def _top_up(short, barred, border, order, least, tag, seen, rows, count_B):  # type: ignore[no-untyped-def]
    for b in short:
        tag += 1
        base = tag << SHIFT
        for e in range(border[b], border[b + 1]):
            if barred[e] >= 0:
                seen[barred[e]] = base
        n = count_B[b]
        for c in range(n):
            seen[rows[b, c]] = base
        for m in order:
            if n == least:
                break
            if seen[m] != base:
                rows[b, n] = m
                n += 1
        count_B[b] = n


@kernel()
def _logarithms(n, weights, prior_M, recent_M, rows_C, X_CS):  # type: ignore[no-untyped-def]
    """Turn the families' sums into features, all on about the same scale; most sums are 0."""
    one, scale = np.float32(1), np.float32(SCALE)
    small, shares = np.float32(300), np.float32(1000)  # bring sums of small numbers to where ln(1 + .) bends
    for c in range(n):
        m = rows_C[c]
        if X_CS[c, S_BACKOFF] > 0:
            X_CS[c, S_BACKOFF] = np.log(one + X_CS[c, S_BACKOFF] / prior_M[m]) * scale
        if X_CS[c, S_LATEST] > 0:
            X_CS[c, S_LATEST] = np.log(one + X_CS[c, S_LATEST] / recent_M[m]) * scale
        if X_CS[c, S_LIFT] > 0:
            X_CS[c, S_LIFT] = np.log(one + small * X_CS[c, S_LIFT]) * scale
        X_CS[c, S_NAIVE] *= scale
        if X_CS[c, S_CONTEXT] > 0:
            X_CS[c, S_CONTEXT] = np.log(one + shares * X_CS[c, S_CONTEXT] / weights) * scale
            X_CS[c, S_SHARP] = np.log(one + X_CS[c, S_SHARP]) * scale
        if X_CS[c, S_SESSION] > 0:
            X_CS[c, S_SESSION] = np.log(one + small * X_CS[c, S_SESSION]) * scale
        if X_CS[c, S_OWN] > 0:
            X_CS[c, S_OWN] = (np.float32(4) + np.log(X_CS[c, S_OWN])) * scale
            X_CS[c, S_OFTEN] = np.log(one + X_CS[c, S_OFTEN])
            X_CS[c, S_AGAIN] = np.log(one + X_CS[c, S_AGAIN])


@kernel()
def _popular(n, cell, lists, wanted, status_M, base, seen, rows_C):  # type: ignore[no-untyped-def]
    """Add the most popular items that may be shown, POPULAR of each wanted list."""
    for choice in range(wanted.shape[0]):
        which = wanted[choice] + cell if wanted[choice] == CELL else wanted[choice]
        taken = 0
        for e in range(lists.shape[1]):
            m = lists[which, e]
            if m < 0 or taken == POPULAR:
                break
            c = seen[m] - base
            if status_M[m] != LIVE or c == BARRED:
                continue
            taken += 1
            if c < 0:
                seen[m], rows_C[n] = base + n, m
                n += 1
    return n

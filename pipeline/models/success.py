"""How well each kind of memory alone has ranked a user's items so far: figures that steer the gate.

What is not known of a user yet is taken to be what is typical of the last events. (From zero instead, the
gate learned that memories are worth nothing to new users, since the first of them come while the memories are
empty: in a chain that all users follow, 85 to 99 of 100 new users got the next item first, and now all do.)
Axes: U = user rows, B = queries, K = kinds of memory.
"""

import numpy as np

from pipeline.features.memories import D_CELL, D_DAY, KINDS, S_BACKOFF, S_CONTEXT, S_LIFT, S_NAIVE, Candidates
from pipeline.kernels import kernel
from pipeline.models.model import FloatArray, IntArray
from pipeline.state.queries import Queries

KEEP = np.float32(0.8)  # share of the old figure that each event leaves
TYPICAL_KEEP = np.float32(0.999)
KIND_FEATURES = np.array([S_BACKOFF, S_CONTEXT, S_LIFT, S_NAIVE])


def update_success(
    queries: Queries,
    candidates: Candidates,
    target_B: IntArray,
    table: FloatArray,
    dim: int,
    success_UK: FloatArray,
    typical_K: FloatArray,
) -> None:
    """Move the figures towards the reciprocal rank [0..1] of the target by each kind, event by event.

    Kinds: four sparse memories (KIND_FEATURES), then popularity in the moment's cell and by one day. A target
    that a kind says nothing of counts 0. `success` has one more column: the share of the figures that rests
    on the user's own events.
    """
    _update(
        queries.user_B, queries.cell_B, candidates.rows, candidates.count, candidates.features, target_B,
        table, dim, success_UK, typical_K, np.zeros(KINDS, np.float32),
    )  # fmt: skip


def success_of(user_B: IntArray, success_UK: FloatArray, typical_K: FloatArray) -> FloatArray:
    """Return each user's figures [B, K], what is typical in the place of what is not known.

    >>> success_of(np.array([0]), np.float32([[0.2, 0.2]]), np.float32([0.5])).round(3).tolist()
    [[0.6000000238418579]]
    """
    held_BK = success_UK[user_B]
    mixed: FloatArray = held_BK[:, :-1] + (1 - held_BK[:, -1:]) * typical_K
    return mixed


@kernel()
def _update(user_B, cell_B, rows, count, X, target_B, table, dim, success, typical, value):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        t = target_B[b]
        if t < 0:
            continue
        value[:] = 0
        at = 0
        while at < count[b] and rows[b, at] != t:
            at += 1
        if at < count[b]:
            for i in range(KINDS):
                above = 0
                if i < 4:
                    f = KIND_FEATURES[i]
                    own = X[b, at, f]
                    if own <= 0:
                        continue
                    for c in range(count[b]):
                        above += X[b, c, f] > own
                else:
                    column = dim + (D_CELL + cell_B[b] if i == 4 else D_DAY)
                    own = table[t, column]
                    for c in range(count[b]):
                        above += table[rows[b, c], column] > own
                value[i] = 1.0 / (1.0 + above)
        u = user_B[b]
        for i in range(KINDS):
            success[u, i] = KEEP * success[u, i] + (1 - KEEP) * value[i]
            typical[i] = TYPICAL_KEEP * typical[i] + (1 - TYPICAL_KEEP) * value[i]
        success[u, KINDS] = KEEP * success[u, KINDS] + (1 - KEEP)

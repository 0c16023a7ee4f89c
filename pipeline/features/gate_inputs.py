"""What the gate knows of a user and a moment, and how well each kind of count feature has ranked so far.

What is not known of a user yet is taken to be what is typical of the last events. (From zero instead, the
gate learns that count features are worth nothing to new users, since the first of them come while the counts
are empty.) Axes: B = queries, U = user rows, K = kinds of features, G = gate inputs.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.features.transitions import Transitions
from pipeline.kernels import kernel
from pipeline.state.queries import Queries
from pipeline.state.store import Column, Store

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
KINDS = ("back_off", "matched", "lift", "each", "position", "day")  # features that are followed
KEPT = np.float32(0.8)  # share of the old figure that each event leaves
TYPICAL_KEPT = np.float32(0.999)
GATE = 8 + len(KINDS)


class Success(Store):
    """How well each kind of feature alone has ranked a user's items.

    Columns: `of_user` float32 [U, K + 1] (running means of the reciprocal rank; last: the share of them that
    rests on the user's own events), `typical` float32 [K].
    """

    def __init__(self, users: int, places: tuple[int, ...], always: tuple[bool, ...]) -> None:
        """Follow the features at these places; `always`: defined for every item, else 0 says nothing."""
        self.of_user = Column(np.zeros((users, len(places) + 1), np.float32), "user")
        self.typical = Column(np.zeros(len(places), np.float32), "none")
        self._places, self._always = np.array(places), np.array(always)

    def of(self, user_B: IntArray) -> FloatArray:
        """Return each user's figures [B, K], what is typical in the place of what is not known."""
        held_BK = self.of_user.data[user_B]
        mixed: FloatArray = held_BK[:, :-1] + (1 - held_BK[:, -1:]) * self.typical.data
        return mixed

    def update(self, user_B: IntArray, candidates: Candidates, place_B: npt.NDArray[np.int64]) -> None:
        """Move the figures towards the reciprocal rank of the target by each kind, event by event.

        `place_B`: its place among all candidates; -1: none of them, which counts 0; -2: no target.
        """
        _update(
            user_B, candidates.indptr, candidates.features, place_B, self._places, self._always,
            self.of_user.data, self.typical.data,
        )  # fmt: skip


def gate_inputs(queries: Queries, transitions: Transitions, success_BK: FloatArray) -> FloatArray:
    """Return the gate's inputs [B, GATE] of each moment, every entry about -1 .. 2.

    Log history length, log count of the newest item, log time since it, log support of its transitions, steps
    in this session, new session, no history, rate of repeats, and the figures of `Success`.
    """
    out = np.zeros((queries.user_B.shape[0], GATE), np.float32)
    newest = (queries.items_BL[:, 0], queries.times_BL[:, 0])
    counts = (transitions.count.data, transitions.followed.data)
    _gate_inputs(
        queries.length_B, newest, queries.now_ms_B, queries.position_B, queries.repeats_B, counts, out
    )
    out[:, 8:] = success_BK
    return out


@kernel()
def _gate_inputs(length_B, newest, now_ms_B, position_B, repeats_B, counts, out):  # type: ignore[no-untyped-def]
    item_B, time_ms_B = newest
    count_M, followed_M = counts
    for b in range(length_B.shape[0]):
        x = out[b]
        x[0] = np.log1p(np.float32(length_B[b])) / 2 - 0.5
        x[2], x[6] = 1.6, 1
        if length_B[b] > 0:
            gap_s = np.float32(max(now_ms_B[b] - time_ms_B[b], 0) / 1000)
            x[1] = np.log1p(count_M[item_B[b]]) / 4 - 0.5
            x[2], x[6] = np.log1p(gap_s) / 8, 0
            x[3] = np.log1p(followed_M[item_B[b]]) / 4 - 0.5
        x[4] = (position_B[b] - 1) / 4 if position_B[b] >= 2 else 0
        x[5] = position_B[b] == 1
        x[7] = repeats_B[b]


@kernel()
def _update(user_B, indptr, features, place_B, places, always, of_user, typical):  # type: ignore[no-untyped-def]
    kinds = places.shape[0]
    for b in range(user_B.shape[0]):
        if place_B[b] < -1:
            continue
        u = user_B[b]
        for i in range(kinds):
            value = np.float32(0)
            if place_B[b] >= 0:
                own = features[place_B[b], places[i]]
                if always[i] or own > 0:
                    above = 0
                    for n in range(indptr[b], indptr[b + 1]):
                        above += features[n, places[i]] > own
                    value = np.float32(1) / np.float32(1 + above)
            of_user[u, i] = KEPT * of_user[u, i] + (np.float32(1) - KEPT) * value
            typical[i] = TYPICAL_KEPT * typical[i] + (np.float32(1) - TYPICAL_KEPT) * value
        of_user[u, kinds] = KEPT * of_user[u, kinds] + (np.float32(1) - KEPT)

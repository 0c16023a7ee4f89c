"""Session-kNN: items of the newest sessions that share items with the user's, nearest sessions first.

Vector-multiplication session-kNN (Ludewig, Mauro, Latifi and Jannach, "Empirical analysis of session-based
recommendation algorithms", 2021) on the incremental index of `pipeline.features.sessions`:

    near(s) = sum over the newest distinct items h_k of the query that session s holds of FADE^k
    score(m) = sum over the sessions s that hold m of near(s) + weight * share(m)

`after`: of a session only that counts which came after the newest item it shares with the query, the j-th
item after it with STEP^j. The user's own session is no neighbour. Axes as there; E = entries.
"""

import numpy as np

from pipeline.features.sessions import SessionIndex, is_repeat, session_of, slot_of_key
from pipeline.kernels import kernel
from pipeline.models.baselines.counts import Entries
from pipeline.models.baselines.neighbours import Neighbours, NeighboursConfig
from pipeline.models.model import ModelContext, Targets
from pipeline.state.queries import Queries
from pipeline.state.user_sessions import UserSessions

REACH = 8  # newest items that look for sessions
VISITS = 64  # newest sessions kept of an item
MINUTE_MS = 60_000
# measured on recorded streams: .4 and .8 are each better on one stream and worse on others
FADE = 0.6
STEP = 0.7


class SessionKnnConfig(NeighboursConfig, frozen=True):
    """Settings of `session_knn`. A gap of 0: all of a user's events are one session."""

    gap_minutes: int = 30
    after: bool = False


class SessionKnnModel(Neighbours):
    """Its columns are those of a `SessionIndex` and, as the gap is its own, of `UserSessions`."""

    def __init__(self, context: ModelContext, name: str, config: SessionKnnConfig) -> None:
        super().__init__(context, name, config)
        self.index = SessionIndex(context.items.capacity, VISITS)
        self.user_sessions = UserSessions(context.users.capacity, config.gap_minutes * MINUTE_MS or 2**62)
        self._users, self._after = context.users, config.after
        self._near = np.zeros(self.index.number.data.shape[0], np.float32)
        self._found = np.empty(REACH * VISITS, np.int64)
        self._shared = np.empty(REACH * VISITS, np.int32)
        self._room = 1 << 14  # for entries

    def entries(self, queries: Queries) -> Entries:
        own_B = self.user_sessions.keys(queries.user_B, self._users.id_hash)
        while True:
            entries = Entries.empty(queries, self._room)
            needed = _entries(
                queries.items_BL, queries.length_B, own_B, self.index.index, self._after, self._near,
                self._found, self._shared, entries,
            )  # fmt: skip
            if needed <= self._room:
                return entries
            self._room = needed

    def count(self, queries: Queries, targets: Targets) -> None:
        counted_B = (targets.counted_B >= 0) & (targets.weight_B > 0)
        key_B = self.user_sessions.update(queries.user_B, counted_B, queries.now_ms_B, self._users.id_hash)
        self.index.update(key_B, targets.counted_B, targets.weight_B)


@kernel()
def _neighbours(history, length, own, index, near, found, shared):  # type: ignore[no-untyped-def]
    """Find the sessions that share items with a history, and how near each is; return how many.

    `shared` gets the place of the newest item that a session shares.
    """
    count, w = 0, np.float32(1)
    for k in range(min(length, REACH)):
        h = history[k]
        for v in range(0 if is_repeat(history, k) else min(index.visited_M[h], index.visits_MR.shape[1])):
            s = session_of(index, h, v, own)
            if s < 0:
                continue
            if near[s] == 0:
                found[count], shared[count] = s, k
                count += 1
            near[s] += w
        w *= np.float32(FADE)
    return count


@kernel()
def _entries(items_BL, length_B, own_B, index, after, near, found, shared, entries):  # type: ignore[no-untyped-def]
    """Write the entries, as far as there is room; return how many there are."""
    places = index.items_NP.shape[1]
    n = 0
    for b in range(items_BL.shape[0]):
        own = slot_of_key(index, own_B[b])
        count = _neighbours(items_BL[b], length_B[b], own, index, near, found, shared)
        for i in range(count):
            s, k = found[i], shared[i]
            steps = index.steps_N[s]
            value, start = near[s], max(steps - places, 0)
            near[s] = 0
            if after:
                for step in range(start, steps):
                    if index.items_NP[s, step % places] == items_BL[b, k]:
                        start = step + 1
            for step in range(start, steps):
                m = index.items_NP[s, step % places]
                if m < 0 or (not after and m == items_BL[b, k]):
                    continue
                if n < entries.row_E.shape[0]:
                    entries.row_E[n], entries.place_E[n], entries.value_E[n] = m, k, value
                n += 1
                if after:
                    value *= np.float32(STEP)
        entries.indptr[b + 1] = n
    return n

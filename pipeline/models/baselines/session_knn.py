"""Session-kNN: items of the newest sessions that share items with the user's, nearest sessions first.

Vector-multiplication session-kNN (Ludewig, Mauro, Latifi and Jannach, "Empirical analysis of session-based
recommendation algorithms", 2021) on the incremental index of `pipeline.state.sessions`:

    near(s) = sum over the newest distinct items h_k of the query that session s holds of FADE^k
    score(m) = sum over the sessions s that hold m of near(s) + weight * share(m)

`after`: of a session only that counts which came after the newest item it shares with the query, the j-th
item after it with STEP^j. The user's own session is no neighbour. Axes as there; B = queries, E =
entries.
"""

import numpy as np

from pipeline.kernels import kernel
from pipeline.models.baselines.neighbours import FILL, BackOff, Neighbours
from pipeline.models.model import Targets
from pipeline.models.spoken import Spoken
from pipeline.state.popularity import Popularity
from pipeline.state.queries import Queries
from pipeline.state.sessions import Sessions, is_repeat, session_of
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

REACH = 8  # newest items that look for sessions
# measured on recorded streams: .4 and .8 are each better on one stream and worse on others
FADE = 0.6
STEP = 0.7


class SessionKnnModel(Neighbours):
    """Its columns are those of `Sessions`."""

    def __init__(
        self,
        sessions: Sessions,
        popularity: Popularity,
        items: IdTable,
        after: bool,
        back_off: BackOff = FILL,
        name: str = "session_knn",
    ) -> None:
        super().__init__(popularity, items, back_off, name)
        self.sessions, self.after = sessions, after
        self._near = np.zeros(sessions.number.data.shape[0], np.float32)
        self._most = 1 << 14  # entries that there is room for

    def columns(self) -> dict[str, Column]:
        """Return the columns of the index."""
        return self.sessions.columns()

    def spoken(self, queries: Queries) -> Spoken:
        """Return what neighbouring sessions hold; pure. It speaks for the newest item that was shared."""
        s = self.sessions
        border_B = np.zeros(queries.items_BL.shape[0] + 1, np.int64)
        scratch = np.empty((2, REACH * s.visits.data.shape[1]), np.int64)
        while True:
            room = self._most
            entries = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
            self._most = max(room, _say(
                queries.items_BL, queries.length_B, s.own(queries.user_B), s.items.data, s.number.data,
                s.steps.data, s.visits.data, s.visited.data, self.after, self._near, *scratch, *entries,
                border_B,
            ))  # fmt: skip
            if self._most == room:
                return Spoken(*entries, border_B)

    def count(self, queries: Queries, targets: Targets) -> None:
        """Move the sessions of the batch's users on."""
        self.sessions.add(queries.user_B, targets.counted_B, queries.now_ms_B)


@kernel()
def _neighbours(b, items_BL, length_B, own, number, visits, visited, near, found, shared):  # type: ignore[no-untyped-def]
    """Find the sessions that share items with query b, and how near each is; return how many there are.

    `shared` gets the place of the newest item that a session shares.
    """
    count, w = 0, np.float32(1)
    for k in range(min(length_B[b], REACH)):
        h = items_BL[b, k]
        for v in range(0 if is_repeat(items_BL[b], k) else min(visited[h], visits.shape[1])):
            s = session_of(h, v, number, visits, visited, own)
            if s < 0:
                continue
            if near[s] == 0:
                found[count], shared[count] = s, k
                count += 1
            near[s] += w
        w *= np.float32(FADE)
    return count


@kernel()
def _say(  # type: ignore[no-untyped-def]
    items_BL, length_B, own_B, items, number, steps, visits, visited, after, near, found, shared, row_E,
    place_E, value_E, border_B,
):  # fmt: skip
    """Write the entries, as far as there is room; return how many there are."""
    places = items.shape[1]
    n = 0
    for b in range(items_BL.shape[0]):
        count = _neighbours(b, items_BL, length_B, own_B[b], number, visits, visited, near, found, shared)
        for i in range(count):
            s, k = found[i], shared[i]
            value, start = near[s], max(steps[s] - places, 0)
            near[s] = 0
            if after:
                for step in range(start, steps[s]):
                    if items[s, step % places] == items_BL[b, k]:
                        start = step + 1
            for step in range(start, steps[s]):
                m = items[s, step % places]
                if m < 0 or (not after and m == items_BL[b, k]):
                    continue
                if n < row_E.shape[0]:
                    row_E[n], place_E[n], value_E[n] = m, k, value
                n += 1
                if after:
                    value *= np.float32(STEP)
        border_B[b + 1] = n
    return n

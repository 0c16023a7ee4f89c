"""The newest sessions and their items: the index of session-kNN, as a memory and as a baseline.

After Kersbergen, Sprangers and Schelter, "Serenade: low-latency session-based recommendation in e-commerce
at scale" (SIGMOD 2022), whose index of each item's newest sessions is built once a day. Axes: B = events, M =
item rows, N = session slots, P = places of a session, R = visits kept an item, U = user rows.
"""

from typing import Any

import numpy as np
from numba import njit

from pipeline.kernels import kernel
from pipeline.state.store import Column

# measured on recorded streams: from 5,000 to 50,000 sessions and from 32 to 256 visits, no figure moves by
# more than a fiftieth of itself
SESSIONS = 20_000  # the newest ones are kept
PLACES = 20  # newest items kept of each
VISITS = 64  # newest sessions kept of each item


class Sessions:
    """A bounded index. Sessions are numbered from 1 as they begin; slot = number % SESSIONS.

    Columns: `items` int32 [N, P] (slot = step % P, -1: empty), `number`, `began_ms` int64 [N], `steps` int32
    [N], `last` int64 [1] (the newest number), `visits` int64 [M, R] (numbers, 0: empty), `visited` int64 [M],
    and of each user the session at hand: `current` (its number), `current_ms` (its beginning), `newest_ms`
    int64 [U]. A user who comes from another worker names a session of that worker's, so number and beginning
    must both agree.
    """

    def __init__(
        self, items: int, users: int, gap_ms: int, visits: int = VISITS, sessions: int = SESSIONS
    ) -> None:
        """Start empty. A pause of `gap_ms` between two events of a user begins a new session."""
        self.gap_ms = gap_ms
        self.items = Column(np.full((sessions, PLACES), -1, np.int32), "none", -1, of_items=True)
        self.number = Column(np.zeros(sessions, np.int64), "none")
        self.began_ms = Column(np.zeros(sessions, np.int64), "none")
        self.steps = Column(np.zeros(sessions, np.int32), "none")
        self.last = Column(np.zeros(1, np.int64), "none")
        self.visits = Column(np.zeros((items, visits), np.int64), "item")
        self.visited = Column(np.zeros(items, np.int64), "item")
        self.current = Column(np.zeros(users, np.int64), "user")
        self.current_ms = Column(np.zeros(users, np.int64), "user")
        self.newest_ms = Column(np.zeros(users, np.int64), "user")

    def columns(self) -> dict[str, Column]:
        """Return the columns by name."""
        return {
            "items": self.items, "number": self.number, "began_ms": self.began_ms, "steps": self.steps,
            "last": self.last, "visits": self.visits, "visited": self.visited, "current": self.current,
            "current_ms": self.current_ms, "newest_ms": self.newest_ms,
        }  # fmt: skip

    def own(self, user_B: Any) -> Any:
        """Return the number of each user's session at hand [B]; 0: none, or one of another worker's."""
        number_B = self.current.data[user_B]
        slot_B = number_B % self.number.data.shape[0]
        held_B = self.number.data[slot_B] == number_B
        return np.where(held_B & (self.began_ms.data[slot_B] == self.current_ms.data[user_B]), number_B, 0)

    def add(self, user_B: Any, item_B: Any, time_ms_B: Any) -> None:
        """Let users go on with their sessions, or begin new ones; rows below 0 are left out."""
        _add(
            user_B, item_B, time_ms_B, self.gap_ms, self.items.data, self.number.data, self.began_ms.data,
            self.steps.data, self.last.data, self.visits.data, self.visited.data, self.current.data,
            self.current_ms.data, self.newest_ms.data,
        )  # fmt: skip


@njit(inline="always")
def is_repeat(history, k):  # type: ignore[no-untyped-def]
    """Say whether a newer place holds the item of place k."""
    again = False
    for j in range(k):
        again = again or history[j] == history[k]
    return again


@njit(inline="always")
def session_of(h, v, number, visits, visited, own):  # type: ignore[no-untyped-def]
    """Return the slot of the v-th newest session that holds item h; -1 where it is forgotten or one's own."""
    n = visits[h, (visited[h] - 1 - v) % visits.shape[1]]
    s = n % number.shape[0]
    return s if number[s] == n and n != own else np.int64(-1)


@kernel()
def _add(  # type: ignore[no-untyped-def]
    user_B, item_B, time_B, gap, items, number, began, steps, last, visits, visited, current, current_ms,
    newest,
):  # fmt: skip
    slots, places = items.shape
    for b in range(user_B.shape[0]):
        u, m = user_B[b], item_B[b]
        if m < 0:
            continue
        n = current[u]
        s = n % slots
        goes_on = n > 0 and number[s] == n and began[s] == current_ms[u] and time_B[b] - newest[u] < gap
        if not goes_on:
            last[0] += 1
            n = last[0]
            s = n % slots
            items[s, :] = -1
            number[s], began[s], steps[s] = n, time_B[b], 0
            current[u], current_ms[u], newest[u] = n, time_B[b], time_B[b]
        newest[u] = max(newest[u], time_B[b])
        new = True
        for p in range(places):
            new = new and items[s, p] != m
        if steps[s] >= places:  # it may have been here before what is kept of the session
            for v in range(visits.shape[1]):
                new = new and visits[m, v] != n
        items[s, steps[s] % places] = m
        steps[s] += 1
        if new:
            visits[m, visited[m] % visits.shape[1]] = n
            visited[m] += 1

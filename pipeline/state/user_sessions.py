"""The session that each user is in, as a key that means the same in every process.

Axes: B = events or users of a batch, U = user rows.
"""

import numpy as np
import numpy.typing as npt

from pipeline.kernels import inlined, kernel
from pipeline.state.store import Column, Store

IntArray = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]


class UserSessions(Store):
    """Columns: `start_ms` int64 [U], the time of the first event of the user's newest session (0: none), and
    `newest_ms` int64 [U], that of its newest event.

    A pause of `gap_ms` or more starts a new session. A session's key is a hash of the user's id and
    `start_ms`, so that an index of sessions needs no user rows.
    """

    def __init__(self, capacity: int, gap_ms: int) -> None:
        self.gap_ms = gap_ms
        self.start_ms = Column(np.zeros(capacity, np.int64), "user")
        self.newest_ms = Column(np.zeros(capacity, np.int64), "user")

    def keys(self, user_B: IntArray, hash_U: Keys) -> Keys:
        """Return the key of each user's newest session [B]; 0 for a user without one."""
        out = np.zeros(user_B.shape[0], np.uint64)
        _keys(user_B, hash_U, self.start_ms.data, out)
        return out

    def update(
        self,
        user_B: IntArray,
        counted_B: npt.NDArray[np.bool_],
        time_ms_B: npt.NDArray[np.int64],
        hash_U: Keys,
    ) -> Keys:
        """Continue or start the sessions of the counted events, in order; return their keys [B], else 0."""
        out = np.zeros(user_B.shape[0], np.uint64)
        _update(
            user_B, counted_B, time_ms_B, self.gap_ms, hash_U, self.start_ms.data, self.newest_ms.data, out
        )
        return out


@inlined
def _key(user_hash, start_ms):  # type: ignore[no-untyped-def]
    """Return a session's key: a finalizer of splitmix64 over both; never 0."""
    z = user_hash ^ (np.uint64(start_ms) * np.uint64(0x9E3779B97F4A7C15))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


@kernel()
def _keys(user_B, hash_U, start_U, out):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        if start_U[u] != 0:
            out[b] = _key(hash_U[u], start_U[u])


@kernel()
def _update(user_B, counted_B, time_B, gap, hash_U, start_U, newest_U, out):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        u = user_B[b]
        if not counted_B[b]:
            continue
        if start_U[u] == 0 or time_B[b] - newest_U[u] >= gap:
            start_U[u], newest_U[u] = time_B[b], time_B[b]
        newest_U[u] = max(newest_U[u], time_B[b])
        out[b] = _key(hash_U[u], start_U[u])

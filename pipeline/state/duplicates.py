"""Event ids seen before: a ring of stable 64-bit hashes a partition."""

import hashlib
from collections import deque

import numpy as np
import numpy.typing as npt

WINDOW = 100_000  # events with an id that a partition remembers


class Duplicates:
    """Remembers the last WINDOW event ids of a partition; two share a hash with odds of WINDOW / 2**64."""

    def __init__(self, hashes: npt.NDArray[np.uint64] | None = None) -> None:
        self._ring: deque[int] = deque([] if hashes is None else hashes.tolist(), maxlen=WINDOW)
        self._seen = set(self._ring)

    def seen(self, event_id: str) -> bool:
        """Return whether the id came before, and remember it."""
        number = int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little")
        if number in self._seen:
            return True
        if len(self._ring) == WINDOW:
            self._seen.discard(self._ring[0])
        self._ring.append(number)
        self._seen.add(number)
        return False

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hashes, oldest first."""
        return np.array(self._ring, np.uint64)

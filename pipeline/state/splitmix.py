"""Random numbers from a counter, for kernels: no generator state has to be saved (Steele et al., OOPSLA
2014).
"""

import numpy as np

from pipeline.kernels import inlined, kernel


@inlined
def _mixed(z):  # type: ignore[no-untyped-def]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel()
def next_uniform(state):  # type: ignore[no-untyped-def]
    """Return the next uint64 state and a number in [0, 1)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    return state, (_mixed(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


def seed_of(*numbers: int) -> int:
    """Return a state to start from, of its own for each sequence of numbers from 0 to 2^63 - 1.

    >>> seed_of(1, 2) == seed_of(2, 1)
    False
    """
    state = np.uint64(0)
    for number in numbers:
        state = np.uint64(_seeded(state, np.uint64(number)))
    return int(state)


@kernel()
def _seeded(state, number):  # type: ignore[no-untyped-def]
    return _mixed(state + np.uint64(number) + np.uint64(0x9E3779B97F4A7C15))

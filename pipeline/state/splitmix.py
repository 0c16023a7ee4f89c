"""Random numbers from a counter, for kernels: no generator state has to be saved (Steele et al., OOPSLA
2014).
"""

import numpy as np

from pipeline.kernels import kernel


@kernel()
def next_uniform(state):  # type: ignore[no-untyped-def]
    """Return the next uint64 state and a number in [0, 1)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)

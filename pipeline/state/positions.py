"""Session positions: at which step of a session a moment lies. Axes: B = queries, L = places of a window."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel

DAY_MS = 86_400_000
GAP_MS = 30 * 60 * 1000  # a longer pause starts a new session
POSITIONS = 6


def session_positions(times_BL: Any, length_B: Any, now_ms_B: Any) -> npt.NDArray[np.int8]:
    """Return each moment's position [B]: 0 without history; 1 after a pause of 30 minutes or more; else 2 to
    5 by the steps made in this session before the newest one: 0, 1, 2-4, 5 or more.
    """
    out = np.zeros(length_B.shape[0], np.int8)
    _positions(times_BL, length_B, now_ms_B, out)
    return out


@kernel()
def _positions(times_BL, length_B, now_B, out):  # type: ignore[no-untyped-def]
    for b in range(length_B.shape[0]):
        n = length_B[b]
        if n == 0:
            out[b] = 0
        elif now_B[b] - times_BL[b, 0] >= GAP_MS:
            out[b] = 1
        else:
            steps = 0
            while steps + 1 < n and steps < 5 and times_BL[b, steps] - times_BL[b, steps + 1] < GAP_MS:
                steps += 1
            out[b] = 2 if steps == 0 else (3 if steps == 1 else (4 if steps < 5 else 5))

"""Reasons: the history items that add most to a score, as the model computes it. Axes: K places, L window."""

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.models.model import FloatArray

REASONS = 3  # at most so many items an entry
LEAST_SHARE = 0.1  # of all that history adds: less is no reason


def reasons(
    parts_BKP: FloatArray, items_BL: npt.NDArray[np.int32], rows_BK: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Return item rows [B, K, REASONS], the strongest first, -1 where there is no further reason.

    `parts` [B, K, L + 1] are a model's contributions. Places of the same item count together. An item is no
    reason for itself.
    """
    out = np.full((*rows_BK.shape, REASONS), -1, np.int32)
    _reasons(
        parts_BKP, items_BL, rows_BK, np.float32(LEAST_SHARE), np.zeros(parts_BKP.shape[2], np.float32), out
    )
    return out


@kernel()
def _reasons(parts, items_BL, rows_BK, least_share, merged, out):  # type: ignore[no-untyped-def]
    length = min(items_BL.shape[1], parts.shape[2] - 1)
    for b in range(rows_BK.shape[0]):
        places = 0
        while places < length and items_BL[b, places] >= 0:
            places += 1
        for k in range(rows_BK.shape[1]):
            if rows_BK[b, k] < 0:
                continue
            total = np.float32(0)
            for p in range(places):
                first = 0
                while items_BL[b, first] != items_BL[b, p]:
                    first += 1
                if first == p:
                    merged[p] = 0
                merged[first] += parts[b, k, p]
                if first != p:
                    merged[p] = 0
            for p in range(places):
                if items_BL[b, p] == rows_BK[b, k]:
                    merged[p] = 0
                if merged[p] > 0:
                    total += merged[p]
            for r in range(out.shape[2]):
                best = -1
                for p in range(places):
                    if merged[p] > least_share * total and (best < 0 or merged[p] > merged[best]):
                        best = p
                if best < 0:
                    break
                out[b, k, r] = items_BL[b, best]
                merged[best] = 0

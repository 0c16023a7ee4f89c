"""What everybody takes now: popularity at several half-lives, as dense columns beside the item embeddings.

D_LONG     ln(count + SMALL), half-life 1,000 events
D_RECENT   ln(count + SMALL), half-life 300 events
D_DAY      ln(count + SMALL), one day of event time
D_CELL     ln(count + SMALL), half-life 300 events, of moments of the same kind alone (see `cells`)
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.halves import in_halves
from pipeline.features.memories import (
    BACK_OFF,
    COLUMNS,
    D_CELL,
    D_DAY,
    D_LONG,
    D_RECENT,
    LATEST_BACK_OFF,
    SCALE,
    SMALL,
)
from pipeline.kernels import kernel
from pipeline.state.popularity import CELL, CELLS, DAY, P300, P1000, WIDTH, Popularity

FloatArray = npt.NDArray[np.float32]


def smoothed_total(popularity: Popularity, known: int, column: int = P1000) -> float:
    """Return the sum that popularity shares are taken of: counts and pseudo-counts."""
    return float(popularity.total.data[column] / popularity.gain.data[column]) + SMALL * max(known, 1)


def priors(popularity: Popularity, known: int) -> FloatArray:
    """Return BACK_OFF p_m of every row [M]: the pseudo-counts that successors are backed off to."""
    return _pseudo_counts(popularity, known, P1000, BACK_OFF)


def recent_priors(popularity: Popularity, known: int) -> FloatArray:
    """Return LATEST_BACK_OFF r_m of every row [M]: the same for the latest successors, half-life 300."""
    return _pseudo_counts(popularity, known, P300, LATEST_BACK_OFF)


def _pseudo_counts(popularity: Popularity, known: int, column: int, weight: float) -> FloatArray:
    scale = np.float32(weight / smoothed_total(popularity, known, column))
    prior: FloatArray = (popularity.values(column) + np.float32(SMALL)) * scale
    return prior


def dense_columns(popularity: Popularity, out: FloatArray) -> None:
    """Write the dense features of the first M item rows to `out` [M, COLUMNS]."""
    stored, gain = popularity.stored.data, popularity.gain.data
    in_halves(lambda half, a, b: _dense(stored[a:b], gain, out[a:b]), out.shape[0], least=1024)


def columns_of_nothing() -> FloatArray:
    """Return the dense features [1, COLUMNS] of an item without events, the same to the bit."""
    out = np.zeros((1, COLUMNS), np.float32)
    _dense(np.zeros((1, WIDTH), np.float32), np.ones(WIDTH), out)
    return out


@kernel()
def _dense(stored, gain, out):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    g1000, g300 = one / np.float32(gain[P1000]), one / np.float32(gain[P300])
    day = one / np.float32(gain[DAY])
    scale, small = np.float32(SCALE), np.float32(SMALL)
    for m in range(out.shape[0]):
        out[m, D_LONG] = np.log(stored[m, P1000] * g1000 + small) * scale
        out[m, D_RECENT] = np.log(stored[m, P300] * g300 + small) * scale
        out[m, D_DAY] = np.log(stored[m, DAY] * day + small) * scale
        for c in range(CELLS):
            out[m, D_CELL + c] = np.log(stored[m, CELL + c] / np.float32(gain[CELL + c]) + small) * scale

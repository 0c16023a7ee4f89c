"""The streaming memories' features by number, what their families share, and the context that gates them all.
The families themselves, with their formulae, are in `families`.

Axes: B = queries, C = candidate slots of a query, M = item rows, D = dense features, S = sparse features,
G = gate context, U = user rows.

Dense features are defined for every item and lie as columns beside the item embeddings (one matrix product
scores them all); sparse features are zero but for a query's candidates.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.state.popularity import CELL, CELLS, DAY, P1000
from pipeline.state.successors import Successors

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# dense: popularity
D_LONG, D_RECENT, D_DAY, D_CELL = 0, 1, 2, 3
DENSE = 4  # features; the cell's feature takes CELLS columns, of which a query uses its own
COLUMNS = D_CELL + CELLS
# sparse, in the order in which versions added them: a saved gate goes on, with new features at 0
# (S_LIFT and S_SESSION go on from kin of theirs that they replaced)
S_BACKOFF, S_CONTEXT, S_LIFT, S_NAIVE, S_OWN, S_OFTEN = 0, 1, 2, 3, 4, 5
S_SHARP, S_SESSION, S_AGAIN, S_LATEST = 6, 7, 8, 9
SPARSE = 10
FEATURES = DENSE + SPARSE
# memories whose success with each user is followed: four sparse ones, popularity by cell and by day
KINDS = 6
GATE = 8 + KINDS

SMALL = 0.02  # pseudo-count of popularity
BACK_OFF = 20.0  # pseudo-count of successors
LATEST_BACK_OFF = 10.0  # and of the latest ones
SCALE = 1.0 / 3.0  # brings the logarithms to about -2 .. 2
PARENTS = 5  # newest items whose successors say all that they know
REACHED = 20  # and those whose successors say what lift they give
POPULAR = 40  # unexcluded items taken from each popularity list
LISTED = 256  # length of a popularity list
LISTS_SHOWN = (P1000, DAY, CELL)  # lists that candidates are drawn from; CELL: that of the moment's own cell


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items that a query's memories speak of.

    `rows` int32 [B, C] (-1 past `count` [B]), `features` float32 [B, C, S].
    """

    rows: IntArray
    count: IntArray
    features: FloatArray


def contexts(
    user_B: IntArray,
    items_BL: IntArray,
    times_BL: npt.NDArray[np.int64],
    length_B: IntArray,
    now_ms_B: npt.NDArray[np.int64],
    cell_B: npt.NDArray[np.int8],
    pushed_U: npt.NDArray[np.int64],
    repeats_U: FloatArray,
    success_BK: FloatArray,
    successors: Successors,
) -> FloatArray:
    """Return the gate's context [B, GATE] of each moment, every entry about -1 .. 2.

    Log history length, log count of the newest item, log time since it, log support of its successor row,
    steps in this session, new session, no history, rate of repeats, and how well each kind of memory has
    served the user so far.
    """
    out = np.zeros((user_B.shape[0], GATE), np.float32)
    has = length_B > 0
    newest = np.where(has, items_BL[:, 0], 0)
    gap_s = np.where(has, np.maximum(now_ms_B - times_BL[:, 0], 0) / 1000.0, 0)
    pushed = pushed_U[user_B]
    out[:, 0] = np.log1p(length_B) / 2 - 0.5
    out[:, 1] = np.where(has, np.log1p(successors.count.data[newest]) / 4 - 0.5, 0)
    out[:, 2] = np.where(has, np.log1p(gap_s) / 8, 1.6)
    out[:, 3] = np.where(has, np.log1p(successors.followed.data[newest]) / 4 - 0.5, 0)
    out[:, 4] = np.where(cell_B >= 2, (cell_B - 1) / 4.0, 0)
    out[:, 5] = cell_B == 1
    out[:, 6] = ~has
    out[:, 7] = repeats_U[user_B] / np.maximum(pushed, 1)
    out[:, 8:] = success_BK
    return out

"""Which item came how often after which, with a half-life: bounded rows of partners.

Used by recent_transitions.py and by baselines. Which slot of a full row is replaced is decided as in
transitions.py. Decay touches no table: new counts weigh more and more, and value = stored / gain. Axes: M =
item rows, S = slots, B = events.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.lessons import Lessons
from pipeline.kernels import kernel
from pipeline.state.splitmix import next_uniform
from pipeline.state.store import Column, Store
from pipeline.state.tables import is_held

SLOTS = 48
_MAX_GAIN = 1e20


class PairTable(Store):
    """Bounded rows of partners.

    Columns: `partner` int32 [M, SLOTS] (-1: empty), `stored` float32 [M, SLOTS], `gain` float64 [1].
    `reach`: how many items back a pair is counted, each step back with `fade` times the weight. `both`: the
    later item's row counts the earlier one as well. `half_life`: in events; infinite: counts never fade.
    """

    def __init__(self, capacity: int, reach: int, fade: float, half_life: float, both: bool) -> None:
        self.reach, self.fade, self.half_life, self.both = reach, fade, half_life, both
        self.partner = Column(np.full((capacity, SLOTS), -1, np.int32), "item", -1, of_items=True)
        self.stored = Column(np.zeros((capacity, SLOTS), np.float32), "item")
        self.gain = Column(np.ones(1), "none")

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        """Count events in order, each after the items of its window; weights of 0 and rows below 0 are left
        out.
        """
        growth = 2.0 ** (1.0 / self.half_life)
        how = (self.reach, np.float32(self.fade), self.both, growth)
        _add(lessons, status_M, np.uint64(seed), how, self.partner.data, self.stored.data, self.gain.data)

    @property
    def scale(self) -> float:
        """What a stored weight is to be multiplied with."""
        return float(1 / self.gain.data[0])


@kernel()
def _put(row, m, w, chance, status_M, partner, stored):  # type: ignore[no-untyped-def]
    slots = partner.shape[1]
    for s in range(slots):
        if partner[row, s] == m:
            stored[row, s] += w
            return
    weakest, least = -1, np.float32(np.inf)
    for s in range(slots):
        p = partner[row, s]
        if p < 0 or not is_held(status_M[p]):
            weakest, least = s, np.float32(0)
            break
        if stored[row, s] < least:
            weakest, least = s, stored[row, s]
    if w < least:
        if chance * least >= w:
            return
        w = least
    partner[row, weakest], stored[row, weakest] = m, w


@kernel()
def _add(lessons, status_M, seed, how, partner, stored, gain):  # type: ignore[no-untyped-def]
    reach, fade, both, growth = how
    state = seed
    for b in range(lessons.item_B.shape[0]):
        m, weight = lessons.item_B[b], lessons.weight_B[b]
        if m < 0 or weight <= 0:
            continue
        w = np.float32(weight * gain[0])
        for k in range(min(lessons.length_B[b], reach)):
            h = lessons.items_BL[b, k]
            state, chance = next_uniform(state)
            _put(h, m, w, chance, status_M, partner, stored)
            if both:
                state, chance = next_uniform(state)
                _put(m, h, w, chance, status_M, partner, stored)
            w *= fade
        gain[0] *= growth
        if gain[0] > _MAX_GAIN:
            shrink = np.float32(1 / gain[0])
            for row in range(partner.shape[0]):
                for s in range(partner.shape[1]):
                    stored[row, s] *= shrink
            gain[0] = 1.0

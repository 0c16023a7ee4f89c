"""Which item came how often after which, with a half-life: bounded rows of partners.

Decay touches no table: new counts weigh more and more, and value =
stored / gain. Axes: M = item rows, S = slots, B = events.
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
    """Columns: `partner` int32 [M, SLOTS] (-1: empty), `stored` float32 [M, SLOTS], `gain` float64 [1].

    `reach`: how many items back a pair is counted, each step back with `fade` times the weight. `both`: the
    later item's row counts the earlier one as well. `half_life`: in events; infinite: counts never fade.
    """

    def __init__(self, capacity: int, reach: int, fade: float, half_life: float, both: bool) -> None:
        self.reach, self.fade, self.half_life, self.both = reach, fade, half_life, both
        self.partner = Column(np.full((capacity, SLOTS), -1, np.int32), "item", -1, of_items=True)
        self.stored = Column(np.zeros((capacity, SLOTS), np.float32), "item")
        self.gain = Column(np.ones(1), "none")

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        """Count events in order, each after the items of its window."""
        growth = 2.0 ** (1.0 / self.half_life)
        how = (self.reach, np.float32(self.fade), self.both, growth)
        _add(lessons, status_M, np.uint64(seed), how, self.partner.data, self.stored.data, self.gain.data)

    @property
    def scale(self) -> float:
        """What a stored weight is to be multiplied with."""
        return float(1 / self.gain.data[0])


@kernel()
def enter(row, m, w, chance, status_M, partner, weights):  # type: ignore[no-untyped-def]
    """Return the slot of `m` in a row and the weight to add there; -1 where the newcomer does not enter.

    `weights`: a tuple of arrays [M, S]. A newcomer of weight w meets the slot with the smallest sum s: w >= s
    replaces it, else it enters with probability w / s and keeps s. A row's sum stays, and a newcomer's weight
    is right on average.
    """
    for s in range(partner.shape[1]):
        if partner[row, s] == m:
            return s, w
    weakest, least = -1, np.float32(np.inf)
    for s in range(partner.shape[1]):
        p = partner[row, s]
        if p < 0 or not is_held(status_M[p]):
            weakest, least = s, np.float32(0)
            break
        held = np.float32(0)
        for weight in weights:
            held += weight[row, s]
        if held < least:
            weakest, least = s, held
    if w < least:
        if chance * least >= w:
            return -1, w
        w = least
    partner[row, weakest] = m
    for weight in weights:
        weight[row, weakest] = 0
    return weakest, w


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
            s, entered = enter(h, m, w, chance, status_M, partner, (stored,))
            if s >= 0:
                stored[h, s] += entered
            if both:
                state, chance = next_uniform(state)
                s, entered = enter(m, h, w, chance, status_M, partner, (stored,))
                if s >= 0:
                    stored[m, s] += entered
            w *= fade
        gain[0] *= growth
        if gain[0] > _MAX_GAIN:
            shrink = np.float32(1 / gain[0])
            for row in range(partner.shape[0]):
                for s in range(partner.shape[1]):
                    stored[row, s] *= shrink
            gain[0] = 1.0

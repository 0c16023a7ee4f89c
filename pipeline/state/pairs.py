"""Which item came how often after which, with a half-life: the memory of the latest successors, and the
counts of baselines.

The lasting successor tables (`pipeline.state.successors`) know no half-life and reach ten items back; here
both are free. Which slot of a full row gives way is decided as there. Decay touches no table: new
counts weigh more and more, and value = stored / gain. Axes: M = item rows, B = events.
"""

from typing import Any

import numpy as np

from pipeline.kernels import kernel
from pipeline.state.splitmix import next_uniform
from pipeline.state.store import Column
from pipeline.state.tables import is_held

SLOTS = 48
_RESCALE = 1e20


class Pairs:
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

    def columns(self) -> dict[str, Column]:
        """Return the columns by name."""
        return {"partner": self.partner, "stored": self.stored, "gain": self.gain}

    def add(
        self, item_B: Any, weight_B: Any, window_BL: Any, length_B: Any, status_M: Any, seed: int
    ) -> None:
        """Count events in order, each after the items of its window; weights of 0 and rows below 0 are left
        out.
        """
        growth = 2.0 ** (1.0 / self.half_life)
        _add(
            item_B, weight_B, window_BL, length_B, status_M, np.uint64(seed), self.reach,
            np.float32(self.fade), self.both, growth, self.partner.data, self.stored.data, self.gain.data,
        )  # fmt: skip

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
def _add(  # type: ignore[no-untyped-def]
    item_B, weight_B, window_BL, length_B, status_M, seed, reach, fade, both, growth, partner, stored, gain,
):  # fmt: skip
    state = seed
    for b in range(item_B.shape[0]):
        m, weight = item_B[b], weight_B[b]
        if m < 0 or weight <= 0:
            continue
        w = np.float32(weight * gain[0])
        for k in range(min(length_B[b], reach)):
            h = window_BL[b, k]
            state, chance = next_uniform(state)
            _put(h, m, w, chance, status_M, partner, stored)
            if both:
                state, chance = next_uniform(state)
                _put(m, h, w, chance, status_M, partner, stored)
            w *= fade
        gain[0] *= growth
        if gain[0] > _RESCALE:
            shrink = np.float32(1 / gain[0])
            for row in range(partner.shape[0]):
                for s in range(partner.shape[1]):
                    stored[row, s] *= shrink
            gain[0] = 1.0

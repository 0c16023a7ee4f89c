"""What came after or near the newest items, anywhere in anyone's history: bounded tables of partners.

    back_off  ln(1 + sum_k .6^k forward / (20 p_m))                       backed off to popularity p_m
    each      sum_k .8^k ln(1 + both / (40 p_m))                          every item of the history by itself
    lift      ln(1 + 300 sum_k .9^k both / (sqrt(1 + n(h_k)) (1 + n(m)))) reaches far back

both = forward + backward; k < PARENTS, in `lift` k < REACHED; n counts events; p_m is the smoothed popularity
share at a half-life of 1,000 events. Items past the newest PARENTS add lift to candidates of others alone.

An item's row holds SLOTS partners, each with a forward weight (it came after) and a backward weight (it came
before); slots are replaced as `enter` in pair_table.py says. Axes: M = item rows, S = slots.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import RETRIEVED, Block, find_slot, slot_of
from pipeline.features.family import Family, Shown, bits_of, place_in
from pipeline.features.lessons import Lessons
from pipeline.features.pair_table import enter
from pipeline.features.popularity import P1000, SCALE, Popularity, Shares, share_of
from pipeline.kernels import inlined, kernel, log32, log_all
from pipeline.state.splitmix import next_uniform
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

FloatArray = npt.NDArray[np.float32]

SLOTS = 48
REACH = 10  # the k-th newest item before an event is its predecessor with weight FADE ** k, k < REACH
FADE = 0.8
BACK_OFF = 20.0  # pseudo-count
PARENTS = 4  # newest items; their partners become candidates
REACHED = 16  # newest items; their partners add lift
FORWARD_FADE, BOTH_FADE, LIFT_FADE = 0.6, 0.8, 0.9
LIFTED = 300.0  # brings sums of small numbers to where ln(1 + .) bends


class Partners(NamedTuple):
    """The arrays that kernels read transitions from."""

    partner_MS: npt.NDArray[np.int32]
    forward_MS: FloatArray
    backward_MS: FloatArray
    count_M: FloatArray


class Transitions(Family):
    """Columns: `partner` int32 [M, S] (-1: empty), `forward`, `backward` float32 [M, S], `count` float32 [M]
    (events), `followed` float32 [M] (all forward weight, kept or not).
    """

    features = ("back_off", "each", "lift")

    def __init__(self, items: IdTable, popularity: Popularity) -> None:
        self._items, self._popularity = items, popularity
        capacity = items.capacity
        self.partner = Column(np.full((capacity, SLOTS), -1, np.int32), "item", -1, of_items=True)
        self.forward = Column(np.zeros((capacity, SLOTS), np.float32), "item")
        self.backward = Column(np.zeros((capacity, SLOTS), np.float32), "item")
        self.count = Column(np.zeros(capacity, np.float32), "item")
        self.followed = Column(np.zeros(capacity, np.float32), "item")

    @property
    def _partners(self) -> Partners:
        return Partners(self.partner.data, self.forward.data, self.backward.data, self.count.data)

    @property
    def _priors(self) -> Shares:
        """Return the pseudo-counts BACK_OFF p_m."""
        return self._popularity.shares(P1000, len(self._items), BACK_OFF)

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self._partners, self._priors, at)

    def finish(self, block: Block, at: int) -> None:
        _finish(block, self._partners, self._priors, at)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        """Share each feature among the newest items by their summands."""
        part = np.empty((shown.rows_BK.shape[1], 3, REACHED), np.float32)
        _attribute(shown, self._partners, self._priors, at, part, out_BKP)

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        _add(lessons, status_M, np.uint64(seed), self._partners, self.followed.data)

    def fade(self, weakening: float, share: float) -> None:
        """Weaken what every row holds: w becomes w / (1 + weakening * F) where F is the row's `followed`.

        No row is left with more than 1 / weakening. Fading by a and then by b is fading by a + b.
        """
        _fade(np.float32(weakening), self.forward.data, self.backward.data, self.followed.data)


@inlined
def _each(both, prior):  # type: ignore[no-untyped-def]
    return log32(np.float32(1) + both / (prior + prior))


@kernel()
def _retrieve(block, partners, priors, at):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    features = block.features_BCF
    for b in range(block.length_B.shape[0]):
        fade6, fade8, fade9 = one, one, one
        for k in range(min(block.length_B[b], PARENTS)):
            h = block.items_BL[b, k]
            norm = fade9 / np.sqrt(one + partners.count_M[h])
            for s in range(partners.partner_MS.shape[1]):
                m = partners.partner_MS[h, s]
                c = slot_of(block, b, m, RETRIEVED)
                if c >= 0:
                    both = partners.forward_MS[h, s] + partners.backward_MS[h, s]
                    features[b, c, at] += fade6 * partners.forward_MS[h, s]
                    features[b, c, at + 1] += fade8 * _each(both, share_of(priors, m))
                    features[b, c, at + 2] += norm * both / (one + partners.count_M[m])
            fade6 *= np.float32(FORWARD_FADE)
            fade8 *= np.float32(BOTH_FADE)
            fade9 *= np.float32(LIFT_FADE)


@kernel()
def _finish(block, partners, priors, at):  # type: ignore[no-untyped-def]
    one, scale = np.float32(1), np.float32(SCALE)
    features = block.features_BCF
    for b in range(block.length_B.shape[0]):
        fade = np.float32(LIFT_FADE**PARENTS)
        for k in range(PARENTS, min(block.length_B[b], REACHED)):
            h = block.items_BL[b, k]
            norm = fade / np.sqrt(one + partners.count_M[h])
            for s in range(partners.partner_MS.shape[1]):
                m = partners.partner_MS[h, s]
                if m >= 0:
                    c = find_slot(block, b, m)
                    if c >= 0:
                        both = partners.forward_MS[h, s] + partners.backward_MS[h, s]
                        features[b, c, at + 2] += norm * both / (one + partners.count_M[m])
            fade *= np.float32(LIFT_FADE)
        n, values = block.count_B[b], block.scratch_C
        for c in range(n):
            x = features[b, c, at]
            values[c] = one + x / share_of(priors, block.rows_BC[b, c]) if x > 0 else one
        log_all(values, n)
        for c in range(n):
            features[b, c, at] = values[c] * scale
            features[b, c, at + 1] *= scale
            values[c] = one + np.float32(LIFTED) * features[b, c, at + 2]
        log_all(values, n)
        for c in range(n):
            features[b, c, at + 2] = values[c] * scale


@kernel()
def _attribute(shown, partners, priors, at, part_K3R, out_BKP):  # type: ignore[no-untyped-def]
    one, rest = np.float32(1), out_BKP.shape[2] - 1
    for b in range(shown.rows_BK.shape[0]):
        rows_K, reached = shown.rows_BK[b], min(shown.length_B[b], REACHED)
        bits = bits_of(rows_K)
        part_K3R[:] = 0
        fade6, fade8, fade9 = one, one, one
        for k in range(reached):
            h = shown.items_BL[b, k]
            for s in range(partners.partner_MS.shape[1]):
                m = partners.partner_MS[h, s]
                i = place_in(rows_K, bits, m)
                if i >= 0:
                    both = partners.forward_MS[h, s] + partners.backward_MS[h, s]
                    part_K3R[i, 2, k] = fade9 * both / np.sqrt(one + partners.count_M[h])
                    if k < PARENTS:
                        part_K3R[i, 0, k] = fade6 * partners.forward_MS[h, s]
                        part_K3R[i, 1, k] = fade8 * _each(both, share_of(priors, m))
            fade6 *= np.float32(FORWARD_FADE)
            fade8 *= np.float32(BOTH_FADE)
            fade9 *= np.float32(LIFT_FADE)
        for i in range(rows_K.shape[0]):
            for f in range(3):
                total, value = part_K3R[i, f].sum(), shown.value_BKF[b, i, at + f]
                for k in range(reached if total > 0 else 0):
                    out_BKP[b, i, k] += value * part_K3R[i, f, k] / total
                if total <= 0:
                    out_BKP[b, i, rest] += value


@kernel()
def _add(lessons, status_M, seed, partners, followed_M):  # type: ignore[no-untyped-def]
    state, weights = seed, (partners.forward_MS, partners.backward_MS)
    for b in range(lessons.item_B.shape[0]):
        m, weight = lessons.item_B[b], lessons.weight_B[b]
        if m < 0 or weight <= 0:
            continue
        partners.count_M[m] += weight
        w = np.float32(weight)
        for k in range(min(lessons.length_B[b], REACH)):
            h = lessons.items_BL[b, k]
            state, chance = next_uniform(state)
            s, entered = enter(h, m, w, chance, status_M, partners.partner_MS, weights)
            if s >= 0:
                partners.forward_MS[h, s] += entered
            followed_M[h] += w
            state, chance = next_uniform(state)
            s, entered = enter(m, h, w, chance, status_M, partners.partner_MS, weights)
            if s >= 0:
                partners.backward_MS[m, s] += entered
            w *= np.float32(FADE)


@kernel()
def _fade(weakening, forward, backward, followed):  # type: ignore[no-untyped-def]
    for m in range(followed.shape[0]):
        if followed[m] > 0:
            share = np.float32(1) / (np.float32(1) + weakening * followed[m])
            followed[m] *= share
            for s in range(forward.shape[1]):
                forward[m, s] *= share
                backward[m, s] *= share

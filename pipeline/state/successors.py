"""Who follows whom: successor tables with bounded rows, and the last contexts in which each item was
followed.

One row an item holds SLOTS partners, each with a forward weight (the partner came after) and a backward
weight (it came before). Which slot gives way decides quality: a newcomer of weight w meets the smallest slot
m; w >= m takes it, else it enters with probability w / m and keeps m: a row's sum stays, and a
newcomer's weight is right on average.
"""

from typing import Any

import numpy as np

from pipeline.kernels import kernel
from pipeline.state.splitmix import next_uniform
from pipeline.state.store import Column
from pipeline.state.tables import is_held

SLOTS = 48
REACH = 10  # the k-th newest item before an event is its predecessor with weight FADE ** k, k < REACH
FADE = 0.8
CONTEXTS = 32  # occurrences kept an item
BEFORE = 4  # items kept before each


class Successors:
    """Bounded co-occurrence tables.

    Columns: `partner` int32 [M, SLOTS] (-1: empty), `forward`, `backward` float32 [M, SLOTS], `count` float32
    [M] (events), `followed` float32 [M] (all forward weight, kept or not), `context` int32 [M, CONTEXTS, 1 +
    BEFORE] (what followed, then what came before, newest first), `contexts` int64 [M] (occurrences since the
    past was last cut off).
    """

    def __init__(self, capacity: int, slots: int = SLOTS, contexts: int = CONTEXTS) -> None:
        self.partner = Column(np.full((capacity, slots), -1, np.int32), "item", -1, of_items=True)
        self.forward = Column(np.zeros((capacity, slots), np.float32), "item")
        self.backward = Column(np.zeros((capacity, slots), np.float32), "item")
        self.count = Column(np.zeros(capacity, np.float32), "item")
        self.followed = Column(np.zeros(capacity, np.float32), "item")
        self.context = Column(
            np.full((capacity, contexts, 1 + BEFORE), -1, np.int32), "item", -1, of_items=True
        )
        self.contexts = Column(np.zeros(capacity, np.int64), "item")

    def columns(self) -> dict[str, Column]:
        return {
            "partner": self.partner,
            "forward": self.forward,
            "backward": self.backward,
            "count": self.count,
            "followed": self.followed,
            "context": self.context,
            "contexts": self.contexts,
        }

    def add(
        self, item_B: Any, weight_B: Any, window_BL: Any, length_B: Any, status_M: Any, seed: int
    ) -> None:
        """Count events in order, each after the items of its window; weights of 0 and rows below 0 are left
        out.
        """
        _add(
            item_B, weight_B, window_BL, length_B, status_M, np.uint64(seed), self.partner.data,
            self.forward.data, self.backward.data, self.count.data, self.followed.data, self.context.data,
            self.contexts.data,
        )  # fmt: skip

    def fade(self, weakening: float, contexts: int) -> None:
        """Let the past count less: what is learned from now on outweighs it sooner.

        Weights w of a row that was followed with a weight of F in all become w / (1 + weakening * F): the
        more a row has learned, the more it forgets, and no row is left with more than 1 / weakening. Fading
        by a and then by b is fading by a + b. Of each item's contexts the newest `contexts` stay.
        Raise ValueError where `weakening` or `contexts` is below 0.
        """
        if weakening < 0 or contexts < 0:
            raise ValueError(f"fade({weakening}, {contexts}): expected 0 or more of both")
        _fade(
            np.float32(weakening), contexts, self.forward.data, self.backward.data, self.followed.data,
            self.context.data, self.contexts.data, np.empty_like(self.context.data[0]),
        )  # fmt: skip


@kernel()
def _fade(weakening, kept, forward, backward, followed, context, contexts, newest):  # type: ignore[no-untyped-def]
    places = context.shape[1]
    for m in range(followed.shape[0]):
        if followed[m] > 0:
            share = np.float32(1) / (np.float32(1) + weakening * followed[m])
            followed[m] *= share
            for s in range(forward.shape[1]):
                forward[m, s] *= share
                backward[m, s] *= share
        if min(contexts[m], places) > kept:
            for k in range(kept):
                for q in range(context.shape[2]):
                    newest[k, q] = context[m, (contexts[m] - kept + k) % places, q]
            context[m] = -1
            for k in range(kept):
                for q in range(context.shape[2]):
                    context[m, k, q] = newest[k, q]
            contexts[m] = kept


@kernel()
def _slot(row, m, w, chance, status_M, partner, forward, backward):  # type: ignore[no-untyped-def]
    """Return the slot of `m` in a row and the weight to add there, -1 when the newcomer does not enter."""
    slots = partner.shape[1]
    for s in range(slots):
        if partner[row, s] == m:
            return s, w
    weakest, least = -1, np.float32(np.inf)
    for s in range(slots):
        p = partner[row, s]
        if p < 0 or not is_held(status_M[p]):
            weakest, least = s, np.float32(0)
            break
        held = forward[row, s] + backward[row, s]
        if held < least:
            weakest, least = s, held
    if w < least:
        if chance * least >= w:
            return -1, w
        w = least
    partner[row, weakest], forward[row, weakest], backward[row, weakest] = m, 0, 0
    return weakest, w


@kernel()
def _add(  # type: ignore[no-untyped-def]
    item_B, weight_B, window_BL, length_B, status_M, seed, partner, forward, backward, count, followed,
    context, contexts,
):  # fmt: skip
    state = seed
    for b in range(item_B.shape[0]):
        m, weight = item_B[b], weight_B[b]
        if m < 0 or weight <= 0:
            continue
        count[m] += weight
        w = np.float32(weight)
        n = min(length_B[b], REACH)
        for k in range(n):
            h = window_BL[b, k]
            state, chance = next_uniform(state)
            s, entered = _slot(h, m, w, chance, status_M, partner, forward, backward)
            if s >= 0:
                forward[h, s] += entered
            followed[h] += w
            state, chance = next_uniform(state)
            s, entered = _slot(m, h, w, chance, status_M, partner, forward, backward)
            if s >= 0:
                backward[m, s] += entered
            w *= np.float32(FADE)
        if n > 0:
            h = window_BL[b, 0]
            slot = contexts[h] % context.shape[1]
            context[h, slot, 0] = m
            for q in range(BEFORE):
                context[h, slot, 1 + q] = window_BL[b, 1 + q] if 1 + q < length_B[b] else -1
            contexts[h] += 1

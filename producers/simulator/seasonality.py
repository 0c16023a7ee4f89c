"""How the event rate and the popularity of categories vary: by the hour of the day, and in bursts.

Axes: C = categories.
"""

import math
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from producers.simulator.catalogue import Catalogue
from producers.simulator.events import CATEGORIES, Floats
from producers.simulator.plan import Burst, Plan
from producers.simulator.truth import Record, Truth, over

HOUR_MS, DAY_HOURS = 3_600_000, 24
DAY_MS = DAY_HOURS * HOUR_MS
BUSIEST_HOUR = 20


class ActiveBurst(NamedTuple):
    """A burst in progress: `target` is the place of its item, or its category."""

    burst: Burst
    target: int
    record: Record  # of the truth


class Seasonality:
    """The event rate and the popular categories of the moment."""

    def __init__(self, plan: Plan, catalogue: Catalogue, seed: int, truth: Truth) -> None:
        self._strength = plan.season.strength if plan.season else 0.0
        self._catalogue, self._truth = catalogue, truth
        self._rng = np.random.default_rng((seed, 2))
        self._pending = sorted(plan.bursts, key=lambda burst: burst.at, reverse=True)
        self._active: list[ActiveBurst] = []
        step = DAY_HOURS / len(CATEGORIES)
        self._peak_C = np.asarray(self._rng.permutation(len(CATEGORIES)) * step, np.float64)
        if plan.season is not None:
            peaks = dict(zip(CATEGORIES, self._peak_C.tolist(), strict=True))
            truth.season = asdict(plan.season) | {"peak_hours": peaks}

    @property
    def bursts(self) -> list[ActiveBurst]:
        """The bursts of an item or a category that are in progress."""
        return [active for active in self._active if active.burst.kind != "rate"]

    def rate_factor(self, ms: float) -> float:
        """Return the event rate relative to the usual one; a season averages to 1 over a day."""
        factor = math.prod(active.burst.factor for active in self._active if active.burst.kind == "rate")
        return factor * (1 + self._strength * math.cos(_angle(ms / HOUR_MS - BUSIEST_HOUR)))

    def category_factors(self, ms: float) -> Floats:
        """Return the popularity of each category at this hour relative to its mean, [C]."""
        factor_C: Floats = 1 + self._strength * np.cos(_angle(ms / HOUR_MS - self._peak_C))
        return factor_C

    def advance(self, made: int, ms: int) -> None:
        """Begin and end the bursts that are due before event number `made`."""
        for active in [active for active in self._active if active.burst.until <= made]:
            self._active.remove(active)
            over(active.record, made, ms)
        while self._pending and self._pending[-1].at <= made:
            burst = self._pending.pop()
            place = int(self._rng.choice(self._catalogue.available(made)))
            category = int(self._catalogue.category_P[place])
            item = int(self._catalogue.item_P[place])
            name = {"rate": None, "item": item, "category": CATEGORIES[category]}[burst.kind]
            record = self._truth.burst_began(burst, made, ms, name)
            self._active.append(ActiveBurst(burst, place if burst.kind == "item" else category, record))


def _angle(hours: float | Floats) -> float | Floats:
    return 2 * math.pi * hours / DAY_HOURS

"""How fast things go and what is in fashion just now: the hour of the day, and bursts.

Axes: C = categories.
"""

import math
from typing import NamedTuple

import numpy as np

from producers.simulator.items import Catalogue
from producers.simulator.market import CATEGORIES, Floats, Ints
from producers.simulator.plan import Burst, Plan
from producers.simulator.truth import Truth

HOUR_MS, DAY_HOURS = 3_600_000, 24
BUSIEST_HOUR = 20


class Hot(NamedTuple):
    """A burst under way: `target` is an item's place or a category."""

    burst: Burst
    target: int
    number: int  # in the truth


class Rhythm:
    """Pace and fashion of the moment."""

    def __init__(self, plan: Plan, catalogue: Catalogue, seed: int, truth: Truth) -> None:
        self._season, self._catalogue, self._truth = plan.season, catalogue, truth
        self._rng = np.random.default_rng((seed, 2))
        self._coming = sorted(plan.bursts, key=lambda burst: burst.at, reverse=True)
        self._hot: list[Hot] = []
        step = DAY_HOURS / len(CATEGORIES)
        self._peak_C = np.asarray(self._rng.permutation(len(CATEGORIES)) * step, np.float64)
        if plan.season is not None:
            truth.has_season(plan.season, dict(zip(CATEGORIES, self._peak_C.tolist(), strict=True)))

    @property
    def fashions(self) -> list[Hot]:
        """The bursts of one item or category that are under way."""
        return [hot for hot in self._hot if hot.burst.kind != "rate"]

    def pace(self, ms: float) -> float:
        """Return how many times the usual number of events come a second; over a whole day it means 1."""
        pace = math.prod(hot.burst.factor for hot in self._hot if hot.burst.kind == "rate")
        if self._season is not None:
            pace *= 1 + self._season.strength * math.cos(_angle(ms / HOUR_MS - BUSIEST_HOUR))
        return pace

    def lure(self, ms: float) -> Floats | None:
        """Return by how much each category is liked better at this hour, [C]; None without a season."""
        if self._season is None:
            return None
        lure: Floats = 1 + self._season.strength * np.cos(_angle(ms / HOUR_MS - self._peak_C))
        return lure

    def advance(self, made: int, ms: int) -> None:
        """Begin and end what is due before event number `made`."""
        for hot in [hot for hot in self._hot if hot.burst.until <= made]:
            self._hot.remove(hot)
            self._truth.burst_over(hot.number, made, ms)
        while self._coming and self._coming[-1].at <= made:
            burst = self._coming.pop()
            places: Ints = self._catalogue.available(made)
            place = int(self._rng.choice(places))
            category = int(self._catalogue.category_P[place])
            named = {
                "rate": None,
                "item": int(self._catalogue.item_P[place]),
                "category": CATEGORIES[category],
            }
            number = self._truth.burst_began(burst, made, ms, named[burst.kind])
            self._hot.append(Hot(burst, place if burst.kind == "item" else category, number))


def _angle(hours: float | Floats) -> float | Floats:
    return 2 * math.pi * hours / DAY_HOURS

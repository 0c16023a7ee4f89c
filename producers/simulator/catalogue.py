"""The simulated catalogue: categories, arrivals, retirements and popularity of items.

Axes: P = places, C = categories. A place is an item's position in a layout sorted by category and, within a
category, by arrival: the items of a category that have arrived are the head of its range.
"""

import numpy as np

from producers.simulator.events import CATEGORIES, Bools, Floats, Ints, SimulatorConfig
from producers.simulator.truth import Truth


class Catalogue:
    """Which items are available, from when and until when."""

    def __init__(
        self,
        rng: np.random.Generator,
        config: SimulatorConfig,
        events: int,
        seed: int,
        retire: float,
        truth: Truth,
    ) -> None:
        n, categories = config.items, len(CATEGORIES)
        self.category_P: Ints = np.sort(np.arange(n) % categories)
        within = np.arange(n) - np.searchsorted(self.category_P, self.category_P)
        self.item_P: Ints = self.category_P + categories * within
        self.place_of = np.argsort(self.item_P)  # by item number
        arrival = np.where(rng.random(n) < 0.6, 0.0, rng.random(n) * events)
        arrival[within == 0] = 0.0  # no category is ever empty
        self.arrival_P: Floats = arrival[np.lexsort((arrival, self.category_P))]
        self.weight_P = np.asarray(1.0 / (1 + rng.permutation(n)) ** 0.8, np.float64)
        self.cumulative: Floats = np.concatenate(([0.0], np.cumsum(self.weight_P)))
        self.first_C: Ints = np.searchsorted(self.category_P, np.arange(categories))
        self.category_weight: Floats = np.add.reduceat(self.weight_P, self.first_C)
        self.retired_P: Bools = np.zeros(n, bool)
        self._truth = truth
        self._arrivals = _latest_first(self.arrival_P, self.arrival_P > 0)
        self._retirements = self._draw_retirements(np.random.default_rng((seed, 1)), within, events, retire)

    def advance(self, made: int, ms: int) -> None:
        """Apply the arrivals and retirements that are due before event number `made`."""
        while self._arrivals and self._arrivals[-1][0] <= made:
            self._truth.new_items.append((int(self.item_P[self._arrivals.pop()[1]]), made, ms))
        while self._retirements and self._retirements[-1][0] <= made:
            place = self._retirements.pop()[1]
            self.retired_P[place] = True
            self._truth.retired_items.append((int(self.item_P[place]), made, ms))

    def arrived(self, made: int) -> Ints:
        """Return how many items of each category have arrived, [C]."""
        return np.add.reduceat((self.arrival_P <= made).astype(np.int64), self.first_C)

    def available(self, made: int) -> Ints:
        """Return the places of the available items."""
        return np.flatnonzero((self.arrival_P <= made) & ~self.retired_P)

    def _draw_retirements(
        self, rng: np.random.Generator, within: Ints, events: int, retire: float
    ) -> list[tuple[float, int]]:
        """Draw which items retire, each after its arrival, and never the first of a category."""
        candidates = rng.permutation(np.flatnonzero(within > 0))
        leaving = candidates[: round(retire * len(within))]
        at_P, arrival_L = np.full(len(within), np.inf), self.arrival_P[leaving]
        at_P[leaving] = arrival_L + rng.random(len(leaving)) * (events - arrival_L)
        return _latest_first(at_P, at_P < np.inf)


def _latest_first(at_P: Floats, chosen_P: Bools) -> list[tuple[float, int]]:
    """Return (event, place) of the chosen places, the latest first, so that the next one can be popped."""
    places = np.flatnonzero(chosen_P)
    return sorted(zip(at_P[places].tolist(), places.tolist(), strict=True), reverse=True)

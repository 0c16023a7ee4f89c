"""The items of the made-up market: their categories, when they come and go, how much they draw.

Axes: P = places, C = categories. A place is an item's position in a layout by category and, within it, by
arrival: the items of a category that are there are the head of its stretch.
"""

import numpy as np

from producers.simulator.market import CATEGORIES, Bools, Floats, Ints, Market
from producers.simulator.truth import Truth


class Catalogue:
    """Who is where, since when and until when."""

    def __init__(
        self, rng: np.random.Generator, market: Market, events: int, seed: int, retire: float, truth: Truth
    ) -> None:
        n, categories = market.items, len(CATEGORIES)
        self.category_P: Ints = np.sort(np.arange(n) % categories)
        within = np.arange(n) - np.searchsorted(self.category_P, self.category_P)
        self.item_P: Ints = self.category_P + categories * within
        self.place_of = np.argsort(self.item_P)  # the place of an item's number
        arrival = np.where(rng.random(n) < 0.6, 0.0, rng.random(n) * events)
        arrival[within == 0] = 0.0  # no category is ever empty
        self.arrival_P: Floats = arrival[np.lexsort((arrival, self.category_P))]
        self.weight_P = np.asarray(1.0 / (1 + rng.permutation(n)) ** 0.8, np.float64)
        self.cumulative: Floats = np.concatenate(([0.0], np.cumsum(self.weight_P)))
        self.first_C: Ints = np.searchsorted(self.category_P, np.arange(categories))
        self.category_weight: Floats = np.add.reduceat(self.weight_P, self.first_C)
        self.gone_P: Bools = np.zeros(n, bool)
        self._truth = truth
        self._coming = _in_order(self.arrival_P, self.arrival_P > 0)
        self._leaving = self._retirements(np.random.default_rng((seed, 1)), within, events, retire)

    def advance(self, made: int, ms: int) -> None:
        """Let come and go whatever is due before event number `made`."""
        while self._coming and self._coming[-1][0] <= made:
            self._truth.new_items.append((int(self.item_P[self._coming.pop()[1]]), made, ms))
        while self._leaving and self._leaving[-1][0] <= made:
            place = self._leaving.pop()[1]
            self.gone_P[place] = True
            self._truth.retired_items.append((int(self.item_P[place]), made, ms))

    def there(self, made: int) -> Ints:
        """Return how many items of each category have arrived, [C]."""
        return np.add.reduceat((self.arrival_P <= made).astype(np.int64), self.first_C)

    def available(self, made: int) -> Ints:
        """Return the places of the items that can be had."""
        return np.flatnonzero((self.arrival_P <= made) & ~self.gone_P)

    def _retirements(
        self, rng: np.random.Generator, within: Ints, events: int, retire: float
    ) -> list[tuple[float, int]]:
        """Draw who goes and when, last first: after it came, and in no category the first."""
        candidates = rng.permutation(np.flatnonzero(within > 0))
        leaving = candidates[: round(retire * len(within))]
        at_P, arrival_L = np.full(len(within), np.inf), self.arrival_P[leaving]
        at_P[leaving] = arrival_L + rng.random(len(leaving)) * (events - arrival_L)
        return _in_order(at_P, at_P < np.inf)


def _in_order(at_P: Floats, who_P: Bools) -> list[tuple[float, int]]:
    """Return (event, place) of those, the soonest last, so that it can be popped."""
    places = np.flatnonzero(who_P)
    return sorted(zip(at_P[places].tolist(), places.tolist(), strict=True), reverse=True)

"""Which categories users prefer and which items follow which, and how both change.

Axes: U = users, P = places of items, C = categories, F = favourite categories of a user, R = successors of an
item, W = regimes. A regime is a set of favourite categories for every user and of successors for every item;
each user belongs to one. A change adds a regime and moves users to it.
"""

import numpy as np

from producers.simulator.catalogue import Catalogue
from producers.simulator.events import CATEGORIES, Bools, Floats, Ints
from producers.simulator.plan import Change
from producers.simulator.truth import Record, Scope, Truth, over, turned

SUCCESSOR_SHARES = (0.65, 0.25, 0.10)
FAVOURITE_SHARES = (0.6, 0.25, 0.15)  # of a user's favourite categories


def draw_successors(rng: np.random.Generator, catalogue: Catalogue) -> Ints:
    """Draw the successors of every item, [P, R]: one random cycle through each category for each rank."""
    successor_PR = np.empty((len(catalogue.item_P), len(SUCCESSOR_SHARES)), np.int64)
    for category in range(len(CATEGORIES)):
        _draw_cycles(rng, catalogue, category, successor_PR)
    return successor_PR


def draw_favourites(rng: np.random.Generator, catalogue: Catalogue, users: int) -> Ints:
    """Draw the favourite categories of every user, [U, F]."""
    share_C = catalogue.category_weight / catalogue.category_weight.sum()
    return np.array([draw_distinct(rng, share_C, len(FAVOURITE_SHARES)) for _ in range(users)])


def draw_distinct(rng: np.random.Generator, share_C: Floats, count: int) -> list[int]:
    """Return what `rng.choice(C, count, replace=False, p=share_C)` draws, in a quarter of the time.

    As in numpy, duplicates are drawn again from the remaining categories.
    """
    found: list[int] = []
    while len(found) < count:
        rest_C = share_C.copy()
        rest_C[found] = 0.0
        upto_C = rest_C.cumsum()
        upto_C /= upto_C[-1]
        drawn = upto_C.searchsorted(rng.random(count - len(found)), side="right").tolist()
        found += dict.fromkeys(drawn)
    return found


class Preferences:
    """The regimes, and the regime of each user."""

    def __init__(
        self,
        rng: np.random.Generator,
        catalogue: Catalogue,
        favourite_UF: Ints,
        successor_PR: Ints,
        changes: tuple[Change, ...],
        truth: Truth,
    ) -> None:
        self._rng, self._catalogue, self._truth = rng, catalogue, truth
        self._favourite_WUF, self._successor_WPR = favourite_UF[None], successor_PR[None]
        self.regime_U: Ints = np.zeros(len(favourite_UF), np.int64)
        self._pending = sorted(changes, key=lambda change: change.at, reverse=True)
        self._change: Change | None = None  # in progress
        self._record: Record = {}  # of that change in the truth
        self._new_regime = 0
        self._old_regime_U = self.regime_U
        self._moves_at_U: Floats = np.zeros(len(favourite_UF))
        self._taste = "new"

    def favourites(self, user_S: Ints) -> Ints:
        """Return the users' favourite categories, best first, [S, F]."""
        favourite_SF: Ints = self._favourite_WUF[self.regime_U[user_S], user_S]
        return favourite_SF

    def successors(self, user_S: Ints, place_S: Ints) -> Ints:
        """Return the successors of an item for each user, best first, [S, R]."""
        successor_SR: Ints = self._successor_WPR[self.regime_U[user_S], place_S]
        return successor_SR

    def advance(self, made: int, ms: int) -> None:
        """Apply the changes that are due before event number `made`."""
        if self._change is not None:
            self._continue(self._change, made, ms)
        while self._change is None and self._pending and self._pending[-1].at <= made:
            self._begin(self._pending.pop(), made, ms)

    def _begin(self, change: Change, made: int, ms: int) -> None:
        self._old_regime_U, users = self.regime_U.copy(), len(self.regime_U)
        self._taste, self._change = "new", change
        base = int(np.bincount(self.regime_U).argmax())
        chosen_C: Bools | None = None
        moved: Ints | slice = slice(0)
        scope = Scope()
        if change.kind == "local" and change.among == "categories":
            count = max(2, round(change.share * len(CATEGORIES)))
            chosen_C = np.zeros(len(CATEGORIES), bool)
            chosen_C[self._rng.permutation(len(CATEGORIES))[:count]] = True
            affected_U = chosen_C[self._favourite_WUF[base]].any(axis=1)
            items = self._catalogue.item_P[chosen_C[self._catalogue.category_P]].tolist()
            names = [name for name, chosen in zip(CATEGORIES, chosen_C, strict=True) if chosen]
            scope = Scope(np.flatnonzero(affected_U).tolist(), items, names)
            moved = slice(None)  # other categories are the same in both regimes
        elif change.kind == "local":
            moved = np.sort(self._rng.permutation(users)[: round(change.share * users)])
            scope = Scope(moved.tolist())
        self._record = self._truth.change_began(change, made, ms, scope)
        self._new_regime = self._add_regime(base, chosen_C)
        self.regime_U[moved] = self._new_regime
        if change.kind == "gradual":
            span = change.span()[1] - change.at
            self._moves_at_U = change.at + span * self._rng.permutation(users) / users
        self._continue(change, made, ms)

    def _continue(self, change: Change, made: int, ms: int) -> None:
        """Move the users that are due, and end the change when it is complete."""
        is_over = made + 1 >= change.span()[1] if change.until is None else made >= change.until
        if change.kind == "gradual":
            self.regime_U[self._moves_at_U <= made] = self._new_regime
        elif change.kind == "sudden":
            self.regime_U[:] = self._new_regime
        elif change.kind == "recurring":
            old = is_over or (made - change.at) // change.period % 2
            self.regime_U[:] = self._old_regime_U if old else self._new_regime
            taste = "old" if old else "new"
            if taste != self._taste:
                self._taste = taste
                turned(self._record, made, ms, taste)
        if is_over:
            over(self._record, made, ms)
            self._change = None

    def _add_regime(self, base: int, chosen_C: Bools | None = None) -> int:
        """Add a regime with other favourites and successors, of all or of the chosen categories."""
        rng, categories = self._rng, len(CATEGORIES)
        if chosen_C is None:
            shift = int(1 + rng.integers(categories - 1))  # moves every category
            order = rng.permutation(categories)
        else:
            order, shift = rng.permutation(np.flatnonzero(chosen_C)), 1
        other = np.arange(categories)
        other[order] = np.roll(order, shift)
        favourite_UF, successor_PR = other[self._favourite_WUF[base]], self._successor_WPR[base].copy()
        for category in range(categories):
            if chosen_C is None or chosen_C[category]:
                _draw_cycles(rng, self._catalogue, category, successor_PR)
        self._favourite_WUF = np.concatenate((self._favourite_WUF, favourite_UF[None]))
        self._successor_WPR = np.concatenate((self._successor_WPR, successor_PR[None]))
        return len(self._favourite_WUF) - 1


def _draw_cycles(rng: np.random.Generator, catalogue: Catalogue, category: int, successor_PR: Ints) -> None:
    """Draw the successors of the items of one category, in place."""
    places = np.flatnonzero(catalogue.category_P == category)
    for rank in range(successor_PR.shape[1]):
        cycle = rng.permutation(places)
        successor_PR[cycle, rank] = np.roll(cycle, -1)

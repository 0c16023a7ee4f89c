"""What shoppers like and what follows what, and how both change.

Axes: U = users, P = places of items, C = categories, F = favourite categories of a user, R = successors of an
item, W = worlds. A world is a taste for everybody and successors for every item; each user lives in one. A
change of taste makes another world and moves users over.
"""

import numpy as np

from producers.simulator.items import Catalogue
from producers.simulator.market import CATEGORIES, Bools, Floats, Ints
from producers.simulator.plan import Change
from producers.simulator.truth import Truth

SUCCESSOR_SHARES = (0.65, 0.25, 0.10)
TASTE_SHARES = (0.6, 0.25, 0.15)  # of a user's favourite categories


def linked(rng: np.random.Generator, catalogue: Catalogue) -> Ints:
    """Give every item successors, [P, R]: in each category one random circle for each rank."""
    successor_PR = np.empty((len(catalogue.item_P), len(SUCCESSOR_SHARES)), np.int64)
    for category in range(len(CATEGORIES)):
        _link(rng, catalogue, category, successor_PR)
    return successor_PR


def favourites(rng: np.random.Generator, catalogue: Catalogue, users: int) -> Ints:
    """Draw every user's favourite categories, [U, F]."""
    lure = catalogue.category_weight / catalogue.category_weight.sum()
    return np.array([draw_distinct(rng, lure, len(TASTE_SHARES)) for _ in range(users)])


def draw_distinct(rng: np.random.Generator, share_C: Floats, count: int) -> list[int]:
    """Return what `rng.choice(C, count, replace=False, p=share_C)` draws, in a quarter of the time.

    As there, what was drawn twice is drawn again among the rest.
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


class Tastes:
    """The worlds, and who lives in which."""

    def __init__(
        self,
        rng: np.random.Generator,
        catalogue: Catalogue,
        taste_UF: Ints,
        successor_PR: Ints,
        changes: tuple[Change, ...],
        truth: Truth,
    ) -> None:
        self._rng, self._catalogue, self._truth = rng, catalogue, truth
        self._taste_WUF, self._successor_WPR = taste_UF[None], successor_PR[None]
        self.world_U: Ints = np.zeros(len(taste_UF), np.int64)
        self._coming = sorted(changes, key=lambda change: change.at, reverse=True)
        self._change: Change | None = None  # that is on the move
        self._new = 0  # its world
        self._old_U = self.world_U
        self._moves_at_U: Floats = np.zeros(len(taste_UF))
        self._taste = "new"

    def of(self, user_S: Ints) -> Ints:
        """Return the users' favourite categories, best first, [S, F]."""
        taste_SF: Ints = self._taste_WUF[self.world_U[user_S], user_S]
        return taste_SF

    def successors(self, user_S: Ints, place_S: Ints) -> Ints:
        """Return what follows an item for a user, [S, R]."""
        successor_SR: Ints = self._successor_WPR[self.world_U[user_S], place_S]
        return successor_SR

    def advance(self, made: int, ms: int) -> None:
        """Change what is due before event number `made`."""
        if self._change is not None:
            self._go_on(self._change, made, ms)
        while self._change is None and self._coming and self._coming[-1].at <= made:
            self._begin(self._coming.pop(), made, ms)

    def _begin(self, change: Change, made: int, ms: int) -> None:
        self._old_U, users = self.world_U.copy(), len(self.world_U)
        self._taste, self._change = "new", change
        base = int(np.bincount(self.world_U).argmax())
        if change.kind == "local" and change.among == "categories":
            count = max(2, round(change.share * len(CATEGORIES)))
            chosen_C = np.zeros(len(CATEGORIES), bool)
            chosen_C[self._rng.permutation(len(CATEGORIES))[:count]] = True
            concerned_U = chosen_C[self._taste_WUF[base]].any(axis=1)
            items = self._catalogue.item_P[chosen_C[self._catalogue.category_P]].tolist()
            names = [name for name, chosen in zip(CATEGORIES, chosen_C, strict=True) if chosen]
            self._truth.changed(change, made, ms, np.flatnonzero(concerned_U).tolist(), items, names)
            self._new = self._another_world(base, chosen_C)
            self.world_U[:] = self._new  # whoever never goes there doesn't notice
        elif change.kind == "local":
            moved = np.sort(self._rng.permutation(users)[: round(change.share * users)])
            self._truth.changed(change, made, ms, moved.tolist(), None, None)
            self._new = self._another_world(base)
            self.world_U[moved] = self._new
        else:
            self._truth.changed(change, made, ms, None, None, None)
            self._new = self._another_world(base)
            if change.kind == "gradual":
                span = change.span()[1] - change.at
                self._moves_at_U = change.at + span * self._rng.permutation(users) / users
        self._go_on(change, made, ms)

    def _go_on(self, change: Change, made: int, ms: int) -> None:
        over = made + 1 >= change.span()[1] if change.until is None else made >= change.until
        if change.kind == "gradual":
            self.world_U[self._moves_at_U <= made] = self._new
        elif change.kind == "sudden":
            self.world_U[:] = self._new
        elif change.kind == "recurring":
            old = over or (made - change.at) // change.period % 2
            self.world_U[:] = self._old_U if old else self._new
            taste = "old" if old else "new"
            if taste != self._taste:
                self._taste = taste
                self._truth.turned(made, ms, taste)
        if over:
            self._truth.change_over(made, ms)
            self._change = None

    def _another_world(self, base: int, chosen_C: Bools | None = None) -> int:
        """Turn favourite categories into others and items' successors into others; None: all of them."""
        rng, categories = self._rng, len(CATEGORIES)
        if chosen_C is None:
            shift = int(1 + rng.integers(categories - 1))  # a shift leaves no category what it was
            order = rng.permutation(categories)
        else:
            order, shift = rng.permutation(np.flatnonzero(chosen_C)), 1
        other = np.arange(categories)
        other[order] = np.roll(order, shift)
        taste_UF, successor_PR = other[self._taste_WUF[base]], self._successor_WPR[base].copy()
        for category in range(categories):
            if chosen_C is None or chosen_C[category]:
                _link(rng, self._catalogue, category, successor_PR)
        self._taste_WUF = np.concatenate((self._taste_WUF, taste_UF[None]))
        self._successor_WPR = np.concatenate((self._successor_WPR, successor_PR[None]))
        return len(self._taste_WUF) - 1


def _link(rng: np.random.Generator, catalogue: Catalogue, category: int, successor_PR: Ints) -> None:
    """Give the items of one category successors, in place."""
    places = np.flatnonzero(catalogue.category_P == category)
    for rank in range(successor_PR.shape[1]):
        circle = rng.permutation(places)
        successor_PR[circle, rank] = np.roll(circle, -1)

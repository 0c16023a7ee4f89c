"""Shoppers who look at lists and click by their true taste; what they click and buy are events as well.

Axes: S = sessions open at a time, V = visits of a round, K = items shown, U = users, P = places of items,
N = clicks, B = events.

Before a step a session may look at a slate. Whose list it shows is drawn by chance once it is clear that the
product has one for the user: the newest of the product, the most popular items of late, or items at random
(both without what the user has met). Every item of a slate is looked at, wherever it stands, and clicked with
a chance that rises with how much the user wants it (`producers.simulator.preferences`), whichever arm shows
it; a click becomes a purchase by the same measure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from producers.simulator.market import TYPES, Bools, Columns, Floats, Ints, item_name, user_name
from producers.simulator.preferences import wishes
from producers.simulator.uplift import ARMS, Uplift
from producers.simulator.users import Shop

CLICK, BUY = TYPES.index("click"), TYPES.index("buy")
RECOMMENDED, POPULAR, RANDOM = range(len(ARMS))
NOTHING, UNKNOWN = -1, -2
TURNS = 64  # sessions that take their turns between two looks at what lists have come


class Listed(NamedTuple):
    """A list for a user, best first, and the time of the newest event that it knows."""

    item_ids: Sequence[str]
    event_ms: int


class Lists(Protocol):
    """Where the product's lists come from."""

    def refresh(self) -> None:
        """Take in what has come."""

    def of(self, user_id: str) -> Listed | None:
        """Return the newest list for a user, or else the one for people without events; None: neither."""


class Visits(NamedTuple):
    """Who looks at what. `place_VK` holds places, `NOTHING` past a list's end, `UNKNOWN` for an item that the
    shop doesn't have."""

    slot_V: Ints
    arm_V: Ints
    place_VK: Ints
    known_ms_V: Ints  # the newest event that the user's list knows, whatever is shown


@dataclass(frozen=True, slots=True)
class Manners:
    """How shoppers deal with a slate. Everything is the same in each arm."""

    shown: int = 10
    """Items of a slate."""
    look: float = 0.15
    """Chance that a session looks at a slate before a step."""
    half: float = 0.1
    """A wish w is clicked with the chance w / (w + half)."""
    buy: float = 0.5
    """A click on it becomes a purchase with this times the same chance."""
    noise: float = 0.05
    """Chance of a noise user's click on anything."""
    half_life: float = 5_000.0
    """Events until one counts half for what is popular."""


MANNERS = Manners()


class ClosedLoop:
    """The visits beside the shop's own steps. `start_ms` is the wall time of the stream's start."""

    def __init__(self, shop: Shop, lists: Lists, uplift: Uplift, seed: int, start_ms: int = 0) -> None:
        self._shop, self._lists, self._uplift, self._manners = shop, lists, uplift, MANNERS
        self._start_ms = start_ms
        self._rng = np.random.default_rng((seed, 4))
        self._queue_S: Ints = self._rng.permutation(shop.market.sessions)
        self._popular_P = np.zeros(shop.market.items)
        self._newest_ms_U = np.full(shop.market.users, -1)
        self._number = {item_name(item): item for item in range(shop.market.items)}

    def rounds(self, events: int) -> Iterator[Columns]:
        """Yield `events` events, some sessions at a time: clicks and purchases on slates, then steps.

        They are made when they are asked for, from the lists of that moment. The sessions take turns, so that
        each one pauses as long between two steps: a list has as long to come.
        """
        made = 0
        while made < events:
            turn_S = self._queue_S[:TURNS]
            clicked = self._visit(turn_S, made, events - made)
            if clicked is not None:
                made += len(clicked.user_B)
                yield self._count(clicked)
            if made < events:
                stepped = self._shop.round(made, events - made, turn_S)
                made += len(stepped.user_B)
                self._queue_S = np.roll(self._queue_S, -len(stepped.user_B))
                yield self._count(stepped)

    def _count(self, columns: Columns) -> Columns:
        """Let the shop's own count of what is popular know."""
        self._popular_P *= 0.5 ** (len(columns.user_B) / self._manners.half_life)
        np.add.at(self._popular_P, self._shop.items.place_of[columns.item_B], 1.0)
        self._newest_ms_U[columns.user_B] = columns.time_ms_B  # each user's last one stays
        return columns

    def _visit(self, turn_S: Ints, made: int, limit: int) -> Columns | None:
        """Show slates to some of these sessions; return what they clicked and bought, None for nothing."""
        self._shop.advance(made)
        self._lists.refresh()
        # at the end of the stream each click must still find room
        visits = self._slates(turn_S, made, limit // (2 * self._manners.shown))
        if not len(visits.slot_V):
            return None
        click_VK, buy_VK = self._answers(visits, made)
        self._tally(visits, click_VK, buy_VK, made)
        return self._events(visits, click_VK, buy_VK)

    def _slates(self, turn_S: Ints, made: int, most: int) -> Visits:
        """Draw who looks, deal out the arms, and lay out what is shown."""
        shop, rng, shown = self._shop, self._rng, self._manners.shown
        slots = turn_S[rng.random(len(turn_S)) < self._manners.look][:most].tolist()
        found = [(slot, self._lists.of(user_name(int(shop.user_S[slot])))) for slot in slots]
        lists = [(slot, listed) for slot, listed in found if listed is not None]
        arm_V = rng.integers(len(ARMS), size=len(lists))
        available = shop.items.available(made)
        known = available[self._popular_P[available] > 0]
        by_popularity = known[np.argsort(-self._popular_P[known], kind="stable")]
        place_VK = np.full((len(lists), shown), -1)
        for visit, (arm, (slot, listed)) in enumerate(zip(arm_V.tolist(), lists, strict=True)):
            if arm == RECOMMENDED:
                numbers = [self._number.get(item_id, -1) for item_id in listed.item_ids[:shown]]
                chosen = np.where(np.array(numbers, np.int64) < 0, UNKNOWN, shop.items.place_of[numbers])
            else:
                order = by_popularity if arm == POPULAR else rng.permutation(available)
                order = order[: shown + shop.REMEMBERED]  # nobody remembers more of them
                chosen = order[~shop.met(shop.user_S[slot, None], order[None])[0]][:shown]
            place_VK[visit, : len(chosen)] = chosen
        slot_V = np.array([slot for slot, _ in lists], np.int64)
        return Visits(slot_V, arm_V, place_VK, np.array([listed.event_ms for _, listed in lists], np.int64))

    def _answers(self, visits: Visits, made: int) -> tuple[Bools, Bools]:
        """Draw what is clicked, and what of that is bought, [V, K] each."""
        shop, rng, manners = self._shop, self._rng, self._manners
        user_V, place_VK = shop.user_S[visits.slot_V], visits.place_VK
        wish_VK = wishes(shop, user_V, shop.item_S[visits.slot_V], place_VK, made)
        chance_VK: Floats = wish_VK / (wish_VK + manners.half)
        chance_VK[shop.noise_U[user_V]] = manners.noise
        chance_VK[(place_VK < 0) | shop.items.gone_P[place_VK]] = 0.0
        click_VK = rng.random(chance_VK.shape) < chance_VK
        return click_VK, click_VK & (rng.random(chance_VK.shape) < manners.buy * chance_VK)

    def _events(self, visits: Visits, click_VK: Bools, buy_VK: Bools) -> Columns | None:
        """Turn clicks and purchases into events; the sessions go on from the last item clicked."""
        shop, visit_N, rank_N = self._shop, *np.nonzero(click_VK)
        if not len(visit_N):
            return None
        place_N, slot_N = visits.place_VK[visit_N, rank_N], visits.slot_V[visit_N]
        for rank in range(click_VK.shape[1]):
            shop.remember(shop.user_S[slot_N[rank_N == rank]], place_N[rank_N == rank])
        each_N = 1 + buy_VK[visit_N, rank_N]  # a click, or a click and a purchase
        slot_B, place_B = np.repeat(slot_N, each_N), np.repeat(place_N, each_N)
        type_B = np.full(len(slot_B), CLICK)
        type_B[(np.cumsum(each_N) - 1)[each_N == 2]] = BUY
        shop.item_S[slot_B], shop.type_S[slot_B] = place_B, type_B  # the last one stays
        time_ms_B = shop.pauses(self._rng, len(slot_B))
        return Columns(
            shop.user_S[slot_B], shop.items.item_P[place_B], type_B, shop.session_S[slot_B], time_ms_B
        )

    def _tally(self, visits: Visits, click_VK: Bools, buy_VK: Bools, made: int) -> None:
        user_V = self._shop.user_S[visits.slot_V]
        shown_V = (visits.place_VK != NOTHING).sum(1)
        counts = (np.ones_like(shown_V), shown_V, click_VK.sum(1), buy_VK.sum(1))
        up_to_date_V = visits.known_ms_V - self._start_ms >= self._newest_ms_U[user_V]
        knowing = int((up_to_date_V & (visits.arm_V == RECOMMENDED)).sum())
        self._uplift.add(made, user_V, visits.arm_V, np.stack(counts, axis=1), knowing)

"""The closed loop: simulated users look at rankings and click by their preferences; clicks are events.

Axes: S = sessions open at a time, V = visits of a round, K = items shown, U = users, P = places of items,
N = clicks, B = events, C = categories, F = favourite categories, R = successors of an item.

Before a step a session may look at a slate. Chance decides which arm of the experiment it shows: the newest
ranking, the most popular or random items (both without consumed ones). The probabilities of a click and of a
purchase depend on the user's preferences alone, not on the arm or the position.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from producers.simulator.events import TYPES, Bools, Columns, Floats, Ints, item_name, user_name
from producers.simulator.preferences import SUCCESSOR_SHARES
from producers.simulator.uplift import ARMS, Uplift
from producers.simulator.users import Sessions

CLICK, BUY = TYPES.index("click"), TYPES.index("buy")
RECOMMENDED, POPULAR, RANDOM = range(len(ARMS))
NO_ITEM, UNKNOWN_ITEM = -1, -2
SLATE_ITEMS = 10
LOOK_PROBABILITY = 0.15  # that a session looks at a slate before a step
HALF_CLICKED = 0.1  # step probability at which an item is clicked with probability 1/2
BUY_FACTOR = 0.5  # a click becomes a purchase with this times the probability of the click
NOISE_CLICK_PROBABILITY = 0.05  # of a noise user, for any item
HALF_LIFE_EVENTS = 5_000.0  # of an event's weight in the popular items
SESSIONS_PER_TURN = 64  # that step between two looks for new rankings


class Listed(NamedTuple):
    """A ranking, best item first, and the time of the newest event that it takes into account."""

    item_ids: Sequence[str]
    event_ms: int


class Lists(Protocol):
    """Where the rankings come from."""

    def refresh(self) -> None:
        """Take in new rankings."""

    def of(self, user_id: str) -> Listed | None:
        """Return the newest ranking of a user, else the default ranking; None: there is neither."""


class Visits(NamedTuple):
    """Slates that are shown."""

    slot_V: Ints
    arm_V: Ints
    place_VK: Ints  # `NO_ITEM` past a slate's end, `UNKNOWN_ITEM` for one that the catalogue doesn't have
    event_ms_V: Ints  # the newest event of the user's ranking, whatever is shown


class ClosedLoop:
    """The visits, between the steps of the sessions. `start_ms` is the wall-clock time of the first event."""

    def __init__(
        self, sessions: Sessions, lists: Lists, uplift: Uplift, seed: int, start_ms: int = 0
    ) -> None:
        self._sessions, self._lists, self._uplift = sessions, lists, uplift
        self._start_ms = start_ms
        self._rng = np.random.default_rng((seed, 4))
        config = sessions.config
        self._queue_S: Ints = self._rng.permutation(config.sessions)
        self._popularity_P = np.zeros(config.items)
        self._newest_ms_U = np.full(config.users, -1)
        places = sessions.items.place_of.tolist()
        self._place = {item_name(item): place for item, place in enumerate(places)}

    def rounds(self, events: int) -> Iterator[Columns]:
        """Yield `events` events, drawn when they are requested, from the rankings of that moment.

        Sessions take turns: each has the same pause between two steps, in which a ranking can arrive.
        """
        made = 0
        while made < events:
            turn_S = self._queue_S[:SESSIONS_PER_TURN]
            clicked = self._visit(turn_S, made, events - made)
            if clicked is not None:
                made += len(clicked.user_B)
                yield self._count(clicked)
            if made < events:
                stepped = self._sessions.round(made, events - made, turn_S)
                made += len(stepped.user_B)
                self._queue_S = np.roll(self._queue_S, -len(stepped.user_B))
                yield self._count(stepped)

    def _count(self, columns: Columns) -> Columns:
        """Count events towards the popular items and each user's newest event time."""
        self._popularity_P *= 0.5 ** (len(columns.user_B) / HALF_LIFE_EVENTS)
        np.add.at(self._popularity_P, self._sessions.items.place_of[columns.item_B], 1.0)
        self._newest_ms_U[columns.user_B] = columns.time_ms_B  # the last one of each user stays
        return columns

    def _visit(self, turn_S: Ints, made: int, limit: int) -> Columns | None:
        """Show slates to some of these sessions; return the clicks and purchases, None for none."""
        self._sessions.advance(made)
        self._lists.refresh()
        # every click must fit into the stream
        visits = self._slates(turn_S, made, limit // (2 * SLATE_ITEMS))
        if not len(visits.slot_V):
            return None
        click_VK, buy_VK = self._draw_clicks(visits, made)
        self._add_to_uplift(visits, click_VK, buy_VK, made)
        return self._events(visits, click_VK, buy_VK)

    def _slates(self, turn_S: Ints, made: int, limit: int) -> Visits:
        """Draw which sessions look at a slate, at most `limit`, and the arm of each; fill the slates."""
        sessions, rng = self._sessions, self._rng
        slots = turn_S[rng.random(len(turn_S)) < LOOK_PROBABILITY][:limit].tolist()
        found = [(slot, self._lists.of(user_name(int(sessions.user_S[slot])))) for slot in slots]
        lists = [(slot, listed) for slot, listed in found if listed is not None]
        arm_V = rng.integers(len(ARMS), size=len(lists))
        available = sessions.items.available(made)
        counted = available[self._popularity_P[available] > 0]
        by_popularity = counted[np.argsort(-self._popularity_P[counted], kind="stable")]
        place_VK = np.full((len(lists), SLATE_ITEMS), NO_ITEM)
        for visit, (arm, (slot, listed)) in enumerate(zip(arm_V.tolist(), lists, strict=True)):
            if arm == RECOMMENDED:
                chosen = [self._place.get(item_id, UNKNOWN_ITEM) for item_id in listed.item_ids[:SLATE_ITEMS]]
            else:
                order = by_popularity if arm == POPULAR else rng.permutation(available)
                order = order[: SLATE_ITEMS + sessions.REMEMBERED]
                consumed = sessions.consumed(sessions.user_S[slot, None], order[None])[0]
                chosen = order[~consumed][:SLATE_ITEMS]
            place_VK[visit, : len(chosen)] = chosen
        slot_V = np.array([slot for slot, _ in lists], np.int64)
        return Visits(slot_V, arm_V, place_VK, np.array([listed.event_ms for _, listed in lists], np.int64))

    def _draw_clicks(self, visits: Visits, made: int) -> tuple[Bools, Bools]:
        """Draw which items are clicked and which of these are bought, [V, K] each."""
        sessions, rng, place_VK = self._sessions, self._rng, visits.place_VK
        user_V = sessions.user_S[visits.slot_V]
        step_VK = step_probabilities(sessions, user_V, sessions.item_S[visits.slot_V], place_VK, made)
        chance_VK: Floats = step_VK / (step_VK + HALF_CLICKED)
        chance_VK[sessions.noise_U[user_V]] = NOISE_CLICK_PROBABILITY
        chance_VK[(place_VK < 0) | sessions.items.retired_P[place_VK]] = 0.0
        click_VK = rng.random(chance_VK.shape) < chance_VK
        return click_VK, click_VK & (rng.random(chance_VK.shape) < BUY_FACTOR * chance_VK)

    def _events(self, visits: Visits, click_VK: Bools, buy_VK: Bools) -> Columns | None:
        """Return clicks and purchases as events; sessions continue from the last item clicked."""
        sessions, visit_N, rank_N = self._sessions, *np.nonzero(click_VK)
        if not len(visit_N):
            return None
        place_N, slot_N = visits.place_VK[visit_N, rank_N], visits.slot_V[visit_N]
        for rank in range(click_VK.shape[1]):
            sessions.consume(sessions.user_S[slot_N[rank_N == rank]], place_N[rank_N == rank])
        each_N = 1 + buy_VK[visit_N, rank_N]  # a click, or a click and a purchase
        slot_B, place_B = np.repeat(slot_N, each_N), np.repeat(place_N, each_N)
        type_B = np.full(len(slot_B), CLICK)
        type_B[(np.cumsum(each_N) - 1)[each_N == 2]] = BUY
        sessions.item_S[slot_B], sessions.type_S[slot_B] = place_B, type_B  # the last one stays
        time_ms_B = sessions.event_times(self._rng, len(slot_B))
        item_B = sessions.items.item_P[place_B]
        return Columns(sessions.user_S[slot_B], item_B, type_B, sessions.session_S[slot_B], time_ms_B)

    def _add_to_uplift(self, visits: Visits, click_VK: Bools, buy_VK: Bools, made: int) -> None:
        user_V = self._sessions.user_S[visits.slot_V]
        shown_V = (visits.place_VK != NO_ITEM).sum(1)
        counts = (np.ones_like(shown_V), shown_V, click_VK.sum(1), buy_VK.sum(1))
        up_to_date_V = visits.event_ms_V - self._start_ms >= self._newest_ms_U[user_V]
        up_to_date = int((up_to_date_V & (visits.arm_V == RECOMMENDED)).sum())
        self._uplift.add(made, user_V, visits.arm_V, np.stack(counts, axis=1), up_to_date)


def step_probabilities(sessions: Sessions, user_V: Ints, last_V: Ints, place_VK: Ints, made: int) -> Floats:
    """Return the probability that each user's next step goes to each item, as `Sessions` draws it, [V, K].

    `last_V`: the last items, -1: none. 0 for a consumed or unavailable item, for -1, and for noise users.
    """
    items, config = sessions.items, sessions.config
    arrived_C = items.arrived(made)
    category_VK = items.category_P[place_VK]
    within_C = items.cumulative[items.first_C + arrived_C] - items.cumulative[items.first_C]
    share_VK = items.weight_P[place_VK] / within_C[category_VK]  # of its category
    favourite_VF = sessions.preferences.favourites(user_V)
    liked_VKF = category_VK[:, :, None] == favourite_VF[:, None, :]
    taste_VK = (liked_VKF * sessions.favourite_shares(favourite_VF)[:, None, :]).sum(axis=2) * share_VK
    trend_VK = sessions.trend_shares()[category_VK] * share_VK
    next_VR = np.where(last_V[:, None] < 0, -1, sessions.preferences.successors(user_V, last_V))
    follow_VK = ((place_VK[:, :, None] == next_VR[:, None, :]) * np.array(SUCCESSOR_SHARES)).sum(axis=2)
    follow_V1 = np.where(last_V < 0, 0.0, config.follow)[:, None]
    step_VK = follow_V1 * follow_VK + (1 - follow_V1) * taste_VK
    step_VK = config.trend * trend_VK + (1 - config.trend) * step_VK
    for active in sessions.seasonality.bursts:
        of_item = active.burst.kind == "item"
        burst_VK = place_VK == active.target if of_item else (category_VK == active.target) * share_VK
        step_VK = (1 - active.burst.share) * step_VK + active.burst.share * burst_VK
    rank_VK = place_VK - items.first_C[category_VK]
    possible_VK = (place_VK >= 0) & (rank_VK < arrived_C[category_VK]) & ~items.retired_P[place_VK]
    possible_VK &= ~sessions.consumed(user_V, place_VK) & ~sessions.noise_U[user_V][:, None]
    return np.where(possible_VK, step_VK, 0.0)

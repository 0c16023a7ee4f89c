"""Made-up shoppers: as many events as are asked for, the same for the same seed.

Axes: B = events of a chunk, S = sessions open at a time, J = items tried for one step, U = users, P = places
of items, C = categories, F = favourite categories of a user, R = successors of an item, H = items a user
remembers.

A few sessions are open at any time and each takes one step a round, so that a round is a handful of array
operations. A step goes to a likely successor of the last item, or to an item of the user's taste, or to what
is popular everywhere; now and then it takes the last item further down the funnel instead. Users and items
arrive over time. What else happens is for a `Plan` to say.
"""

from collections.abc import Iterator

import numpy as np

from producers.simulator.items import Catalogue
from producers.simulator.market import (
    CATEGORIES,
    MARKET,
    TYPES,
    Bools,
    Columns,
    Floats,
    Ints,
    Market,
    ShopEvent,
    item_name,
    user_name,
    wire_events,
)
from producers.simulator.plan import NO_PLAN, Burst, Change, Plan, Season
from producers.simulator.seasonality import DAY_HOURS, HOUR_MS, Rhythm
from producers.simulator.tastes import SUCCESSOR_SHARES, TASTE_SHARES, Tastes, favourites, linked
from producers.simulator.truth import Truth

__all__ = [
    "CATEGORIES", "TYPES", "Burst", "Change", "Columns", "Market", "Plan", "Season", "Shop", "ShopEvent",
    "Truth", "item_name", "shoppers", "span_ms", "user_name", "wire_events",
]  # fmt: skip


def shoppers(
    events: int,
    seed: int,
    change_at: int | None = None,
    market: Market | None = None,
    chunk: int = 8_192,
    *,
    plan: Plan = NO_PLAN,
    truth: Truth | None = None,
) -> Iterator[Columns]:
    """Yield `events` events in chunks of about `chunk`; the same events for the same seed, however cut.

    From event number `change_at` (counted from 0) on, tastes and successors are others; None: never. It is
    short for the plan of one sudden change; `plan` says what else is to happen. What did happen is written
    into `truth` on the way. Raise ValueError when both `change_at` and `plan` are given.
    """
    if change_at is not None and plan != NO_PLAN:
        raise ValueError(f"change_at {change_at}: expected it in the plan, as Change('sudden', {change_at})")
    if change_at is not None:
        plan = Plan((Change("sudden", change_at),))
    shop = Shop(market or MARKET, events, seed, plan, Truth() if truth is None else truth)
    made, rounds, waiting = 0, [], 0
    while made < events:
        rounds.append(shop.round(made, events - made))
        made, waiting = made + len(rounds[-1].user_B), waiting + len(rounds[-1].user_B)
        if waiting >= chunk or made == events:
            yield Columns(*(np.concatenate(column) for column in zip(*rounds, strict=True)))
            rounds, waiting = [], 0


def span_ms(events: int, market: Market, plan: Plan = NO_PLAN) -> int:
    """Return for how long about a stream lasts, in its own time.

    >>> span_ms(3_200, Market(sessions=128, pause_s=40))
    1000000
    """
    if plan.season is not None:
        return int(plan.season.days * DAY_HOURS * HOUR_MS)
    return int(events * market.pause_s * 1000 / market.sessions)


class Shop:
    """The open sessions and everything that the next step depends on.

    Items are places of the catalogue here; only what leaves has their numbers.
    """

    TRIES = 8  # J: items tried before a step puts up with one that the user has met
    REMEMBERED = 256  # H: items that a user doesn't meet again

    def __init__(self, market: Market, events: int, seed: int, plan: Plan, truth: Truth) -> None:
        self.rng = np.random.default_rng(seed)
        self.market, self.plan = market, plan
        self.time_ms = 0.0
        self.step_ms = span_ms(events, market, plan) / max(1, events)  # mean time between two events
        self.items = Catalogue(self.rng, market, events, seed, plan.retire, truth)
        successor_PR = linked(self.rng, self.items)
        self._invite_users(events)
        taste_UF = favourites(self.rng, self.items, market.users)
        self.tastes = Tastes(self.rng, self.items, taste_UF, successor_PR, plan.changes, truth)
        self.rhythm = Rhythm(plan, self.items, seed, truth)
        self.noise_U = self._noise_users(seed, truth)
        self.session_S = np.arange(market.sessions)
        self.user_S = self.rng.permutation(self.arrived_users(0))[: market.sessions]
        self.busy_U = np.zeros(market.users, bool)
        self.busy_U[self.user_S] = True
        self.item_S = np.full(market.sessions, -1)
        self.type_S = np.zeros(market.sessions, np.int64)
        self.next_session = market.sessions

    def _invite_users(self, events: int) -> None:
        rng, n = self.rng, self.market.users
        self.user_arrival = np.sort(np.where(rng.random(n) < 0.25, 0.0, rng.random(n) * events))
        self.user_arrival[: 2 * self.market.sessions] = 0.0  # enough for the sessions that are open at once
        self.activity = np.cumsum(rng.lognormal(0.0, 0.8, n))
        self.met_UH = np.full((n, self.REMEMBERED), -1, np.int32)
        self.met_count = np.zeros(n, np.int64)

    def _noise_users(self, seed: int, truth: Truth) -> Bools:
        users = self.market.users
        noise_U = np.zeros(users, bool)
        chosen = np.random.default_rng((seed, 3)).permutation(users)[: round(self.plan.noise_users * users)]
        noise_U[chosen] = True
        truth.noise_users.extend(np.sort(chosen).tolist())
        return noise_U

    def arrived_users(self, made: int) -> int:
        """Return how many users have come."""
        return int(np.searchsorted(self.user_arrival, made, side="right"))

    def advance(self, made: int) -> None:
        """Let happen what is due before event number `made`."""
        ms = int(self.time_ms)
        self.items.advance(made, ms)
        self.tastes.advance(made, ms)
        self.rhythm.advance(made, ms)

    def round(self, made: int, limit: int, turn_S: Ints | None = None) -> Columns:
        """Let open sessions take one step each, `limit` of them at most; `made` events have been before.

        `turn_S`: whose turn it is; None: everybody's, in an order drawn by chance.
        """
        self.advance(made)
        turn = self.plan.next_turn(made)  # no round crosses it, so that it falls on the very event
        rng, market = self.rng, self.market
        turn_S = rng.permutation(market.sessions) if turn_S is None else turn_S
        turn_S = turn_S[: limit if turn is None else min(limit, turn - made)]
        user_S, last_S = self.user_S[turn_S], self.item_S[turn_S]
        deeper_S = (
            (rng.random(len(turn_S)) < market.deeper) & (last_S >= 0) & (self.type_S[turn_S] < len(TYPES) - 1)
        )
        deeper_S &= ~self.items.gone_P[last_S] & ~self.noise_U[user_S]
        item_S = np.where(deeper_S, last_S, self._choose(user_S, last_S, made))
        fresh_S = (rng.random(len(turn_S)) < 0.4).astype(np.int64)  # a view, or a click at once
        deep_S = self.type_S[turn_S] + 1 + (rng.random(len(turn_S)) < 0.3)
        type_S = np.where(deeper_S, np.minimum(deep_S, len(TYPES) - 1), fresh_S)
        self.remember(user_S[~deeper_S], item_S[~deeper_S])
        self.item_S[turn_S], self.type_S[turn_S] = item_S, type_S
        columns = Columns(
            user_S,
            self.items.item_P[item_S],
            type_S,
            self.session_S[turn_S],
            self.pauses(rng, len(turn_S)),
        )
        self._replace(turn_S[rng.random(len(turn_S)) < market.leave], made)
        return columns

    def pauses(self, rng: np.random.Generator, events: int) -> Ints:
        """Let time pass for so many events; return when each happens, ms since the start, [B]."""
        pauses_ms = rng.exponential(self.step_ms / self.rhythm.pace(self.time_ms), events).cumsum()
        time_ms_B: Ints = (self.time_ms + pauses_ms).astype(np.int64)
        self.time_ms += float(pauses_ms[-1])
        return time_ms_B

    def _choose(self, user_S: Ints, last_S: Ints, made: int) -> Ints:
        """Return each session's next item: the first of a few tries that is there and new to the user."""
        items, there_C = self.items, self.items.there(made)
        try_SJ = self._tries(user_S, last_S, there_C)
        there_SJ = try_SJ - items.first_C[items.category_P[try_SJ]] < there_C[items.category_P[try_SJ]]
        there_SJ &= ~items.gone_P[try_SJ]
        good_SJ = there_SJ & ~self.met(user_S, try_SJ)
        first_S = np.argmax(good_SJ, axis=1)
        # Whoever has met all of them takes the last, drawn by taste and so surely there, or its category's
        # first item, which never goes.
        last_try_S = try_SJ[:, -1]
        fallback_S = np.where(
            items.gone_P[last_try_S], items.first_C[items.category_P[last_try_S]], last_try_S
        )
        chosen_S = np.where(good_SJ.any(axis=1), try_SJ[np.arange(len(user_S)), first_S], fallback_S)
        noise_S = self.noise_U[user_S]
        if noise_S.any():
            chosen_S[noise_S] = self.rng.choice(items.available(made), int(noise_S.sum()))
        return chosen_S

    def _tries(self, user_S: Ints, last_S: Ints, there_C: Ints) -> Ints:
        """Draw places that each session would go to, the first wish first, [S, J]."""
        rng, tries, items = self.rng, self.TRIES, self.items
        category_SJ = self._favourites(user_S)
        trend_S = rng.random(len(user_S)) < self.market.trend
        lure = np.cumsum(self.trend_shares())[:-1]
        category_SJ[trend_S] = np.searchsorted(lure, rng.random((int(trend_S.sum()), tries)))
        fashions = [(hot, rng.random(len(user_S)) < hot.burst.share) for hot in self.rhythm.fashions]
        for hot, hot_S in fashions:
            if hot.burst.kind == "category":
                category_SJ[hot_S] = hot.target
        low_SJ = items.cumulative[items.first_C[category_SJ]]
        high_SJ = items.cumulative[items.first_C[category_SJ] + there_C[category_SJ]]
        drawn_SJ = low_SJ + rng.random(low_SJ.shape) * (high_SJ - low_SJ)
        try_SJ: Ints = np.searchsorted(items.cumulative, drawn_SJ, side="right") - 1
        follow_S = (rng.random(len(user_S)) < self.market.follow) & (last_S >= 0) & ~trend_S
        ranks = len(SUCCESSOR_SHARES)
        # exponential races: the order in which weighted draws without putting back would come
        races_SR = rng.exponential(1.0, (len(user_S), ranks)) / np.array(SUCCESSOR_SHARES)
        next_SR = np.take_along_axis(
            self.tastes.successors(user_S, last_S), np.argsort(races_SR, axis=1), axis=1
        )
        for hot, hot_S in fashions:
            follow_S &= ~hot_S
            if hot.burst.kind == "item":
                try_SJ[hot_S, 0] = hot.target
        try_SJ[follow_S, :ranks] = next_SR[follow_S]
        return try_SJ

    def _favourites(self, user_S: Ints) -> Ints:
        """Draw favourite categories of each user, [S, J]."""
        taste_SF = self.tastes.of(user_S)
        draw_SJ = self.rng.random((len(user_S), self.TRIES))
        if self.rhythm.lure(self.time_ms) is None:
            favourite_SJ = np.searchsorted(np.cumsum(TASTE_SHARES)[:-1], draw_SJ)
        else:
            borders_SF = np.cumsum(self.taste_shares(taste_SF), axis=1)[:, :-1]
            favourite_SJ = (draw_SJ[:, :, None] > borders_SF[:, None, :]).sum(axis=2)
        return np.take_along_axis(taste_SF, favourite_SJ, axis=1)

    def taste_shares(self, taste_SF: Ints) -> Floats:
        """Return how much each favourite category draws its user at this hour; rows sum to 1, [S, F]."""
        lure_C = self.rhythm.lure(self.time_ms)
        shares_SF = np.broadcast_to(TASTE_SHARES, taste_SF.shape)
        if lure_C is not None:
            shares_SF = shares_SF * lure_C[taste_SF]
        return np.asarray(shares_SF / shares_SF.sum(axis=1, keepdims=True))

    def trend_shares(self) -> Floats:
        """Return how much each category draws everybody at this hour; they sum to 1, [C]."""
        lure_C = self.rhythm.lure(self.time_ms)
        weight_C = self.items.category_weight if lure_C is None else self.items.category_weight * lure_C
        return np.asarray(weight_C / weight_C.sum())

    def met(self, user_S: Ints, place_SK: Ints) -> Bools:
        """Say which of the items each user has met, of those it remembers, [S, K]."""
        most = int(self.met_count[user_S].max(initial=0))  # the rest of the columns is empty for all of them
        met_SK: Bools = (place_SK[:, :, None] == self.met_UH[user_S, None, :most]).any(axis=2)
        return met_SK

    def remember(self, user_S: Ints, place_S: Ints) -> None:
        """Note that each user, no user twice, has met an item."""
        self.met_UH[user_S, self.met_count[user_S] % self.REMEMBERED] = place_S
        self.met_count[user_S] += 1

    def _replace(self, gone_S: Ints, made: int) -> None:
        """Close sessions and open one each, of a user who is in no other."""
        self.busy_U[self.user_S[gone_S]] = False
        there = self.arrived_users(made)
        for slot in gone_S.tolist():
            user = -1
            while user < 0 or self.busy_U[user]:
                user = int(
                    np.searchsorted(self.activity, self.rng.random() * self.activity[there - 1], side="right")
                )
            self.busy_U[user] = True
            self.user_S[slot], self.session_S[slot], self.item_S[slot] = user, self.next_session, -1
            self.next_session += 1

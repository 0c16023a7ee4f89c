"""Simulated users: a stream of events that is the same for the same seed.

Axes: B = events of a chunk, S = sessions open at a time, J = items tried for one step, U = users, P = places
of items, C = categories, F = favourite categories of a user, R = successors of an item, H = items a user
remembers.

A fixed number of sessions is open and each takes one step a round: to a likely successor of the last item, to
an item of the user's favourite categories, or to a generally popular item; sometimes the last item goes
further down the funnel. Users and items arrive over time. A `Plan` defines what else happens.
"""

from collections.abc import Iterator

import numpy as np

from producers.simulator.catalogue import Catalogue
from producers.simulator.events import DEFAULT_CONFIG, TYPES, Bools, Columns, Floats, Ints, SimulatorConfig
from producers.simulator.plan import NO_PLAN, Plan
from producers.simulator.preferences import (
    FAVOURITE_SHARES,
    SUCCESSOR_SHARES,
    Preferences,
    draw_favourites,
    draw_successors,
)
from producers.simulator.seasonality import DAY_MS, Seasonality
from producers.simulator.truth import Truth


def simulate_users(
    events: int,
    seed: int,
    plan: Plan = NO_PLAN,
    config: SimulatorConfig = DEFAULT_CONFIG,
    chunk: int = 8_192,
    truth: Truth | None = None,
) -> Iterator[Columns]:
    """Yield `events` events in chunks of about `chunk`, which does not affect them; record what happens in
    `truth`."""
    sessions = Sessions(config, events, seed, plan, Truth() if truth is None else truth)
    made, yielded, rounds = 0, 0, []
    while made < events:
        rounds.append(sessions.round(made, events - made))
        made += len(rounds[-1].user_B)
        if made - yielded >= chunk or made == events:
            yield Columns(*(np.concatenate(column) for column in zip(*rounds, strict=True)))
            yielded, rounds = made, []


def span_ms(events: int, config: SimulatorConfig, plan: Plan = NO_PLAN) -> int:
    """Return the approximate length of a stream in event time.

    >>> span_ms(3_200, SimulatorConfig(sessions=128, pause_s=40))
    1000000
    """
    if plan.season is not None:
        return int(plan.season.days * DAY_MS)
    return int(events * config.pause_s * 1000 / config.sessions)


class Sessions:
    """The open sessions and everything that their next steps depend on.

    Items are places of the catalogue; the events that are returned have item numbers.
    """

    TRIES = 8  # J: items tried before a step accepts one that the user has consumed
    REMEMBERED = 256  # H: consumed items that a user doesn't take again

    def __init__(self, config: SimulatorConfig, events: int, seed: int, plan: Plan, truth: Truth) -> None:
        self.rng = np.random.default_rng(seed)
        self.config, self.plan = config, plan
        self.time_ms = 0.0
        self.step_ms = span_ms(events, config, plan) / max(1, events)  # mean time between two events
        self.items = Catalogue(self.rng, config, events, seed, plan.retire, truth)
        successor_PR = draw_successors(self.rng, self.items)
        self._draw_users(events)
        favourite_UF = draw_favourites(self.rng, self.items, config.users)
        self.preferences = Preferences(self.rng, self.items, favourite_UF, successor_PR, plan.changes, truth)
        self.seasonality = Seasonality(plan, self.items, seed, truth)
        self.noise_U = np.zeros(config.users, bool)
        noise = np.random.default_rng((seed, 3)).permutation(config.users)
        self.noise_U[noise[: round(plan.noise_users * config.users)]] = True
        truth.noise_users.extend(np.flatnonzero(self.noise_U).tolist())
        self.session_S = np.arange(config.sessions)
        self.user_S = self.rng.permutation(self.arrived_users(0))[: config.sessions]
        self.busy_U = np.zeros(config.users, bool)
        self.busy_U[self.user_S] = True
        self.item_S = np.full(config.sessions, -1)
        self.type_S = np.zeros(config.sessions, np.int64)
        self.next_session = config.sessions

    def _draw_users(self, events: int) -> None:
        rng, n = self.rng, self.config.users
        self.user_arrival = np.sort(np.where(rng.random(n) < 0.25, 0.0, rng.random(n) * events))
        self.user_arrival[: 2 * self.config.sessions] = 0.0  # enough for the sessions that are open at once
        self.activity = np.cumsum(rng.lognormal(0.0, 0.8, n))
        self.consumed_UH = np.full((n, self.REMEMBERED), -1, np.int32)
        self.consumed_count = np.zeros(n, np.int64)

    def arrived_users(self, made: int) -> int:
        """Return how many users have arrived."""
        return int(np.searchsorted(self.user_arrival, made, side="right"))

    def advance(self, made: int) -> None:
        """Apply what is due before event number `made`."""
        ms = int(self.time_ms)
        self.items.advance(made, ms)
        self.preferences.advance(made, ms)
        self.seasonality.advance(made, ms)

    def round(self, made: int, limit: int, turn_S: Ints | None = None) -> Columns:
        """Take one step in each open session, at most `limit`, after `made` events; return the events.

        `turn_S`: the sessions that take a step; None: all, in random order.
        """
        self.advance(made)
        turn = self.plan.next_turn(made)  # a round ends there, so that changes affect the exact event
        rng, config = self.rng, self.config
        turn_S = rng.permutation(config.sessions) if turn_S is None else turn_S
        turn_S = turn_S[: limit if turn is None else min(limit, turn - made)]
        user_S, last_S = self.user_S[turn_S], self.item_S[turn_S]
        deeper_S = (rng.random(len(turn_S)) < config.deeper) & (last_S >= 0)
        deeper_S &= self.type_S[turn_S] < len(TYPES) - 1
        deeper_S &= ~self.items.retired_P[last_S] & ~self.noise_U[user_S]
        item_S = np.where(deeper_S, last_S, self._choose(user_S, last_S, made))
        first_type_S = (rng.random(len(turn_S)) < 0.4).astype(np.int64)  # a view or a click
        next_type_S = self.type_S[turn_S] + 1 + (rng.random(len(turn_S)) < 0.3)
        type_S = np.where(deeper_S, np.minimum(next_type_S, len(TYPES) - 1), first_type_S)
        self.consume(user_S[~deeper_S], item_S[~deeper_S])
        self.item_S[turn_S], self.type_S[turn_S] = item_S, type_S
        time_ms_B = self.event_times(rng, len(turn_S))
        columns = Columns(user_S, self.items.item_P[item_S], type_S, self.session_S[turn_S], time_ms_B)
        self._replace(turn_S[rng.random(len(turn_S)) < config.leave], made)
        return columns

    def event_times(self, rng: np.random.Generator, events: int) -> Ints:
        """Draw the times of the next events, ms since the start, [B]."""
        mean_ms = self.step_ms / self.seasonality.rate_factor(self.time_ms)
        pauses_ms = rng.exponential(mean_ms, events).cumsum()
        time_ms_B: Ints = (self.time_ms + pauses_ms).astype(np.int64)
        self.time_ms += float(pauses_ms[-1])
        return time_ms_B

    def _choose(self, user_S: Ints, last_S: Ints, made: int) -> Ints:
        """Return each session's next item: the first try that is available and not consumed."""
        items, arrived_C = self.items, self.items.arrived(made)
        try_SJ = self._tries(user_S, last_S, arrived_C)
        category_SJ = items.category_P[try_SJ]
        good_SJ = try_SJ - items.first_C[category_SJ] < arrived_C[category_SJ]
        good_SJ &= ~items.retired_P[try_SJ] & ~self.consumed(user_S, try_SJ)
        first_S = np.argmax(good_SJ, axis=1)
        # A user who has consumed all tries takes the last one, which is drawn by preference and has arrived,
        # or the first item of its category, which never retires.
        last_try_S, category_S = try_SJ[:, -1], category_SJ[:, -1]
        fallback_S = np.where(items.retired_P[last_try_S], items.first_C[category_S], last_try_S)
        chosen_S = np.where(good_SJ.any(axis=1), try_SJ[np.arange(len(user_S)), first_S], fallback_S)
        noise_S = self.noise_U[user_S]
        if noise_S.any():
            chosen_S[noise_S] = self.rng.choice(items.available(made), int(noise_S.sum()))
        return chosen_S

    def _tries(self, user_S: Ints, last_S: Ints, arrived_C: Ints) -> Ints:
        """Draw places that each session would go to, in order of preference, [S, J]."""
        rng, tries, items = self.rng, self.TRIES, self.items
        category_SJ = self._draw_favourite_categories(user_S)
        trend_S = rng.random(len(user_S)) < self.config.trend
        upto_C = np.cumsum(self.trend_shares())[:-1]
        category_SJ[trend_S] = np.searchsorted(upto_C, rng.random((int(trend_S.sum()), tries)))
        bursts = [(each, rng.random(len(user_S)) < each.burst.share) for each in self.seasonality.bursts]
        for active, joined_S in bursts:
            if active.burst.kind == "category":
                category_SJ[joined_S] = active.target
        low_SJ = items.cumulative[items.first_C[category_SJ]]
        high_SJ = items.cumulative[items.first_C[category_SJ] + arrived_C[category_SJ]]
        drawn_SJ = low_SJ + rng.random(low_SJ.shape) * (high_SJ - low_SJ)
        try_SJ: Ints = np.searchsorted(items.cumulative, drawn_SJ, side="right") - 1
        follow_S = (rng.random(len(user_S)) < self.config.follow) & (last_S >= 0) & ~trend_S
        ranks = len(SUCCESSOR_SHARES)
        # exponential races give the order of weighted draws without replacement
        races_SR = rng.exponential(1.0, (len(user_S), ranks)) / np.array(SUCCESSOR_SHARES)
        order_SR = np.argsort(races_SR, axis=1)
        next_SR = np.take_along_axis(self.preferences.successors(user_S, last_S), order_SR, axis=1)
        for active, joined_S in bursts:
            follow_S &= ~joined_S
            if active.burst.kind == "item":
                try_SJ[joined_S, 0] = active.target
        try_SJ[follow_S, :ranks] = next_SR[follow_S]
        return try_SJ

    def _draw_favourite_categories(self, user_S: Ints) -> Ints:
        """Draw favourite categories of each user, [S, J]."""
        favourite_SF = self.preferences.favourites(user_S)
        draw_SJ = self.rng.random((len(user_S), self.TRIES))
        upto_SF = np.cumsum(self.favourite_shares(favourite_SF), axis=1)
        chosen_SJ = np.add.reduce([draw_SJ > upto_S[:, None] for upto_S in upto_SF.T[:-1]], dtype=np.int64)
        return np.take_along_axis(favourite_SF, chosen_SJ, axis=1)

    def favourite_shares(self, favourite_SF: Ints) -> Floats:
        """Return the share of each favourite category in its user's steps at this hour, [S, F]."""
        factor_C = self.seasonality.category_factors(self.time_ms)
        shares_SF = np.array(FAVOURITE_SHARES) * factor_C[favourite_SF]
        return np.asarray(shares_SF / shares_SF.sum(axis=1, keepdims=True))

    def trend_shares(self) -> Floats:
        """Return the share of each category in the popular steps of all users at this hour, [C]."""
        weight_C = self.items.category_weight * self.seasonality.category_factors(self.time_ms)
        return np.asarray(weight_C / weight_C.sum())

    def consumed(self, user_S: Ints, place_SK: Ints) -> Bools:
        """Return which of the items each user remembers to have consumed, [S, K]."""
        count = int(self.consumed_count[user_S].max(initial=0))  # the other columns are empty
        consumed_SK: Bools = (place_SK[:, :, None] == self.consumed_UH[user_S, None, :count]).any(axis=2)
        return consumed_SK

    def consume(self, user_S: Ints, place_S: Ints) -> None:
        """Add an item to the consumed items of each user; no user occurs twice."""
        self.consumed_UH[user_S, self.consumed_count[user_S] % self.REMEMBERED] = place_S
        self.consumed_count[user_S] += 1

    def _replace(self, ended_S: Ints, made: int) -> None:
        """Close sessions and open one each for a user without a session."""
        self.busy_U[self.user_S[ended_S]] = False
        total = self.activity[self.arrived_users(made) - 1]
        for slot in ended_S.tolist():
            user = -1
            while user < 0 or self.busy_U[user]:
                user = int(np.searchsorted(self.activity, self.rng.random() * total, side="right"))
            self.busy_U[user] = True
            self.user_S[slot], self.session_S[slot], self.item_S[slot] = user, self.next_session, -1
            self.next_session += 1

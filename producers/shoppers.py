"""Made-up shoppers: as many events as are asked for, the same for the same seed.

Axes: B = events of a chunk, S = sessions open at a time, J = items tried for one step, U = users, I = items,
C = categories, R = successors of an item, H = items a user remembers.

A few sessions are open at any time and each takes one step a round, so that a round is a handful of array
operations. A step goes to a likely successor of the last item, or to an item of the user's taste, or to what
is popular everywhere; now and then it takes the last item further down the funnel instead. Users and items
arrive over time. At `change_at` everyone's taste and every item's successors become others, once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

TYPES = ("view", "click", "like", "cart", "buy")
CATEGORIES = (
    "art", "baby", "bikes", "books", "camera", "coffee", "films", "fishing", "garden", "guitar", "hiking",
    "kitchen", "lamps", "music", "paint", "pets", "phones", "puzzles", "running", "sewing", "shoes", "tea",
    "tools", "yoga",
)  # fmt: skip

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Market:
    """What the shoppers are like. The defaults are the demo's."""

    users: int = 2_000
    """People who come in the end; a quarter of them are there at the start."""
    items: int = 2_000
    """Items in the end; six of ten are there at the start."""
    sessions: int = 128
    """Sessions open at a time."""
    follow: float = 0.55
    """Chance that a step goes to a successor of the last item."""
    trend: float = 0.1
    """Chance that a step goes to what is popular everywhere."""
    deeper: float = 0.08
    """Chance that a step takes the last item further down the funnel."""
    leave: float = 0.1
    """Chance that a step was the last of its session."""
    pause_s: float = 40.0
    """Mean event time between two steps of a session."""

    def __post_init__(self) -> None:
        """Raise ValueError for a market in which no session can take its steps."""
        if not self.users >= 2 * self.sessions >= 2:
            raise ValueError(
                f"users {self.users}: expected at least twice the sessions open at a time ({self.sessions})"
            )
        if self.items < 2 * len(CATEGORIES):
            raise ValueError(f"items {self.items}: expected at least {2 * len(CATEGORIES)}, two a category")


class Columns(NamedTuple):
    """Consecutive events; users, items, types and sessions by number, event time in ms since the start."""

    user_B: Ints
    item_B: Ints
    type_B: Ints
    session_B: Ints
    time_ms_B: Ints


class ShopEvent(msgspec.Struct, frozen=True):
    """One event as it lies on the wire."""

    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int
    session_id: str


def shoppers(
    events: int, seed: int, change_at: int | None = None, market: Market | None = None, chunk: int = 8_192
) -> Iterator[Columns]:
    """Yield `events` events in chunks of about `chunk`; the same events for the same seed, however cut.

    From event number `change_at` (counted from 0) on, tastes and successors are others; None: never.
    """
    stream = _Shoppers(market or Market(), events, seed)
    made, rounds, waiting = 0, [], 0
    while made < events:
        if made == change_at:
            stream.change_taste()
        # No round crosses the change, so that it falls on the very event that was asked for.
        border = change_at if change_at is not None and made < change_at else events
        rounds.append(stream.round(made, min(events, border) - made))
        made, waiting = made + len(rounds[-1].user_B), waiting + len(rounds[-1].user_B)
        if waiting >= chunk or made == events:
            yield Columns(*(np.concatenate(column) for column in zip(*rounds, strict=True)))
            rounds, waiting = [], 0


def wire_events(columns: Columns, start_ms: int) -> Iterator[ShopEvent]:
    """Yield the events of a chunk with ids as text and event times counted from `start_ms`."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for user, item, kind, session, time_ms in rows:
        category = CATEGORIES[item % len(CATEGORIES)]
        item_id = f"{category}-{item // len(CATEGORIES)}"
        yield ShopEvent(f"shopper-{user}", item_id, TYPES[kind], start_ms + time_ms, f"s{session}")


class _Shoppers:
    """The open sessions and everything that the next step depends on."""

    TRIES = 8  # J: items tried before a step puts up with one that the user has met
    REMEMBERED = 256  # H: items that a user doesn't meet again
    SUCCESSOR_SHARES = (0.65, 0.25, 0.10)
    TASTE_SHARES = (0.6, 0.25, 0.15)  # of a user's favourite categories

    def __init__(self, market: Market, events: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.market = market
        self.time_ms = 0.0
        self._open_shop(events)
        self._invite_users(events)
        self.session_S = np.arange(market.sessions)
        self.user_S = self.rng.permutation(self.arrived_users(0))[: market.sessions]
        self.busy_U = np.zeros(market.users, bool)
        self.busy_U[self.user_S] = True
        self.item_S = np.full(market.sessions, -1)
        self.type_S = np.zeros(market.sessions, np.int64)
        self.next_session = market.sessions

    def _open_shop(self, events: int) -> None:
        """Lay the items out by category and, within it, by arrival: those there are the head of each stretch.

        A place is an item's position in this layout; item numbers deal the categories out in turn.
        """
        rng, n, categories = self.rng, self.market.items, len(CATEGORIES)
        self.place_category = np.sort(np.arange(n) % categories)
        within = np.arange(n) - np.searchsorted(self.place_category, self.place_category)
        self.place_item = self.place_category + categories * within
        arrival = np.where(rng.random(n) < 0.6, 0.0, rng.random(n) * events)
        arrival[within == 0] = 0.0  # no category is ever empty
        self.place_arrival = arrival[np.lexsort((arrival, self.place_category))]
        weight = 1.0 / (1 + rng.permutation(n)) ** 0.8
        self.cumulative = np.concatenate(([0.0], np.cumsum(weight)))
        self.first_C = np.searchsorted(self.place_category, np.arange(categories))
        self.category_weight = np.add.reduceat(weight, self.first_C)
        self._link_items()

    def _link_items(self) -> None:
        """Give every item other successors: in each category one random circle for each rank."""
        ranks = len(self.SUCCESSOR_SHARES)
        self.successor_IR = np.empty((self.market.items, ranks), np.int64)
        for places in np.split(np.arange(self.market.items), self.first_C[1:]):
            for rank in range(ranks):
                circle = self.rng.permutation(places)
                self.successor_IR[circle, rank] = np.roll(circle, -1)

    def _invite_users(self, events: int) -> None:
        rng, n, categories = self.rng, self.market.users, len(CATEGORIES)
        self.user_arrival = np.sort(np.where(rng.random(n) < 0.25, 0.0, rng.random(n) * events))
        self.user_arrival[: 2 * self.market.sessions] = 0.0  # enough for the sessions that are open at once
        self.activity = np.cumsum(rng.lognormal(0.0, 0.8, n))
        lure = self.category_weight / self.category_weight.sum()
        self.taste_UC = np.stack(
            [rng.choice(categories, len(self.TASTE_SHARES), replace=False, p=lure) for _ in range(n)]
        )
        self.met_UH = np.full((n, self.REMEMBERED), -1, np.int32)
        self.met_count = np.zeros(n, np.int64)

    def arrived_users(self, made: int) -> int:
        return int(np.searchsorted(self.user_arrival, made, side="right"))

    def change_taste(self) -> None:
        """Turn every favourite category into another one, and every item's successors into others."""
        shift = 1 + self.rng.integers(len(CATEGORIES) - 1)  # a shift leaves no category what it was
        order = self.rng.permutation(len(CATEGORIES))
        other = np.empty_like(order)
        other[order] = np.roll(order, shift)
        self.taste_UC = other[self.taste_UC]
        self._link_items()

    def round(self, made: int, limit: int) -> Columns:
        """Let each open session take one step, `limit` of them at most; `made` events have been before."""
        rng, market = self.rng, self.market
        turn_S = rng.permutation(market.sessions)[:limit]
        user_S, last_S = self.user_S[turn_S], self.item_S[turn_S]
        deeper_S = (
            (rng.random(len(turn_S)) < market.deeper) & (last_S >= 0) & (self.type_S[turn_S] < len(TYPES) - 1)
        )
        item_S = np.where(deeper_S, last_S, self._choose(user_S, last_S, made))
        fresh_S = (rng.random(len(turn_S)) < 0.4).astype(np.int64)  # a view, or a click at once
        deep_S = self.type_S[turn_S] + 1 + (rng.random(len(turn_S)) < 0.3)
        type_S = np.where(deeper_S, np.minimum(deep_S, len(TYPES) - 1), fresh_S)
        self._remember(user_S[~deeper_S], item_S[~deeper_S])
        self.item_S[turn_S], self.type_S[turn_S] = item_S, type_S
        pauses_ms = rng.exponential(1000 * market.pause_s / market.sessions, len(turn_S)).cumsum()
        columns = Columns(
            user_S,
            self.place_item[item_S],
            type_S,
            self.session_S[turn_S],
            (self.time_ms + pauses_ms).astype(np.int64),
        )
        self.time_ms += float(pauses_ms[-1])
        self._replace(turn_S[rng.random(len(turn_S)) < market.leave], made)
        return columns

    def _choose(self, user_S: Ints, last_S: Ints, made: int) -> Ints:
        """Return each session's next item: the first of a few tries that is there and new to the user."""
        rng, tries = self.rng, self.TRIES
        there_C = self._there(made)
        shares = np.cumsum(self.TASTE_SHARES)[:-1]
        favourite_SJ = np.searchsorted(shares, rng.random((len(user_S), tries)))
        category_SJ = np.take_along_axis(self.taste_UC[user_S], favourite_SJ, axis=1)
        trend_S = rng.random(len(user_S)) < self.market.trend
        lure = np.cumsum(self.category_weight / self.category_weight.sum())[:-1]
        category_SJ[trend_S] = np.searchsorted(lure, rng.random((int(trend_S.sum()), tries)))
        low_SJ = self.cumulative[self.first_C[category_SJ]]
        high_SJ = self.cumulative[self.first_C[category_SJ] + there_C[category_SJ]]
        drawn_SJ = low_SJ + rng.random(low_SJ.shape) * (high_SJ - low_SJ)
        try_SJ = np.searchsorted(self.cumulative, drawn_SJ, side="right") - 1
        follow_S = (rng.random(len(user_S)) < self.market.follow) & (last_S >= 0) & ~trend_S
        ranks = len(self.SUCCESSOR_SHARES)
        # exponential races: the order in which weighted draws without putting back would come
        races_SR = rng.exponential(1.0, (len(user_S), ranks)) / np.array(self.SUCCESSOR_SHARES)
        next_SR = np.take_along_axis(self.successor_IR[last_S], np.argsort(races_SR, axis=1), axis=1)
        try_SJ[follow_S, :ranks] = next_SR[follow_S]
        there_SJ = try_SJ - self.first_C[self.place_category[try_SJ]] < there_C[self.place_category[try_SJ]]
        met_SJ = (try_SJ[:, :, None] == self.met_UH[user_S][:, None, :]).any(axis=2)
        first_S = np.argmax(there_SJ & ~met_SJ, axis=1)
        good_S = (there_SJ & ~met_SJ).any(axis=1)
        # Whoever has met all of them takes the last, drawn by taste and so surely there.
        return np.where(good_S, np.take_along_axis(try_SJ, first_S[:, None], axis=1)[:, 0], try_SJ[:, -1])

    def _there(self, made: int) -> Ints:
        """Return how many items of each category have arrived."""
        return np.add.reduceat((self.place_arrival <= made).astype(np.int64), self.first_C)

    def _remember(self, user_S: Ints, item_S: Ints) -> None:
        self.met_UH[user_S, self.met_count[user_S] % self.REMEMBERED] = item_S
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

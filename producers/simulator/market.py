"""The words of the made-up market: what it sells, who comes, and what an event of it looks like."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
Floats = npt.NDArray[np.float64]
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


MARKET = Market()
# Made-up time flies: with so many sessions at once each one still pauses for a second or so between two
# steps, in which a list can be made of the first before the second, as in a shop.
BUSY_MARKET = Market(sessions=512)
PAUSE_S = 1.28  # on the wall's clock between two steps of a session: those of BUSY_MARKET at 400 events/s


def busy_market(rate: float) -> Market:
    """Return a market in which a session pauses as long, whatever the rate: with more people at higher rates.

    >>> busy_market(2_000.0).sessions, busy_market(400.0) == busy_market(0.0) == BUSY_MARKET
    (2560, True)
    """
    sessions = max(round(rate * PAUSE_S), BUSY_MARKET.sessions)
    users = round(BUSY_MARKET.users * sessions / BUSY_MARKET.sessions)
    return replace(BUSY_MARKET, users=users, sessions=sessions)


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


def user_name(user: int) -> str:
    """Return a user's id.

    >>> user_name(7)
    'shopper-7'
    """
    return f"shopper-{user}"


def item_name(item: int) -> str:
    """Return an item's id; item numbers deal the categories out in turn.

    >>> item_name(27)
    'books-1'
    """
    return f"{CATEGORIES[item % len(CATEGORIES)]}-{item // len(CATEGORIES)}"


def wire_events(columns: Columns, start_ms: int) -> Iterator[ShopEvent]:
    """Yield the events of a chunk with ids as text and event times counted from `start_ms`."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for user, item, kind, session, time_ms in rows:
        yield ShopEvent(user_name(user), item_name(item), TYPES[kind], start_ms + time_ms, f"s{session}")

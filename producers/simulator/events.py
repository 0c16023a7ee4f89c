"""What simulated events look like: ids, event types, categories, and the size of the simulation."""

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
class SimulatorConfig:
    """Size and behaviour of the simulated users. The defaults are the demo's."""

    users: int = 2_000
    """Users at the end; a quarter of them are there at the start."""
    items: int = 2_000
    """Items at the end; six of ten are there at the start."""
    sessions: int = 128
    """Sessions open at a time."""
    follow: float = 0.55
    """Probability that a step goes to a successor of the last item."""
    trend: float = 0.1
    """Probability that a step goes to a generally popular item."""
    deeper: float = 0.08
    """Probability that a step takes the last item further down the funnel."""
    leave: float = 0.1
    """Probability that a step ends its session."""
    pause_s: float = 40.0
    """Mean event time between two steps of a session."""

    def __post_init__(self) -> None:
        if not self.users >= 2 * self.sessions >= 2:
            raise ValueError(
                f"users {self.users}: expected at least twice the sessions open at a time ({self.sessions})"
            )
        if self.items < 2 * len(CATEGORIES):
            raise ValueError(f"items {self.items}: expected at least {2 * len(CATEGORIES)}, two a category")


DEFAULT_CONFIG = SimulatorConfig()
# Simulated time runs faster than the wall clock. With this many sessions a session pauses for a second or so
# of wall-clock time between two steps, enough for a ranking of the first step to arrive before the second.
BUSY_CONFIG = SimulatorConfig(sessions=512)
WALL_PAUSE_S = 1.28  # between two steps of a session of BUSY_CONFIG at 400 events/s


def busy_config(rate: float) -> SimulatorConfig:
    """Return a configuration in which sessions pause equally long at any rate, with more users at high rates.

    >>> busy_config(2_000.0).sessions, busy_config(400.0) == busy_config(0.0) == BUSY_CONFIG
    (2560, True)
    """
    sessions = max(round(rate * WALL_PAUSE_S), BUSY_CONFIG.sessions)
    users = round(BUSY_CONFIG.users * sessions / BUSY_CONFIG.sessions)
    return replace(BUSY_CONFIG, users=users, sessions=sessions)


class Columns(NamedTuple):
    """Consecutive events; users, items, types and sessions by number, event time in ms since the start."""

    user_B: Ints
    item_B: Ints
    type_B: Ints
    session_B: Ints
    time_ms_B: Ints


class SimulatedEvent(msgspec.Struct, frozen=True):
    """An event with the fields of its record."""

    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int
    session_id: str


def user_name(user: int) -> str:
    """Return the id of a user.

    >>> user_name(7)
    'shopper-7'
    """
    return f"shopper-{user}"


def item_name(item: int) -> str:
    """Return the id of an item; consecutive item numbers go round the categories.

    >>> item_name(27)
    'books-1'
    """
    return f"{CATEGORIES[item % len(CATEGORIES)]}-{item // len(CATEGORIES)}"


def wire_events(columns: Columns, start_ms: int) -> Iterator[SimulatedEvent]:
    """Yield the events of a chunk with ids as text and event times counted from `start_ms`."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for user, item, kind, session, time_ms in rows:
        yield SimulatedEvent(user_name(user), item_name(item), TYPES[kind], start_ms + time_ms, f"s{session}")

"""What happens to a market and when: changes of taste, bursts, a daily season, retired items, noise.

Event numbers count from 0. A plan says what is to come; `producers.simulator.truth` says what came of it.
"""

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

CHANGES = ("sudden", "gradual", "recurring", "local")
BURSTS = ("rate", "item", "category")
AMONG = ("categories", "shoppers")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of taste: favourite categories become others, and so do the items that follow an item.

    `sudden`: for everybody at once. `gradual`: shopper after shopper, all by `until`. `recurring`: the new
    taste, the old one, the new one ... for `period` events each, the old one from `until` on. `local`: in a
    share of the categories alone, or (`among="shoppers"`) for a share of the shoppers alone.
    """

    kind: str
    at: int
    """The first event that it may touch."""
    until: int | None = None
    """The event by which it is over: needed by gradual, taken by recurring (None: it goes on to the end)."""
    share: float = 0.25
    """Of categories or shoppers; local alone."""
    period: int = 10_000
    """Events until the taste turns again; recurring alone."""
    among: str = "categories"
    """What a local change is local to: categories or shoppers."""

    def __post_init__(self) -> None:
        """Raise ValueError for a change that can't be."""
        _one_of("kind of change", self.kind, CHANGES)
        _one_of("among", self.among, AMONG)
        if self.at < 0 or self.period < 1:
            raise ValueError(
                f"{self.kind}@{self.at}, period {self.period}: expected an event of 0 or more, a period of "
                "1 or more"
            )
        _share(self.kind, self.share)
        if self.until is None and self.kind == "gradual":
            raise ValueError(f"gradual@{self.at}: expected the event by which all have changed: gradual@A..B")
        if self.until is not None and (self.kind in ("sudden", "local") or self.until <= self.at):
            raise ValueError(
                f"{self.kind}@{self.at}..{self.until}: expected an end after the start, of gradual or "
                "recurring alone"
            )

    def span(self) -> tuple[int, float]:
        """Return the first event that it touches, and the one behind the last that is on the move."""
        if self.kind == "recurring":
            return self.at, math.inf if self.until is None else self.until
        return self.at, self.at + 1 if self.until is None else self.until

    def next_turn(self, made: int) -> int | None:
        """Return the next event after number `made` at which it begins, turns or is over; None: none is."""
        first, end = self.span()
        if made < first:
            return first
        if self.kind == "recurring" and (turn := made + self.period - (made - first) % self.period) < end:
            return turn
        return int(end) if made < end < math.inf and self.until is not None else None


@dataclass(frozen=True, slots=True)
class Burst:
    """Something is hot for a while: all come faster (`rate`), or one `item` or one `category` draws many."""

    kind: str
    at: int
    until: int
    factor: float = 5.0
    """How many times as many events a second; rate alone."""
    share: float = 0.3
    """Of the steps that go there; item and category."""

    def __post_init__(self) -> None:
        """Raise ValueError for a burst that can't be."""
        _one_of("kind of burst", self.kind, BURSTS)
        if not 0 <= self.at < self.until:
            raise ValueError(f"{self.kind}@{self.at}..{self.until}: expected an end after the start")
        if not 0 < self.factor < math.inf:
            raise ValueError(f"{self.kind}@{self.at}, factor {self.factor}: expected more than 0")
        _share(self.kind, self.share)


@dataclass(frozen=True, slots=True)
class Season:
    """Days and nights: more is going on in the evening, and each category has an hour of its own.

    The stream is stretched to last `days`, from midnight on.
    """

    days: float = 2.0
    strength: float = 0.6
    """From 0, every hour like the other, to below 1, hardly anybody there at night."""

    def __post_init__(self) -> None:
        """Raise ValueError for a season that can't be."""
        if not (0 < self.days < math.inf and 0 <= self.strength < 1):
            raise ValueError(
                f"season, days {self.days:g}, strength {self.strength:g}: expected days above 0 and a "
                "strength of 0 to below 1"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to happen. The default: nothing, but for users and items arriving as they always do.

    >>> Plan(changes=(Change("recurring", 10, 35, period=10),)).next_turn(21)
    30
    """

    changes: tuple[Change, ...] = ()
    """One after the other: none begins before the one before is over."""
    bursts: tuple[Burst, ...] = ()
    season: Season | None = None
    noise_users: float = 0.0
    """Share of the users who click at random."""
    retire: float = 0.0
    """Share of the items that are withdrawn before the end."""

    def __post_init__(self) -> None:
        """Raise ValueError when two changes overlap or a share is none."""
        _share("noise_users", self.noise_users)
        _share("retire", self.retire)
        ordered = sorted(self.changes, key=lambda change: change.at)
        for before, after in pairwise(ordered):
            if after.at < before.span()[1]:
                raise ValueError(
                    f"changes {before.kind}@{before.at} and {after.kind}@{after.at} overlap: expected the "
                    "first to be over when the second begins"
                )

    def next_turn(self, made: int) -> int | None:
        """Return the next event after number `made` at which something changes at once; None: none does."""
        ends = [event for burst in self.bursts for event in (burst.at, burst.until) if event > made]
        turns = [change.next_turn(made) for change in self.changes]
        return min([*ends, *(turn for turn in turns if turn is not None)], default=None)


def parse_change(text: str) -> Change:
    """Read KIND@EVENT[..EVENT][,period=N][,share=S][,among=shoppers]. Raise ValueError when it is none.

    >>> parse_change("recurring@20000..60000,period=5000")
    Change(kind='recurring', at=20000, until=60000, share=0.25, period=5000, among='categories')
    """
    kind, at, until, extra = _parts(text, Change, ("share", "period", "among"))
    return Change(kind, at, until, **extra)


def parse_burst(text: str) -> Burst:
    """Read KIND@EVENT..EVENT[,factor=X][,share=S]. Raise ValueError when it is none.

    >>> parse_burst("rate@1000..2000,factor=3").factor
    3.0
    """
    kind, at, until, extra = _parts(text, Burst, ("factor", "share"))
    if until is None:
        raise ValueError(f"{text!r}: expected KIND@EVENT..EVENT")
    return Burst(kind, at, until, **extra)


def _parts(text: str, made: type, names: tuple[str, ...]) -> tuple[str, int, int | None, dict[str, Any]]:
    kinds = {field.name: field.type for field in fields(made)}
    head, *options = text.split(",")
    kind, _, when = head.partition("@")
    start, dots, end = when.partition("..")
    extra: dict[str, Any] = {}
    try:
        at, until = int(start), int(end) if dots else None
        for option in options:
            name, _, value = option.partition("=")
            if name not in names:
                raise ValueError(name)
            extra[name] = kinds[name](value)  # type: ignore[operator]  # int, float or str
    except ValueError:
        wanted = "".join(f"[,{name}=...]" for name in names)
        raise ValueError(f"{text!r}: expected KIND@EVENT..EVENT{wanted}") from None
    return kind, at, until, extra


def _one_of(what: str, got: str, expected: tuple[str, ...]) -> None:
    if got not in expected:
        raise ValueError(f"{what} {got!r}: expected one of {', '.join(expected)}")


def _share(what: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{what}, share {share}: expected 0 to 1")


NO_PLAN = Plan()

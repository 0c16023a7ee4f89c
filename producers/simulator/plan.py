"""What happens in a simulation and when: changes of preferences, bursts, a season, retired items, noise.

Event numbers count from 0. `producers.simulator.truth` records what came of a plan.
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
    """A change of preferences: users get other favourite categories, items get other successors.

    `sudden`: for all users at once. `gradual`: user after user, all by `until`. `recurring`: alternates
    between the new and the old preferences every `period` events and ends with the old ones at `until`.
    `local`: for a share of the categories, or (`among="shoppers"`) for a share of the users. ValueError: it
    is impossible.
    """

    kind: str
    at: int
    """The first event that it affects."""
    until: int | None = None
    """The event by which it is over: required by gradual, optional for recurring (None: it never ends)."""
    share: float = 0.25
    """Of the categories or users; local only."""
    period: int = 10_000
    """Events between two turns; recurring only."""
    among: str = "categories"
    """What a local change is limited to: categories or shoppers."""

    def __post_init__(self) -> None:
        _expect_one_of("kind of change", self.kind, CHANGES)
        _expect_one_of("among", self.among, AMONG)
        name = f"{self.kind}@{self.at}"
        _expect(
            self.at >= 0 and self.period >= 1,
            f"{name}, period {self.period}: expected an event of 0 or more, a period of 1 or more",
        )
        _expect_share(self.kind, self.share)
        _expect(
            self.until is not None or self.kind != "gradual",
            f"{name}: expected the event by which all have changed: gradual@A..B",
        )
        _expect(
            self.until is None or (self.kind in ("gradual", "recurring") and self.until > self.at),
            f"{name}..{self.until}: expected an end after the start, and only for gradual or recurring",
        )

    def span(self) -> tuple[int, float]:
        """Return the first event that it affects and the one after the last at which it is in progress."""
        if self.kind == "recurring":
            return self.at, math.inf if self.until is None else self.until
        return self.at, self.at + 1 if self.until is None else self.until

    def next_turn(self, made: int) -> int | None:
        """Return the next event after number `made` at which it begins, turns or ends; None: no further."""
        first, end = self.span()
        if made < first:
            return first
        if self.kind == "recurring" and (turn := made + self.period - (made - first) % self.period) < end:
            return turn
        return int(end) if made < end < math.inf and self.until is not None else None


@dataclass(frozen=True, slots=True)
class Burst:
    """A period with a higher event `rate`, or in which one `item` or one `category` is very popular."""

    kind: str
    at: int
    until: int
    factor: float = 5.0
    """By which the event rate is multiplied; rate only."""
    share: float = 0.3
    """Of the steps that go to the item or category."""

    def __post_init__(self) -> None:
        _expect_one_of("kind of burst", self.kind, BURSTS)
        name = f"{self.kind}@{self.at}"
        _expect(0 <= self.at < self.until, f"{name}..{self.until}: expected an end after the start")
        _expect(0 < self.factor < math.inf, f"{name}, factor {self.factor}: expected more than 0")
        _expect_share(self.kind, self.share)


@dataclass(frozen=True, slots=True)
class Season:
    """Days and nights: the event rate peaks in the evening, and each category at an hour of its own.

    The stream starts at midnight and is stretched to `days`.
    """

    days: float = 2.0
    strength: float = 0.6
    """From 0, all hours equal, to below 1, hardly any events at night."""

    def __post_init__(self) -> None:
        got = f"season, days {self.days:g}, strength {self.strength:g}"
        _expect(0 < self.days < math.inf, f"{got}: expected days above 0")
        _expect(0 <= self.strength < 1, f"{got}: expected a strength of 0 to below 1")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that happens. By default only users and items arrive.

    >>> Plan(changes=(Change("recurring", 10, 35, period=10),)).next_turn(21)
    30
    """

    changes: tuple[Change, ...] = ()
    """None begins before the previous one is over."""
    bursts: tuple[Burst, ...] = ()
    season: Season | None = None
    noise_users: float = 0.0
    """Share of the users who click at random."""
    retire: float = 0.0
    """Share of the items that are withdrawn before the end."""

    def __post_init__(self) -> None:
        _expect_share("noise_users", self.noise_users)
        _expect_share("retire", self.retire)
        for before, after in pairwise(sorted(self.changes, key=lambda change: change.at)):
            _expect(
                after.at >= before.span()[1],
                f"changes {before.kind}@{before.at} and {after.kind}@{after.at} overlap: expected the first "
                "to be over when the second begins",
            )

    def next_turn(self, made: int) -> int | None:
        """Return the next event after number `made` at which anything changes abruptly; None: no further."""
        ends = [event for burst in self.bursts for event in (burst.at, burst.until) if event > made]
        turns = [change.next_turn(made) for change in self.changes]
        return min([*ends, *(turn for turn in turns if turn is not None)], default=None)


def parse_change(text: str) -> Change:
    """Parse KIND@EVENT[..EVENT][,period=N][,share=S][,among=shoppers]. Raise ValueError for other texts.

    >>> parse_change("recurring@20000..60000,period=5000")
    Change(kind='recurring', at=20000, until=60000, share=0.25, period=5000, among='categories')
    """
    return Change(**_parts(text, Change, ("share", "period", "among")))


def parse_burst(text: str) -> Burst:
    """Parse KIND@EVENT..EVENT[,factor=X][,share=S]. Raise ValueError for other texts.

    >>> parse_burst("rate@1000..2000,factor=3").factor
    3.0
    """
    parts = _parts(text, Burst, ("factor", "share"))
    if parts["until"] is None:
        raise ValueError(f"{text!r}: expected KIND@EVENT..EVENT")
    return Burst(**parts)


def _parts(text: str, made: type, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of `made`; `names` are those that may follow as options."""
    types = {field.name: field.type for field in fields(made)}
    head, *options = text.split(",")
    kind, _, when = head.partition("@")
    start, dots, end = when.partition("..")
    try:
        parts: dict[str, Any] = {"kind": kind, "at": int(start), "until": int(end) if dots else None}
        for option in options:
            name, _, value = option.partition("=")
            if name not in names:
                raise ValueError(name)
            parts[name] = types[name](value)  # type: ignore[operator]  # int, float or str
    except ValueError:
        expected = "".join(f"[,{name}=...]" for name in names)
        raise ValueError(f"{text!r}: expected KIND@EVENT..EVENT{expected}") from None
    return parts


def _expect(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)


def _expect_one_of(what: str, got: str, expected: tuple[str, ...]) -> None:
    _expect(got in expected, f"{what} {got!r}: expected one of {', '.join(expected)}")


def _expect_share(what: str, share: float) -> None:
    _expect(0 <= share <= 1, f"{what}, share {share}: expected 0 to 1")


NO_PLAN = Plan()

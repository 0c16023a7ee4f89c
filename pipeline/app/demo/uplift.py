"""What the shoppers make of the lists they see, the product's beside popular and random ones, as the sender
tells it: a JSON object with the counts of each kind of list and the differences between their rates.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

SERVED = "recommended"


class Gap(NamedTuple):
    """By how much a rate of the served lists lies above another's, with its 95 % interval."""

    value: float
    low: float
    high: float


class Arm(NamedTuple):
    """A kind of list: rates per item shown, how far the served ones lie above them; None: not known yet."""

    name: str
    click_rate: float | None
    purchase_rate: float | None
    click_gap: Gap | None = None
    purchase_gap: Gap | None = None


def kept(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the figures of the whole stream, without those by window; None for None."""
    return None if figures is None else {name: part for name, part in figures.items() if name != "windows"}


def arms_of(figures: Mapping[str, Any] | None) -> tuple[Arm, ...]:
    """Return the kinds of lists in a sender's figures, in its order: the served ones first. None has none.

    >>> arms_of({"arms": {"recommended": {"shown": 50, "clicks": 4, "purchases": 0}}})
    (Arm(name='recommended', click_rate=0.08, purchase_rate=0.0, click_gap=None, purchase_gap=None),)
    """
    if figures is None:
        return ()
    arms = []
    for name, counts in figures["arms"].items():
        gaps = figures.get(f"{SERVED}_minus_{name}", {})
        shown = counts["shown"]
        rates = (counts[what] / shown if shown else None for what in ("clicks", "purchases"))
        arms.append(Arm(name, *rates, *(_gap(gaps.get(what)) for what in ("click_rate", "purchase_rate"))))
    return tuple(arms)


def _gap(estimate: list[float] | None) -> Gap | None:
    return None if estimate is None else Gap(*estimate)

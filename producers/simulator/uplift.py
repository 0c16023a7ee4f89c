"""Click and purchase rates of three kinds of slates, with confidence intervals clustered by user.

Axes: U = users, A = arms, M = counts (slates, shown, clicks, purchases).

Rates are per item shown. The variance of a rate, a ratio of sums over users, follows from the delta method
with users as clusters (Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics", KDD 2018). A
difference of two arms combines the residuals of each user, since most users see both. A rate of 0 has no
residuals: its error is that of one hit.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from producers.simulator.events import Bools, Floats, Ints

ARMS = ("recommended", "popular", "random")
COUNTS = ("slates", "shown", "clicks", "purchases")
RATES = {"click_rate": "clicks", "purchase_rate": "purchases"}
NORMAL_95 = 1.96
WINDOWS = 10


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def rate(hits_U: Ints, shown_U: Ints) -> Estimate | None:
    """Return the hits per item shown; None when fewer than two users were shown any.

    >>> rate(np.array([1, 0, 1, 0]), np.array([10, 10, 10, 10])).value
    0.05
    """
    if np.count_nonzero(shown_U) < 2:
        return None
    margin = _margin(_residuals(hits_U, shown_U), shown_U > 0, _min_variance(hits_U, shown_U))
    value = float(hits_U.sum() / shown_U.sum())
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def difference(hits_U: Ints, shown_U: Ints, other_hits_U: Ints, other_shown_U: Ints) -> Estimate | None:
    """Return the rate of one arm minus that of another; None when either has none. All [U].

    >>> same = np.array([1, 0, 2]), np.array([10, 10, 10])
    >>> difference(*same, *same)
    Estimate(value=0.0, low=0.0, high=0.0)
    """
    if min(np.count_nonzero(shown_U), np.count_nonzero(other_shown_U)) < 2:
        return None
    residual_U = _residuals(hits_U, shown_U) - _residuals(other_hits_U, other_shown_U)
    variance = _min_variance(hits_U, shown_U) + _min_variance(other_hits_U, other_shown_U)
    margin = _margin(residual_U, (shown_U > 0) | (other_shown_U > 0), variance)
    value = float(hits_U.sum() / shown_U.sum() - other_hits_U.sum() / other_shown_U.sum())
    return Estimate(value, value - margin, value + margin)


class Uplift:
    """Counts by user and arm, of a stream of so many events and of `WINDOWS` windows of equal length."""

    def __init__(self, users: int, events: int) -> None:
        self._total_UAM = np.zeros((users, len(ARMS), len(COUNTS)), np.int64)
        self._window_UAM = np.zeros_like(self._total_UAM)
        self._length = max(1, -(-events // WINDOWS))
        self._from, self._made = 0, 0
        self._windows: list[dict[str, Any]] = []
        self._up_to_date = 0

    def add(self, made: int, user_V: Ints, arm_V: Ints, counts_VM: Ints, up_to_date: int = 0) -> None:
        """Count visits before event number `made`; `counts_VM` holds `COUNTS` of each.

        `up_to_date`: how many of the recommended rankings knew the newest event of their user.
        """
        while made >= self._from + self._length:
            self._windows.append(self._window(self._from + self._length))
            self._window_UAM[:] = 0
            self._from += self._length
        self._made = max(self._made, made)
        self._up_to_date += up_to_date
        np.add.at(self._total_UAM, (user_V, arm_V), counts_VM)
        np.add.at(self._window_UAM, (user_V, arm_V), counts_VM)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts of each arm so far."""
        return _counts(self._total_UAM)

    def summary(self) -> dict[str, Any]:
        """Return counts and rates of each arm so far, and the differences of the recommended arm.

        A rate is [value, low, high], null where nothing was shown.
        """
        return _summary(self._total_UAM)

    def figures(self) -> dict[str, Any]:
        """Return the summary of the stream and of each window, and the share of up-to-date rankings."""
        slates = int(self._total_UAM[:, 0, 0].sum())
        last = [self._window(self._made + 1)] if self._window_UAM.any() else []
        return {
            "rates": "per item shown",
            "intervals": "95 %, delta method, users as clusters",
            **self.summary(),
            "lists_up_to_date": self._up_to_date / slates if slates else None,
            "windows": [*self._windows, *last],
        }

    def _window(self, end: int) -> dict[str, Any]:
        return {"from_event": self._from, "to_event": end, **_summary(self._window_UAM)}


def lines(figures: dict[str, Any]) -> list[str]:
    """Return Markdown tables of clicks and purchases: a row for each window and one for the total."""
    parts = []
    for name, count in RATES.items():
        parts += [
            f"| events: {count} per 100 shown | {' | '.join(ARMS)} | recommended - popular |",
            "|---" * (len(ARMS) + 2) + "|",
        ]
        for window in [*figures["windows"], figures]:
            total = "from_event" not in window
            span = "all" if total else f"{window['from_event']:,} to {window['to_event']:,}"
            cells = [_percent(window["arms"][arm][name]) for arm in ARMS]
            gap = _percent(window["recommended_minus_popular"][name], "+")
            parts.append("| " + " | ".join([span, *cells, gap]) + " |")
        parts.append("")
    return parts[:-1]


def _percent(estimate: list[float] | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{100 * part:{sign}.2f}" for part in estimate)
    return f"{value} ({low} to {high})"


def _counts(counts_UAM: Ints) -> dict[str, dict[str, int]]:
    sums_AM = counts_UAM.sum(axis=0).tolist()
    return {arm: dict(zip(COUNTS, sums, strict=True)) for arm, sums in zip(ARMS, sums_AM, strict=True)}


def _summary(counts_UAM: Ints) -> dict[str, Any]:
    def pair(arm: int, count: str) -> tuple[Ints, Ints]:
        return counts_UAM[:, arm, COUNTS.index(count)], counts_UAM[:, arm, COUNTS.index("shown")]

    counts = _counts(counts_UAM)
    arms: dict[str, dict[str, Any]] = {
        arm: counts[arm] | {name: _listed(rate(*pair(number, count))) for name, count in RATES.items()}
        for number, arm in enumerate(ARMS)
    }
    gaps = {
        f"recommended_minus_{ARMS[other]}": {
            name: _listed(difference(*pair(0, count), *pair(other, count))) for name, count in RATES.items()
        }
        for other in range(1, len(ARMS))
    }
    return {"arms": arms, **gaps}


def _listed(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [round(part, 6) for part in estimate]


def _residuals(hits_U: Ints, shown_U: Ints) -> Floats:
    """Return each user's part of the rate's deviation from the true rate; they sum to 0."""
    shown = shown_U.sum()
    return np.asarray((hits_U - hits_U.sum() / shown * shown_U) / shown)


def _min_variance(hits_U: Ints, shown_U: Ints) -> float:
    """Return the least variance of a rate of 0; 0 for other rates."""
    return 0.0 if hits_U.any() else float(shown_U.sum()) ** -2


def _margin(residual_U: Floats, seen_U: Bools, min_variance: float) -> float:
    clusters = int(np.count_nonzero(seen_U))
    variance = float((residual_U**2).sum()) * clusters / (clusters - 1) + min_variance
    return NORMAL_95 * math.sqrt(variance)

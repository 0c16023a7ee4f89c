"""What people made of three kinds of lists, with intervals that know that one person's clicks go together.

Axes: U = users, A = arms, M = counts (slates, shown, clicks, purchases).

Rates are per item shown. A rate is a ratio of sums over users, its variance by the delta method with users as
clusters (the linearised residuals of Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics",
KDD 2018); in a difference of two arms each user's residuals of both are taken together, since most users meet
both. Intervals are 95 %: 1.96 standard errors either way. Residuals of a rate of 0 say nothing of its error:
it gets the error of one hit.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from producers.simulator.market import Bools, Floats, Ints

ARMS = ("recommended", "popular", "random")
COUNTS = ("slates", "shown", "clicks", "purchases")
RATES = {"click_rate": "clicks", "purchase_rate": "purchases"}
NORMAL_95 = 1.96
WINDOWS = 10


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

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
    margin = _margin(_residuals(hits_U, shown_U), shown_U > 0, _floor(hits_U, shown_U))
    value = float(hits_U.sum() / shown_U.sum())
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def difference(hits_U: Ints, shown_U: Ints, others_hits_U: Ints, others_shown_U: Ints) -> Estimate | None:
    """Return by how much one arm's rate lies above another's; None when either has none. All [U].

    >>> same = np.array([1, 0, 2]), np.array([10, 10, 10])
    >>> difference(*same, *same)
    Estimate(value=0.0, low=0.0, high=0.0)
    """
    if min(np.count_nonzero(shown_U), np.count_nonzero(others_shown_U)) < 2:
        return None
    residual_U = _residuals(hits_U, shown_U) - _residuals(others_hits_U, others_shown_U)
    floor = _floor(hits_U, shown_U) + _floor(others_hits_U, others_shown_U)
    margin = _margin(residual_U, (shown_U > 0) | (others_shown_U > 0), floor)
    value = float(hits_U.sum() / shown_U.sum() - others_hits_U.sum() / others_shown_U.sum())
    return Estimate(value, value - margin, value + margin)


class Uplift:
    """Counts by user and arm, of the whole stream and of its current window.

    `events` is the length of the stream, which falls into `WINDOWS` of equal length.
    """

    def __init__(self, users: int, events: int) -> None:
        self._whole_UAM = np.zeros((users, len(ARMS), len(COUNTS)), np.int64)
        self._window_UAM = np.zeros_like(self._whole_UAM)
        self._length = max(1, -(-events // WINDOWS))
        self._from, self._made = 0, 0
        self._windows: list[dict[str, Any]] = []
        self._knowing = 0  # recommended slates whose list knew the user's newest event

    def add(self, made: int, user_V: Ints, arm_V: Ints, counts_VM: Ints, knowing: int = 0) -> None:
        """Count visits that took place before event number `made`; `counts_VM` holds `COUNTS` of each.

        `knowing`: how many of the recommended lists knew everything that their user had done.
        """
        while made >= self._from + self._length:
            self._close_window()
        self._made = max(self._made, made)
        self._knowing += knowing
        np.add.at(self._whole_UAM, (user_V, arm_V), counts_VM)
        np.add.at(self._window_UAM, (user_V, arm_V), counts_VM)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts of each arm so far."""
        return _counts(self._whole_UAM)

    def so_far(self) -> dict[str, Any]:
        """Return the whole stream's counts and rates by arm, and the differences, as `figures` has them."""
        return _summary(self._whole_UAM)

    def figures(self) -> dict[str, Any]:
        """Return everything, as JSON values: the whole stream's counts and rates by arm, the differences from
        the recommended ones, the same by window, and the share of up-to-date lists.

        A rate is [value, low, high], null where nothing was shown.
        """
        slates = int(self._whole_UAM[:, 0, 0].sum())
        last = [self._window(self._made + 1)] if self._window_UAM.any() else []
        return {
            "rates": "per item shown",
            "intervals": "95 %, delta method, users as clusters",
            **self.so_far(),
            "lists_up_to_date": self._knowing / slates if slates else None,
            "windows": [*self._windows, *last],
        }

    def _close_window(self) -> None:
        self._windows.append(self._window(self._from + self._length))
        self._window_UAM[:] = 0
        self._from += self._length

    def _window(self, end: int) -> dict[str, Any]:
        return {"from_event": self._from, "to_event": end, **_summary(self._window_UAM)}


def lines(figures: dict[str, Any]) -> list[str]:
    """Return the figures as tables in Markdown, clicks and purchases: a row a window and one for all."""
    parts = []
    for name, count in RATES.items():
        parts += [
            f"| events: {count} per 100 shown | {' | '.join(ARMS)} | recommended - popular |",
            "|---" * (len(ARMS) + 2) + "|",
        ]
        for window in [*figures["windows"], figures]:
            whole = "from_event" not in window
            span = "all" if whole else f"{window['from_event']:,} to {window['to_event']:,}"
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


def _summary(counts_UAM: Ints) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = dict(_counts(counts_UAM))
    for number, arm in enumerate(ARMS):
        for name, count in RATES.items():
            arms[arm] = arms[arm] | {name: _listed(rate(*_pair(counts_UAM, number, count)))}
    gaps = {
        f"recommended_minus_{other}": {
            name: _listed(difference(*_pair(counts_UAM, 0, count), *_pair(counts_UAM, number, count)))
            for name, count in RATES.items()
        }
        for number, other in enumerate(ARMS)
        if number
    }
    return {"arms": arms, **gaps}


def _counts(counts_UAM: Ints) -> dict[str, dict[str, int]]:
    sums_AM = counts_UAM.sum(axis=0).tolist()
    return {arm: dict(zip(COUNTS, sums, strict=True)) for arm, sums in zip(ARMS, sums_AM, strict=True)}


def _pair(counts_UAM: Ints, arm: int, count: str) -> tuple[Ints, Ints]:
    return counts_UAM[:, arm, COUNTS.index(count)], counts_UAM[:, arm, COUNTS.index("shown")]


def _listed(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [round(part, 6) for part in estimate]


def _residuals(hits_U: Ints, shown_U: Ints) -> Floats:
    """Return each user's part in how far the rate is from the true one; they sum to 0."""
    shown = shown_U.sum()
    return np.asarray((hits_U - hits_U.sum() / shown * shown_U) / shown)


def _floor(hits_U: Ints, shown_U: Ints) -> float:
    """Return the variance that a rate of 0 has at least."""
    return 0.0 if hits_U.any() else float(shown_U.sum()) ** -2


def _margin(residual_U: Floats, there_U: Bools, floor: float) -> float:
    clusters = int(np.count_nonzero(there_U))
    return NORMAL_95 * math.sqrt(float((residual_U**2).sum()) * clusters / (clusters - 1) + floor)

"""The state of the demo at one moment, with the uplift of the published lists as the sender measures it.

Axes: M = models, P = points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.records import DriftAlarm, Ranking

Floats = npt.NDArray[np.float64]

SERVED = "recommended"


class ModelMetrics(NamedTuple):
    """A model's metrics over the last tests; None before any test."""

    name: str
    hr: float | None
    ndcg: float | None


class Course(NamedTuple):
    """Hit rates over time, the newest point last: events learned [P], means [M, P], NaN before any test."""

    events_P: Floats
    hr_MP: Floats


class Gap(NamedTuple):
    """The rate of the published lists minus that of another arm, with its 95 % interval."""

    value: float
    low: float
    high: float


class Arm(NamedTuple):
    """A kind of list: its rates per item shown, and the gap of the published lists; None: not known yet."""

    name: str
    click_rate: float | None
    purchase_rate: float | None
    click_gap: Gap | None = None
    purchase_gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The demo at one moment."""

    events: int  # learned, or sent to the dead letters
    total: int | None  # to come in all; None: not known
    events_per_s: float
    lag: int
    p50_ms: float | None
    p99_ms: float | None
    models: tuple[ModelMetrics, ...]
    course: Course
    change_at: int | None  # the event at which preferences change; None: never
    alarms: tuple[DriftAlarm, ...]
    arms: tuple[Arm, ...]  # empty without a closed loop
    ranking: Ranking | None


def arms_of(uplift: Mapping[str, Any] | None) -> tuple[Arm, ...]:
    """Return the arms in the sender's JSON object, the published lists first; None has none.

    >>> arms_of({"arms": {"recommended": {"shown": 50, "clicks": 4, "purchases": 0}}})
    (Arm(name='recommended', click_rate=0.08, purchase_rate=0.0, click_gap=None, purchase_gap=None),)
    """
    arms = []
    for name, counts in uplift["arms"].items() if uplift else ():
        gaps = uplift.get(f"{SERVED}_minus_{name}", {}) if uplift else {}
        shown = counts["shown"]
        rates = (counts[what] / shown if shown else None for what in ("clicks", "purchases"))
        estimates = (gaps.get(what) for what in ("click_rate", "purchase_rate"))
        arms.append(Arm(name, *rates, *(each and Gap(*each) for each in estimates)))
    return tuple(arms)

"""The reaction to a drift alarm: the past counts less from now on, and learning steps are longer for a while.

Both depend on the share of the served model's quality that is left. Measured, with what did not help:
tests/benchmarks/drift_reaction.py and its reports.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.events.records import DriftAlarm

DURATION_EVENTS = 5_000
MIN_SHARE_LEFT = 0.05  # a smaller share of quality is reacted to as this one
HALVING_WEIGHT = 24.0  # the weight of a transition row that is divided by two after a fall to a half
MAX_EXTRA_STEP = 1.0  # additional step length, as a share of the usual one, where no quality is left
SIGNALS = ("hit_rate", "loss")  # that are reacted to

Arrays = dict[str, npt.NDArray[np.generic]]


class Fade(NamedTuple):
    """How the transitions are to count their past less: the arguments of `fade`."""

    weakening: float
    share_left: float  # of the newest context matches that stay


class Response(NamedTuple):
    """The alarms, each with the strength of the reaction to it, and the fading to carry out."""

    alarms: list[DriftAlarm]
    fade: Fade | None


def share_left(alarm: DriftAlarm) -> float:
    """Return the share [MIN_SHARE_LEFT..1] of quality left after an alarm, 1 where it is not reacted to.

    The quality of a loss is its distance from that of chance, which is 1.

    >>> share_left(DriftAlarm("adwin", "loss", 900, before=0.6, after=0.9, detected_at_ms=0))
    0.25
    """
    before, after = alarm.before, alarm.after
    if alarm.signal == "loss":
        before, after = 1 - before, 1 - after
    if alarm.signal not in SIGNALS or not before > 0:
        return 1.0
    return float(np.clip(round(after / before, 9), MIN_SHARE_LEFT, 1.0))


class Reaction:
    """React to alarms, unless it is off.

    While a reaction runs, another alarm adds only the difference: in `DURATION_EVENTS` events the past is
    weakened at most as much as the worst fall requires.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self._until = 0  # the event at which it ends
        self._left = 1.0  # the smallest share of quality left in the one that runs

    def running(self, at_event: int) -> bool:
        """Return whether a reaction runs at this event."""
        return self.on and at_event < self._until

    def step_factor(self, at_event: int) -> float:
        """Return the factor of the step length at this event: at most 1 + MAX_EXTRA_STEP, falling to 1."""
        if not self.running(at_event):
            return 1.0
        return 1 + MAX_EXTRA_STEP * (1 - self._left) * (self._until - at_event) / DURATION_EVENTS

    def respond(self, alarms: Sequence[DriftAlarm], at_event: int) -> Response:
        """Return the response to alarms after `at_event` learned events, in force from there on."""
        start = smallest = self._left if self.running(at_event) else 1.0
        answered = []
        for alarm in alarms:
            left = share_left(alarm)
            if self.on and left < smallest:
                smallest, alarm = left, msgspec.structs.replace(alarm, reaction=round(1 - left, 6))
            answered.append(alarm)
        if smallest == start:
            return Response(answered, None)
        self._until, self._left = at_event + DURATION_EVENTS, smallest
        return Response(answered, Fade(weakening(smallest) - weakening(start), smallest))

    def arrays(self) -> Arrays:
        return {"until": np.array([self._until], np.int64), "left": np.array([self._left])}

    def load(self, arrays: Arrays) -> None:
        self._until, self._left = int(arrays["until"][0]), float(arrays["left"][0])


def weakening(left: float) -> float:
    """Return how much the past is weakened when this share of quality is left, see `FeatureBank.fade`.

    >>> weakening(1.0), weakening(0.5) == 1 / HALVING_WEIGHT
    (0.0, True)
    """
    return (1 / left - 1) / HALVING_WEIGHT

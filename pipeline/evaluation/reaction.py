"""What follows a drift alarm: the past counts less from now on, and steps are longer for a while.

Both hang on how much of the served model's quality is left. A fall to nine tenths takes back little, one to a
fifth most of what the successor memories hold. Measured, with what did not help:
tests/benchmarks/drift_reaction.py and its reports.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.events.records import DriftAlarm
from pipeline.features.bank import FeatureBank

LASTS = 5_000  # events that a reaction runs
LEAST = 0.05  # share of quality left that is reacted to as to the worst
WEIGHT = 24.0  # a row's successor weight that a fall to a half halves
PACE = 1.0  # how much longer steps get where no quality is left
REACTED_TO = ("hit_rate", "loss")

Arrays = dict[str, npt.NDArray[np.generic]]


def share_left(alarm: DriftAlarm) -> float:
    """Return the share [LEAST..1] of quality that is left after an alarm, 1 for one that isn't reacted to.

    The loss is taken as the distance from that of chance, which is 1.

    >>> share_left(DriftAlarm("adwin", "loss", 900, before=0.6, after=0.9, detected_at_ms=0))
    0.25
    """
    before, after = alarm.before, alarm.after
    if alarm.signal == "loss":
        before, after = 1 - before, 1 - after
    if alarm.signal not in REACTED_TO or not before > 0:
        return 1.0
    return float(np.clip(round(after / before, 9), LEAST, 1.0))


class Reaction:
    """Answers alarms. A store: checkpoints use `arrays` and `load`.

    While a reaction runs, a further alarm adds what it asks for beyond that, so the signals of one change
    don't add up: the past is weakened at most once in `LASTS` events by as much as the worst fall asks for.
    """

    def __init__(self, on: bool = True) -> None:
        """Answer alarms, or let all be as it is."""
        self.on = on
        self._until = 0  # the event at which it is over
        self._left = 1.0  # the least share of quality left in the one that runs

    def running(self, at_event: int) -> bool:
        """Say whether a reaction runs at this event."""
        return self.on and at_event < self._until

    def pace(self, at_event: int) -> float:
        """Return how much longer than usual steps are at this event: 1 + PACE at most, falling to 1."""
        if not self.running(at_event):
            return 1.0
        return 1 + PACE * (1 - self._left) * (self._until - at_event) / LASTS

    def answer(self, alarms: Sequence[DriftAlarm], bank: FeatureBank, at_event: int) -> list[DriftAlarm]:
        """Weaken the past as far as the alarms ask for it; return them, each with the strength of its answer.

        `at_event` is the number of events learned, from which on the answer counts.
        """
        return [self._answer(alarm, bank, at_event) for alarm in alarms]

    def _answer(self, alarm: DriftAlarm, bank: FeatureBank, at_event: int) -> DriftAlarm:
        left = share_left(alarm)
        before = self._left if self.running(at_event) else 1.0
        if not self.on or left >= before:
            return alarm
        self._until, self._left = at_event + LASTS, left
        bank.fade(weakening(left) - weakening(before), left)
        return msgspec.structs.replace(alarm, reaction=round(1 - left, 6))

    def arrays(self) -> Arrays:
        """Return the end and the strength of what runs."""
        return {"until": np.array([self._until], np.int64), "left": np.array([self._left])}

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; without any, nothing runs."""
        if "until" in arrays:
            self._until, self._left = int(arrays["until"][0]), float(arrays["left"][0])


def weakening(left: float) -> float:
    """Return how much the past is weakened where so much quality is left, see `FeatureBank.fade`.

    >>> weakening(1.0), weakening(0.5) == 1 / WEIGHT
    (0.0, True)
    """
    return (1 / left - 1) / WEIGHT

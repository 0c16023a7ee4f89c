"""Drift detection: ADWIN on the hit rate and the loss of the served model and on the share of events on new
items, one value every ten tests.

ADWIN (Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007) detects when
two parts of a window of values differ in their mean by more than chance allows. A value is the mean of a
fixed number of tests in learning order, whatever batches they came in. Axis: B = events of a batch.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN

from pipeline.events.records import DriftAlarm
from pipeline.models.model import RankResult

# Each with the direction that raises an alarm. A falling share of new items raises none: a catalogue fills.
SIGNALS = {"hit_rate": -1, "loss": 1, "young_items": 1}
DETECTOR = "adwin"  # as alarms name it
NEW_ITEM_EVENTS = 1_000  # an item is new for so many events after its admission
TESTS_PER_VALUE = 10
DELTA = 0.002  # measured: tests/benchmarks/results/drift-first-form.md
WARM_UP_VALUES = 500  # not looked at: while a catalogue fills, the hit rate falls without a change
MIN_PART_VALUES = 5  # on either side of a change; ADWIN's own minimum too
MAX_WINDOW_VALUES = 20_000  # the older half is dropped when the window is full

Floats = npt.NDArray[np.floating]
Arrays = dict[str, npt.NDArray[np.generic]]


class Change(NamedTuple):
    """The means before and after a change."""

    before: float
    after: float


class AdwinDetector:
    """Detects a change of the mean of values between 0 and 1: river's ADWIN, and the values since then.

    river drops only the oldest bucket at a time, which would report a fall a dozen times, each with means
    that hardly differ. ADWIN decides that there was a change; the likeliest place decides where.
    """

    def __init__(self) -> None:
        self._rebuild([])

    def update(self, value: float) -> Change | None:
        """Add a value; return the change that it reveals, in either direction."""
        self.window.append(value)
        self._adwin.update(value)
        if self._adwin.drift_detected:
            values = np.array(self.window)
            border = likeliest_change(values)
            self._rebuild(self.window[border:])
            return Change(float(values[:border].mean()), float(values[border:].mean()))
        if len(self.window) >= MAX_WINDOW_VALUES:
            self._rebuild(self.window[-MAX_WINDOW_VALUES // 2 :])
        return None

    def arrays(self) -> Arrays:
        return {"window": np.array(self.window)}

    def load(self, arrays: Arrays) -> None:
        self._rebuild(np.asarray(arrays["window"], np.float64).tolist())

    def _rebuild(self, window: list[float]) -> None:
        """Build ADWIN from the window alone, value for value, as after a restart."""
        self.window = window
        self._adwin = ADWIN(delta=DELTA, clock=1, min_window_length=MIN_PART_VALUES)
        for value in window:
            self._adwin.update(value)


def scaled_loss(result: RankResult) -> npt.NDArray[np.float64]:
    """Return each test's loss as a share of ln(candidates), at most 1; NaN where the event has none.

    ln(candidates) is the loss of a uniform guess: the value stays comparable while the catalogue grows. ADWIN
    needs bounded values, and one confident mistake must not outweigh ten ordinary ones.
    """
    if result.loss_B is None:
        return np.full(len(result.tested_B), np.nan)
    chance_B = np.log(np.maximum(result.candidates_B, 2))
    use_B = result.tested_B & result.known_B & np.isfinite(result.loss_B)
    return np.where(use_B, np.clip(result.loss_B / chance_B, 0.0, 1.0), np.nan)


class DriftWatch:
    """Raise an alarm when a signal of the stream gets worse; an improvement raises none."""

    def __init__(self) -> None:
        self._signals = {name: _Signal(worse) for name, worse in SIGNALS.items()}

    def update(
        self, hit_B: Floats, loss_B: Floats, new_B: Floats, at_event: int, now_ms: int
    ) -> list[DriftAlarm]:
        """Return the alarms that a batch raises, in order of events.

        `hit_B` is each event's expected hit, `loss_B` its `scaled_loss`, `new_B` 1 where its item is new,
        else 0; NaN: none. `at_event`: events learned before this batch.
        """
        columns = {"hit_rate": hit_B, "loss": loss_B, "young_items": new_B}
        alarms = [
            DriftAlarm(DETECTOR, name, at_event + place + 1, change.before, change.after, now_ms)
            for name, signal in self._signals.items()
            for place, change in signal.update(np.asarray(columns[name], np.float64))
        ]
        return sorted(alarms, key=lambda alarm: alarm.at_event)

    def arrays(self) -> Arrays:
        return {
            f"{signal}.{name}": array
            for signal, each in self._signals.items()
            for name, array in each.arrays().items()
        }

    def load(self, arrays: Arrays) -> None:
        for signal, each in self._signals.items():
            if f"{signal}.pending" in arrays:
                each.load({name: arrays[f"{signal}.{name}"] for name in each.arrays()})


class _Signal:
    """One signal: turns tests into values for its detector and keeps the changes for the worse."""

    def __init__(self, worse: int) -> None:
        self._worse = worse  # 1: a rise is worse, -1: a fall
        self._detector = AdwinDetector()
        self._warm_up = WARM_UP_VALUES  # values still to skip
        self._pending: list[float] = []  # tests of the incomplete value

    def update(self, test_B: npt.NDArray[np.float64]) -> list[tuple[int, Change]]:
        """Add a batch's tests; return changes for the worse, each with the place of the revealing event."""
        place_N = np.flatnonzero(~np.isnan(test_B))
        tests, earlier = self._pending + test_B[place_N].tolist(), len(self._pending)
        complete = len(tests) // TESTS_PER_VALUE * TESTS_PER_VALUE
        self._pending = tests[complete:]
        changes = []
        for start in range(0, complete, TESTS_PER_VALUE):
            stop = start + TESTS_PER_VALUE
            if self._warm_up:
                self._warm_up -= 1
                continue
            change = self._detector.update(sum(tests[start:stop]) / TESTS_PER_VALUE)
            if change and (change.after - change.before) * self._worse > 0:
                changes.append((int(place_N[stop - 1 - earlier]), change))
        return changes

    def arrays(self) -> Arrays:
        counts: Arrays = {"pending": np.array(self._pending), "warm_up": np.array([self._warm_up], np.int64)}
        return counts | self._detector.arrays()

    def load(self, arrays: Arrays) -> None:
        self._pending = np.asarray(arrays["pending"], np.float64).tolist()
        self._warm_up = int(np.asarray(arrays["warm_up"], np.int64)[0])
        self._detector.load(arrays)


def likeliest_change(values: npt.NDArray[np.float64]) -> int:
    """Return the index at which the means before and after differ most, in units of their standard error.

    At least `MIN_PART_VALUES` from either end, with the largest |mean before - mean after| / sqrt(1 / values
    before + 1 / values after).

    >>> likeliest_change(np.array([0.5] * 9 + [0.1] * 7))
    9
    """
    n = len(values)
    head = np.arange(MIN_PART_VALUES, n - MIN_PART_VALUES + 1)
    total = np.cumsum(values)
    gap = np.abs(total[head - 1] / head - (total[-1] - total[head - 1]) / (n - head))
    return int(head[np.argmax(gap * np.sqrt(head * (n - head)))])

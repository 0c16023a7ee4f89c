"""Drift alarms: river's ADWIN on the hit rate and the loss of the served model and on the share of events on
young items, one value every ten events that have the figure.

ADWIN (Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007) keeps a window
of a figure's values and says when two parts of it differ in their mean by more than chance allows. Values are
means of a fixed number of tests in learning order, whatever batches they came in: means of batches depend on
timing, and blur a fall until it is found thousands of events late, or never.
Axis: B = events of a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN

from pipeline.events.records import DriftAlarm
from pipeline.models.model import RankResult

DETECTOR = "adwin"
# Each with the direction that is told. Young items get fewer while a catalogue fills, which is no news.
SIGNALS = {"hit_rate": -1, "loss": 1, "young_items": 1}
YOUNG = 1_000  # events since its admission below which an item is young
BLOCK = 10  # tests a value
DELTA = 0.002  # measured: tests/benchmarks/results/drift-first-form.md
WARM_UP = 500  # values that are not looked at: while a catalogue fills, hits get rarer though nothing changed
LEAST_PART = 5  # values on either side of a change; what ADWIN asks for too
KEPT = 20_000  # values a window may hold; the older half goes when it is full

Floats = npt.NDArray[np.floating]
Arrays = dict[str, npt.NDArray[np.generic]]


def scaled_loss(tested: RankResult) -> npt.NDArray[np.float64]:
    """Return each test's loss as a share of ln(candidates), cut off at 1; NaN where the event has none.

    ln(candidates) is the loss of a model that knows nothing, so the figure stays comparable while the
    catalogue grows, and 1 means "no better than chance". Anything above is cut off: ADWIN needs a bounded
    figure, and a single confident mistake must not outweigh ten ordinary ones.
    """
    if tested.loss_B is None:
        return np.full(len(tested.tested_B), np.nan)
    chance_B = np.log(np.maximum(tested.candidates_B, 2))
    use_B = tested.tested_B & tested.known_B & np.isfinite(tested.loss_B)
    return np.where(use_B, np.clip(tested.loss_B / chance_B, 0.0, 1.0), np.nan)


class DriftWatch:
    """Raise an alarm when a figure of the stream has got worse. A store: checkpoints use `arrays`, `load`.

    An improvement moves the window on in silence, so a model that learns from zero raises nothing. Detectors
    are rebuilt from the values in their windows: a restored one raises the same alarms at the same events.
    """

    def __init__(self, signals: Sequence[str] = tuple(SIGNALS)) -> None:
        """Watch these signals. Raises ValueError for one that isn't known."""
        for signal in signals:
            if signal not in SIGNALS:
                raise ValueError(f"drift signal {signal!r}: expected one of {', '.join(SIGNALS)}")
        self._detectors = {signal: _Detector(SIGNALS[signal]) for signal in signals}

    @property
    def alarms_total(self) -> dict[str, int]:
        """Alarms of each signal since the first event."""
        return {signal: detector.alarms for signal, detector in self._detectors.items()}

    @property
    def last_alarm_ms(self) -> int:
        """When the newest alarm was raised, as given to `update`; 0: never."""
        return max((detector.last_ms for detector in self._detectors.values()), default=0)

    def update(
        self, hit_B: Floats, loss_B: Floats, young_B: Floats, at_event: int, now_ms: int
    ) -> list[DriftAlarm]:
        """Look at a batch's figures and return the alarms they raise, in order of events.

        `hit_B` is each event's expected hit, `loss_B` its scaled loss (`scaled_loss`), `young_B` 1 where its
        item is young, else 0; NaN where it has no such figure. `at_event` is the number of events learned
        before this batch. An alarm names the event that raised it.
        """
        columns = {"hit_rate": hit_B, "loss": loss_B, "young_items": young_B}
        alarms = [
            DriftAlarm(DETECTOR, signal, at_event + change.position + 1, change.before, change.after, now_ms)
            for signal, detector in self._detectors.items()
            for change in detector.update(np.asarray(columns[signal], np.float64), now_ms)
        ]
        return sorted(alarms, key=lambda alarm: alarm.at_event)

    def arrays(self) -> Arrays:
        """Return each detector's window, unfinished block and counters."""
        return {
            f"{signal}.{name}": array
            for signal, detector in self._detectors.items()
            for name, array in detector.arrays().items()
        }

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; a signal that it doesn't hold starts afresh."""
        for signal, detector in self._detectors.items():
            if f"{signal}.window" in arrays:
                detector.load({name: arrays[f"{signal}.{name}"] for name in detector.arrays()})


class _Change(NamedTuple):
    """A change for the worse: which event of the batch shows it, and the means before and after."""

    position: int
    before: float
    after: float


class _Detector:
    """ADWIN on one figure, and the values that it has seen since the last change."""

    def __init__(self, worse: int) -> None:
        self.worse = worse  # 1: the figure gets worse by rising, -1: by falling
        self.warm_up = WARM_UP  # values still to be passed over
        self.pending: list[float] = []  # of the block that isn't full yet
        self.alarms, self.last_ms = 0, 0
        self._restart([])

    def update(self, figure_B: npt.NDArray[np.float64], now_ms: int) -> list[_Change]:
        place_N = np.flatnonzero(~np.isnan(figure_B))
        figures = self.pending + figure_B[place_N].tolist()
        earlier = len(self.pending)
        whole = len(figures) // BLOCK * BLOCK
        self.pending = figures[whole:]
        changes = []
        for start in range(0, whole, BLOCK):
            means = self._add(sum(figures[start : start + BLOCK]) / BLOCK)
            if means is not None:
                changes.append(_Change(int(place_N[start + BLOCK - 1 - earlier]), *means))
        if changes:
            self.alarms, self.last_ms = self.alarms + len(changes), now_ms
        return changes

    def _add(self, value: float) -> tuple[float, float] | None:
        """Take one value; return the means before and after when it shows a change for the worse."""
        if self.warm_up:
            self.warm_up -= 1
            return None
        self.window.append(value)
        self.adwin.update(value)
        if self.adwin.drift_detected:
            return self._cut()
        if len(self.window) >= KEPT:
            self._restart(self.window[-KEPT // 2 :])
        return None

    def _cut(self) -> tuple[float, float] | None:
        """Cut the window where its parts differ most.

        river drops only the oldest bucket at a time: a fall would be told a dozen times over, each with means
        that are hardly apart. So ADWIN says that there was a change, and the likeliest place says when.
        """
        values = np.array(self.window)
        border = likeliest_change(values)
        before, after = float(values[:border].mean()), float(values[border:].mean())
        self._restart(self.window[border:])
        return (before, after) if (after - before) * self.worse > 0 else None

    def _restart(self, window: list[float]) -> None:
        """Make the detector anew from the window alone, value for value, as a restored one has to."""
        self.window = window
        self.adwin = ADWIN(delta=DELTA, clock=1, min_window_length=LEAST_PART)
        for value in window:
            self.adwin.update(value)

    def arrays(self) -> Arrays:
        return {
            "window": np.array(self.window),
            "pending": np.array(self.pending),
            "counts": np.array([self.warm_up, self.alarms, self.last_ms], np.int64),
        }

    def load(self, arrays: Arrays) -> None:
        self.warm_up, self.alarms, self.last_ms = np.asarray(arrays["counts"], np.int64).tolist()
        self.pending = np.asarray(arrays["pending"], np.float64).tolist()
        self._restart(np.asarray(arrays["window"], np.float64).tolist())


def likeliest_change(values: npt.NDArray[np.float64]) -> int:
    """Return the index at which the means before and after differ most, for the values that they rest on.

    It is the first index after the change, at least `LEAST_PART` values from either end, with the largest
    |mean before - mean after| / sqrt(1 / values before + 1 / values after).

    Raises ValueError when there are fewer than 2 * LEAST_PART values.

    >>> likeliest_change(np.array([0.5] * 9 + [0.1] * 7))
    9
    """
    n = len(values)
    if n < 2 * LEAST_PART:
        raise ValueError(f"{n} values: expected at least {2 * LEAST_PART}, or there is no place for a change")
    head = np.arange(LEAST_PART, n - LEAST_PART + 1)
    total = np.cumsum(values)
    gap = np.abs(total[head - 1] / head - (total[-1] - total[head - 1]) / (n - head))
    return int(head[np.argmax(gap * np.sqrt(head * (n - head)))])

"""Figures over time: what had been counted at some hundred moments of the stream, and the drift alarms.

A moment holds what the cumulative figures were at the end of a batch, so the figures of any stretch are the
difference of two moments, exactly. When there are too many moments, those that stand too close together go:
the stretches grow longer, and nothing that was counted is lost.

Axes: N = moments, M = models, S = segments, F = figures (see quality.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.evaluation.quality import MEASURES, SEGMENTS, ModelFigures, Totals, model_figures
from pipeline.events.records import DriftAlarm

MOST = 512  # moments; memory and a checkpoint hold at most so many, whatever the length of the stream
ALARMS = 1_000  # the newest ones are kept

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[np.generic]]


class Measure(Protocol):
    """What a checkpoint keeps of a measure. One that a checkpoint has nothing of is loaded with `{}`."""

    def arrays(self) -> Arrays: ...
    def load(self, arrays: Arrays) -> None: ...


class Seen(NamedTuple):
    """What is read off the other measures when a moment is due."""

    totals: Totals
    coverage: float  # share of the known items that recent lists showed
    items: int  # known items


class Moment(NamedTuple):
    """What was known when so many events had been learned."""

    events: int
    time_ms: int  # newest event time so far
    seen: Seen


class AlarmMark(msgspec.Struct, frozen=True):
    """A drift alarm as it is kept; the fields are those of `DriftAlarm`."""

    signal: str
    at_event: int
    before: float
    after: float
    detected_at_ms: int


class Track(NamedTuple):
    """All moments as columns, oldest first."""

    models: list[str]
    events_N: Ints
    time_ms_N: Ints
    tests_NMS: Ints
    sums_NMSF: Floats
    served_N2: Ints  # events of users who had a list, and hits among them
    coverage_N: Floats
    items_N: Ints

    def figures(self, moment: int, model: str) -> ModelFigures:
        """Return a model's cumulative figures at a moment."""
        place = self.models.index(model)
        return model_figures(self.tests_NMS[moment, place], self.sums_NMSF[moment, place])

    def borders(self, count: int) -> list[int]:
        """Return the moments that cut the stream into at most `count` parts of about equal length."""
        if not len(self.events_N):
            return []
        wanted = np.linspace(self.events_N[0], self.events_N[-1], count + 1)
        nearest: list[int] = np.unique(np.abs(self.events_N[:, None] - wanted).argmin(axis=0)).tolist()
        return nearest

    def means(self, model: str, figure: int, borders: Sequence[int]) -> Floats:
        """Return a figure (a place in `MEASURES`) of each part over all users; NaN for one without tests."""
        place = self.models.index(model)
        tests = np.diff(self.tests_NMS[borders, place, 0]).astype(np.float64)
        sums = np.diff(self.sums_NMSF[borders, place, 0, figure])
        return np.asarray(np.divide(sums, tests, out=np.full(sums.shape, np.nan), where=tests > 0))


class Timeline:
    """Keep moments and alarms. A store: checkpoints use `arrays` and `load`."""

    def __init__(self, models: Sequence[str], most: int = MOST) -> None:
        """Start with the moment before the first event. Raises ValueError when `most` is below 4."""
        if most < 4:
            raise ValueError(f"most {most}: expected 4 moments or more")
        self.models = list(models)
        self.most = most
        nothing = np.zeros((len(models), len(SEGMENTS)), np.int64)
        sums = np.zeros((*nothing.shape, len(MEASURES)))
        self._moments = [Moment(0, 0, Seen(Totals(nothing, sums, np.zeros(2, np.int64)), 0.0, 0))]
        self._alarms: list[AlarmMark] = []
        self._span = 1  # events between two moments, at least
        self._newest_ms = 0

    @property
    def alarms(self) -> list[AlarmMark]:
        """The newest alarms, at most `ALARMS`, oldest first."""
        return list(self._alarms)

    def update(
        self, events: int, time_ms: int, alarms: Sequence[DriftAlarm], look: Callable[[], Seen]
    ) -> None:
        """Take note of a batch's end: `events` learned so far, the batch's newest event time, its alarms.

        `look` is called only when a moment is due, since looking takes time.
        """
        self._newest_ms = max(self._newest_ms, time_ms)
        self._alarms += [
            AlarmMark(each.signal, each.at_event, each.before, each.after, each.detected_at_ms)
            for each in alarms
        ]
        del self._alarms[:-ALARMS]
        if self._moments and events - self._moments[-1].events < self._span:
            return
        self._moments.append(Moment(events, self._newest_ms, look()))
        if len(self._moments) > self.most:
            self._thin()

    def track(self, events: int, seen: Seen) -> Track:
        """Return all moments, the present one (`events` learned so far) included."""
        moments = list(self._moments)
        if not moments or moments[-1].events < events:
            moments.append(Moment(events, self._newest_ms, seen))
        return Track(
            self.models,
            np.array([each.events for each in moments], np.int64),
            np.array([each.time_ms for each in moments], np.int64),
            np.stack([each.seen.totals.tests_MS for each in moments]),
            np.stack([each.seen.totals.sums_MSF for each in moments]),
            np.stack([each.seen.totals.served for each in moments]),
            np.array([each.seen.coverage for each in moments]),
            np.array([each.seen.items for each in moments], np.int64),
        )

    def arrays(self) -> Arrays:
        """Return the moments by column, each model's counts by its name, and the alarms as JSON bytes."""
        moments = self._moments
        rows = [(each.events, each.time_ms, each.seen.items, *each.seen.totals.served) for each in moments]
        out: Arrays = {
            "moments": np.array(rows, np.int64).reshape(-1, 5),
            "coverage": np.array([each.seen.coverage for each in moments], np.float64),
            "pace": np.array([self._span, self._newest_ms], np.int64),
            "alarms": np.frombuffer(msgspec.json.encode(self._alarms), np.uint8).copy(),
        }
        for place, model in enumerate(self.models):
            tests = [each.seen.totals.tests_MS[place] for each in moments]
            sums = [each.seen.totals.sums_MSF[place] for each in moments]
            shape = (len(moments), len(SEGMENTS))
            out[f"model.{model}.tests"] = np.array(tests, np.int64).reshape(shape)
            out[f"model.{model}.sums"] = np.array(sums, np.float64).reshape(*shape, len(MEASURES))
        return out

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; a model that it doesn't hold had no tests until now.

        An empty one comes from a version without a timeline: it begins with the next batch.
        """
        self._moments = []
        if not arrays:
            return
        rows = np.asarray(arrays["moments"], np.int64)
        tests_NMS = np.zeros((len(rows), len(self.models), len(SEGMENTS)), np.int64)
        sums_NMSF = np.zeros((*tests_NMS.shape, len(MEASURES)))
        for place, model in enumerate(self.models):
            if f"model.{model}.tests" in arrays:
                tests_NMS[:, place] = arrays[f"model.{model}.tests"]
                sums_NMSF[:, place] = arrays[f"model.{model}.sums"]
        coverage_N = np.asarray(arrays["coverage"], np.float64).tolist()
        for place, (events, time_ms, items, *served) in enumerate(rows.tolist()):
            totals = Totals(tests_NMS[place], sums_NMSF[place], np.array(served, np.int64))
            self._moments.append(Moment(events, time_ms, Seen(totals, coverage_N[place], items)))
        self._span, self._newest_ms = np.asarray(arrays["pace"], np.int64).tolist()
        self._alarms = msgspec.json.decode(
            np.asarray(arrays["alarms"], np.uint8).tobytes(), type=list[AlarmMark]
        )

    def _thin(self) -> None:
        """Keep about half of the moments, evenly spaced whatever the batches were, both ends included."""
        first, last = self._moments[0], self._moments[-1]
        self._span = -(-(last.events - first.events) // (self.most // 2))
        kept = [first]
        for moment in self._moments[1:-1]:
            if moment.events - kept[-1].events >= self._span <= last.events - moment.events:
                kept.append(moment)
        self._moments = [*kept, last]

"""Metrics over time: cumulative counts at up to some hundred moments of the stream, and the drift alarms.

The metrics of any interval are the difference of two moments, exactly. When there are too many moments, those
closest together are dropped. Axes: N = moments, M = models, S = segments, F = measures (see rank_metrics.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.evaluation.rank_metrics import MEASURES, USER_SEGMENTS, ModelMetrics, Totals, model_metrics
from pipeline.events.records import DriftAlarm

MAX_MOMENTS = 512  # bounds memory and checkpoints, whatever the length of the stream
MAX_ALARMS = 1_000  # the newest ones are kept

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[np.generic]]


class Moment(NamedTuple):
    """The cumulative counts after a number of learned events."""

    events: int
    time_ms: int  # newest event time so far
    totals: Totals
    coverage: float  # share of the known items on recent lists
    items: int  # known items


class Track(NamedTuple):
    """All moments as columns, oldest first."""

    models: list[str]
    events_N: Ints
    time_ms_N: Ints
    tests_NMS: Ints
    sums_NMSF: Floats
    list_hits_N2: Ints  # events of users who had a list, and hits among them
    coverage_N: Floats
    items_N: Ints

    def metrics(self, model: str, start: int, stop: int) -> ModelMetrics:
        """Return a model's metrics between two moments."""
        place = self.models.index(model)
        tests_NS, sums_NSF = self.tests_NMS[:, place], self.sums_NMSF[:, place]
        return model_metrics(tests_NS[stop] - tests_NS[start], sums_NSF[stop] - sums_NSF[start])

    def borders(self, count: int) -> list[int]:
        """Return the moments that cut the stream into at most `count` parts of about equal length."""
        wanted = np.linspace(self.events_N[0], self.events_N[-1], count + 1)
        nearest: list[int] = np.unique(np.abs(self.events_N[:, None] - wanted).argmin(axis=0)).tolist()
        return nearest

    def means(self, model: str, measure: int, borders: Sequence[int]) -> Floats:
        """Return a measure (an index of `MEASURES`) of each part over all users; NaN without tests."""
        place = self.models.index(model)
        tests = np.diff(self.tests_NMS[borders, place, 0]).astype(np.float64)
        sums = np.diff(self.sums_NMSF[borders, place, 0, measure])
        return np.asarray(np.divide(sums, tests, out=np.full(sums.shape, np.nan), where=tests > 0))


class Timeline:
    """Keep moments and alarms. A store: checkpoints use `arrays` and `load`."""

    def __init__(self, models: Sequence[str], max_moments: int = MAX_MOMENTS) -> None:
        self.models = list(models)
        self.max_moments = max_moments
        tests = np.zeros((len(models), len(USER_SEGMENTS)), np.int64)
        totals = Totals(tests, np.zeros((*tests.shape, len(MEASURES))), np.zeros(2, np.int64))
        self._moments = [Moment(0, 0, totals, 0.0, 0)]
        self._alarms: list[DriftAlarm] = []
        self._min_gap = 1  # events between two moments
        self.newest_ms = 0  # newest event time so far

    @property
    def alarms(self) -> list[DriftAlarm]:
        """The newest alarms, at most `MAX_ALARMS`, oldest first."""
        return list(self._alarms)

    def update(self, time_ms: int, alarms: Sequence[DriftAlarm]) -> None:
        """Add a batch's newest event time and its alarms."""
        self.newest_ms = max(self.newest_ms, time_ms)
        self._alarms = [*self._alarms, *alarms][-MAX_ALARMS:]

    def is_due(self, events: int) -> bool:
        """Return whether to add a moment after this number of learned events."""
        return events - self._moments[-1].events >= self._min_gap

    def add(self, moment: Moment) -> None:
        """Add the moment at the end of a batch."""
        self._moments.append(moment)
        if len(self._moments) > self.max_moments:
            self._thin()

    def track(self, now: Moment) -> Track:
        """Return all moments, the present one included."""
        newer = [now] if self._moments[-1].events < now.events else []
        events, times_ms, totals, coverage, items = zip(*self._moments, *newer, strict=True)
        tests, sums, list_hits = zip(*totals, strict=True)
        return Track(
            self.models, np.array(events, np.int64), np.array(times_ms, np.int64), np.stack(tests),
            np.stack(sums), np.stack(list_hits), np.array(coverage), np.array(items, np.int64),
        )  # fmt: skip

    def arrays(self) -> Arrays:
        track = self.track(self._moments[-1])
        rows = (track.events_N, track.time_ms_N, track.items_N, *track.list_hits_N2.T)
        out: Arrays = {
            "moments": np.stack(rows, axis=1),
            "coverage": track.coverage_N,
            "state": np.array([self._min_gap, self.newest_ms], np.int64),
            "alarms": np.frombuffer(msgspec.json.encode(self._alarms), np.uint8).copy(),
        }
        for place, model in enumerate(self.models):
            out[f"model.{model}.tests"] = track.tests_NMS[:, place].copy()
            out[f"model.{model}.sums"] = track.sums_NMSF[:, place].copy()
        return out

    def load(self, arrays: Arrays) -> None:
        rows = np.asarray(arrays["moments"], np.int64)
        tests_NMS = np.zeros((len(rows), len(self.models), len(USER_SEGMENTS)), np.int64)
        sums_NMSF = np.zeros((*tests_NMS.shape, len(MEASURES)))
        for place, model in enumerate(self.models):
            if f"model.{model}.tests" in arrays:
                tests_NMS[:, place] = arrays[f"model.{model}.tests"]
                sums_NMSF[:, place] = arrays[f"model.{model}.sums"]
        coverage_N = np.asarray(arrays["coverage"], np.float64).tolist()
        totals = map(Totals, tests_NMS, sums_NMSF, rows[:, 3:])
        events_N, time_ms_N, items_N = rows[:, :3].T.tolist()
        self._moments = list(map(Moment, events_N, time_ms_N, totals, coverage_N, items_N))
        self._min_gap, self.newest_ms = np.asarray(arrays["state"], np.int64).tolist()
        self._alarms = msgspec.json.decode(
            np.asarray(arrays["alarms"], np.uint8).tobytes(), type=list[DriftAlarm]
        )

    def _thin(self) -> None:
        """Keep about half of the moments, evenly spaced whatever the batches were, both ends included."""
        first, last = self._moments[0], self._moments[-1]
        self._min_gap = -(-(last.events - first.events) // (self.max_moments // 2))
        kept = [first]
        for moment in self._moments[1:-1]:
            if moment.events - kept[-1].events >= self._min_gap <= last.events - moment.events:
                kept.append(moment)
        self._moments = [*kept, last]

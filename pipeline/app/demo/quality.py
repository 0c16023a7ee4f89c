"""Quality over the stream's events, small however long the demo runs. Axes: M = models, P = points."""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.rank_metrics import RankMetrics

Floats = npt.NDArray[np.float64]

WINDOW = 1_000  # tests that a figure is the mean of: short enough to show a fall where it happens
STEP = 100  # events between two looks
POINTS = 512  # at most; the plot of a wide terminal has about 300 dots across


class ModelLine(NamedTuple):
    """A model's figures; None: no test yet."""

    name: str
    hr: float | None
    ndcg: float | None


class Course(NamedTuple):
    """Hit rates over time, the newest point last: events learned [P], means [M, P], NaN before any test."""

    events_P: Floats
    hr_MP: Floats


class QualityCourse:
    """Follows every model's mean over the last `WINDOW` tests, and keeps its course at a number of points.

    When the points are full every second one goes, and from then on they come half as often.
    """

    def __init__(self, quality: RankMetrics) -> None:
        self._quality = quality
        self._looks = deque([self._sums()])  # M x (tests, hits, gains), of about the last WINDOW tests
        self._events = [0.0]
        self._hr = [np.full(len(quality.models), np.nan)]
        self._looked, self._step = 0, float(STEP)

    def look(self, events: int) -> None:
        """Note how the models stand after `events` events, where the last look is long enough ago."""
        if events - self._looked < STEP:
            return
        self._looked = events
        sums = self._sums()
        self._looks.append(sums)
        # `WINDOW` tests of the served model: all models are tested on the same events
        while len(self._looks) > 2 and sums[0, 0] - self._looks[1][0, 0] >= WINDOW:
            self._looks.popleft()
        if events - self._events[-1] >= self._step:
            self._events.append(float(events))
            self._hr.append(self._means()[:, 0])
        if len(self._events) >= POINTS:
            del self._events[1::2], self._hr[1::2]
            self._step = self._events[-1] / (len(self._events) - 1)  # batches may be longer than a step

    def models(self) -> tuple[ModelLine, ...]:
        """Return the figures of late of every model, the served one first."""
        rows = zip(self._quality.models, self._means().tolist(), strict=True)
        return tuple(
            ModelLine(name, None if np.isnan(hr) else hr, None if np.isnan(ndcg) else ndcg)
            for name, (hr, ndcg) in rows
        )

    def course(self) -> Course:
        """Return the points so far, and the present as the last of them."""
        events = np.array([*self._events, float(self._looked)])
        return Course(events, np.stack([*self._hr, self._means()[:, 0]], axis=1))

    def _means(self) -> Floats:
        """Return hit rate and NDCG over the looks that are kept, [M, 2]."""
        tests_M, *sums_M = (self._looks[-1] - self._looks[0]).T
        with np.errstate(invalid="ignore"):  # no test: NaN
            means_M2 = np.stack([sums / tests_M for sums in sums_M], axis=1)
        return means_M2.clip(0.0)  # a difference of long sums may end a hair below

    def _sums(self) -> Floats:
        figures = self._quality.cumulative().values()
        return np.array(
            [(one["tests"], one["hr@10"] * one["tests"], one["ndcg@10"] * one["tests"]) for one in figures],
            float,
        )

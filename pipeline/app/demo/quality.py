"""Hit rates over the stream, bounded however long the demo runs. Axes: M = models, P = points."""

from collections import deque

import numpy as np

from pipeline.app.demo.progress import Course, Floats, ModelMetrics
from pipeline.evaluation.rank_metrics import RankMetrics

WINDOW_TESTS = 1_000  # of a mean: few enough to show a fall where it happens
STEP_EVENTS = 100  # between two samples
MAX_POINTS = 512  # the plot of a wide terminal has about 300 dots across


class QualityCourse:
    """Every model's mean over the last `WINDOW_TESTS` tests, kept at a number of points.

    When the points are full every second one is dropped, and from then on they are added half as often.
    """

    def __init__(self, quality: RankMetrics) -> None:
        self._quality = quality
        self._samples = deque([self._sums()])  # M x (tests, hits, gains), of about WINDOW_TESTS tests
        self._events = [0.0]
        self._hr = [np.full(len(quality.models), np.nan)]
        self._sampled, self._step = 0, float(STEP_EVENTS)

    def look(self, events: int) -> None:
        """Sample the models' metrics after `events` events, where the last sample is old enough."""
        if events - self._sampled < STEP_EVENTS:
            return
        self._sampled = events
        sums = self._sums()
        self._samples.append(sums)
        # tests of the served model: all models are tested on the same events
        while len(self._samples) > 2 and sums[0, 0] - self._samples[1][0, 0] >= WINDOW_TESTS:
            self._samples.popleft()
        if events - self._events[-1] >= self._step:
            self._events.append(float(events))
            self._hr.append(self._means()[:, 0])
        if len(self._events) >= MAX_POINTS:
            del self._events[1::2], self._hr[1::2]
            self._step = self._events[-1] / (len(self._events) - 1)  # batches may be longer than a step

    def models(self) -> tuple[ModelMetrics, ...]:
        """Return the metrics of every model over the window, the served one first."""
        rows = zip(self._quality.models, self._means().tolist(), strict=True)
        return tuple(
            ModelMetrics(name, *(None if np.isnan(mean) else mean for mean in means)) for name, means in rows
        )

    def course(self) -> Course:
        """Return the points so far, with the present as the last one."""
        events = np.array([*self._events, float(self._sampled)])
        return Course(events, np.stack([*self._hr, self._means()[:, 0]], axis=1))

    def _means(self) -> Floats:
        """Return hit rate and NDCG over the window, [M, 2]; NaN without a test."""
        tests_M, *sums_M = (self._samples[-1] - self._samples[0]).T
        with np.errstate(invalid="ignore"):
            means_M2 = np.stack([sums / tests_M for sums in sums_M], axis=1)
        return means_M2.clip(0.0)  # a difference of large sums may be slightly negative

    def _sums(self) -> Floats:
        totals = self._quality.cumulative().values()
        return np.array(
            [(one["tests"], one["hr@10"] * one["tests"], one["ndcg@10"] * one["tests"]) for one in totals],
            float,
        )

"""Hit rate, NDCG and reciprocal rank at several depths of the list, over new and old items too.

`quality.py` counts at ten places, by users; this counts at DEPTHS, by items: which are new, the caller says.
Axes: B = events of a batch, K = depths, S = segments, F = figures (hit, ndcg, mrr).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.quality import CUTOFF, SegmentFigures
from pipeline.kernels import kernel
from pipeline.models.model import RankResult

DEPTHS = (1, 5, 10, 20, 50)
SEGMENTS = ("all", "new", "old")
AT_CUTOFF = DEPTHS.index(CUTOFF)

Arrays = dict[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]


class Depths:
    """Keep every model's sums since the first event. A store: `arrays` and `load`."""

    def __init__(self, models: Sequence[str]) -> None:
        """Start from zero."""
        self.models = list(models)
        self._tests = {model: np.zeros(len(SEGMENTS), np.int64) for model in models}
        self._sums = {model: np.zeros((len(SEGMENTS), len(DEPTHS), 3)) for model in models}

    def update(self, model: str, tested: RankResult, young_B: Floats) -> None:
        """Add one model's tests of a batch; `young_B` is 1 where the event's item is new, else 0.

        Raises KeyError for a model that was not named at the start.
        """
        _add(
            tested.greater_B, tested.equal_B, tested.tested_B, tested.known_B, young_B, _DEPTHS, _GAINS,
            self._tests[model], self._sums[model],
        )  # fmt: skip

    def at(self, model: str) -> dict[str, float]:
        """Return hit rate and NDCG over all tests at each depth, as `hr@20` and the like; 0.0 without any."""
        means_KF = self._sums[model][0] / max(int(self._tests[model][0]), 1)
        pairs = zip(DEPTHS, means_KF.tolist(), strict=True)
        return {f"{name}@{k}": row[f] for k, row in pairs for f, name in enumerate(("hr", "ndcg"))}

    def of_items(self, model: str, segment: str) -> SegmentFigures:
        """Return the figures at ten places over the tests of `new` or `old` items.

        Raises ValueError for another segment.
        """
        place = SEGMENTS.index(segment)
        tests = int(self._tests[model][place])
        hr, ndcg, mrr = (self._sums[model][place, AT_CUTOFF] / max(tests, 1)).tolist()
        return {"tests": tests, "hr@10": hr, "ndcg@10": ndcg, "mrr@10": mrr}

    def arrays(self) -> Arrays:
        """Return each model's tests and sums."""
        out: Arrays = {}
        for model in self.models:
            out[f"model.{model}.tests"] = self._tests[model].copy()
            out[f"model.{model}.sums"] = self._sums[model].copy()
        return out

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; a model that it doesn't hold starts from zero."""
        for model in self.models:
            if f"model.{model}.tests" in arrays:
                self._tests[model] = np.array(arrays[f"model.{model}.tests"], np.int64)
                self._sums[model] = np.array(arrays[f"model.{model}.sums"], np.float64)


def _totals() -> Floats:
    """Return what the first n places hold together, for each n up to the last depth and each figure."""
    places = np.arange(1, DEPTHS[-1] + 1)
    gains = np.stack((np.ones(len(places)), 1 / np.log2(places + 1), 1 / places), axis=1)
    return np.concatenate((np.zeros((1, 3)), np.cumsum(gains, axis=0)))


_DEPTHS, _GAINS = np.array(DEPTHS), _totals()


@kernel()
def _add(greater_B, equal_B, tested_B, known_B, young_B, depths_K, totals, tests_S, sums_SKF):  # type: ignore[no-untyped-def]
    """A target level with e others has each of the places greater + 1 .. greater + 1 + e with one chance."""
    for b in range(greater_B.shape[0]):
        if not tested_B[b]:
            continue
        segment = 1 if young_B[b] > 0 else 2
        tests_S[0] += 1
        tests_S[segment] += 1
        if not known_B[b]:
            continue
        for k in range(depths_K.shape[0]):
            first = min(greater_B[b], depths_K[k])
            last = min(greater_B[b] + equal_B[b] + 1, depths_K[k])
            for f in range(3):
                gain = (totals[last, f] - totals[first, f]) / (equal_B[b] + 1)
                sums_SKF[0, k, f] += gain
                sums_SKF[segment, k, f] += gain

"""ROC and precision-recall curves of targets against the other candidates: one histogram a model.

Scores of different users are not comparable, but positions within a user's own ranking are. The target's
depth x is the share of all other items that score above it, ties counted half: an estimate, from the uniform
negatives that training draws. "Show the top x of every ranking" is the threshold:

    true positive rate  TPR(x) = share of the tests with a target at depth x or less
    false positive rate FPR(x) = x
    area under the ROC  = mean of 1 - x = P(target scores above a random item)

With N sampled non-clicks a click, N x of them pass the threshold on average, so that

    recall(x) = TPR(x),  precision(x) = TPR(x) / (TPR(x) + N x)

(Fawcett, "An introduction to ROC analysis", 2006; Krichene and Rendle, "On sampled metrics for item
recommendation", KDD 2020.) Tests of unknown items are counted and left out. Axes: B = events of a batch,
E = edges.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel

NEGATIVES = 100  # non-clicks for each click in precision
BINS_PER_DECADE, DECADES = 32, 6
# Depth 0, a target in first place, has its own edge. Dense near 0: lists are short and catalogues long.
EDGES_E = np.concatenate(([0.0], np.logspace(-DECADES, 0, BINS_PER_DECADE * DECADES + 1)))

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Arrays = dict[str, npt.NDArray[np.generic]]


class Curve(NamedTuple):
    """The curves of one model. All NaN without tests."""

    tests: int
    unknown: int  # tests left out: the item was unknown
    auc: float  # exact; ties count half
    average_precision: float  # area under precision over recall
    fpr_E: Floats
    tpr_E: Floats  # also the recall
    precision_E: Floats


class CurveHistogram:
    """Accumulate the depths of one model's targets. A store: `arrays` and `load`."""

    def __init__(self) -> None:
        self._mass_E = np.zeros(len(EDGES_E))
        self._sums = np.zeros(3)  # tests, tests of unknown items, sum of 1 - depth

    def update(self, below_B: Floats, tested_B: Bools, known_B: Bools) -> None:
        """Add the tests of a batch: the share of other items below the target (NaN: unknown); whether the
        item is known.
        """
        _add(below_B, tested_B, known_B, EDGES_E, self._mass_E, self._sums)

    def curve(self) -> Curve:
        """Return the curves, precision with `NEGATIVES` sampled non-clicks for each click."""
        tests, unknown, area = self._sums.tolist()
        if not tests:
            nan_E = np.full(len(EDGES_E), np.nan)
            return Curve(0, int(unknown), np.nan, np.nan, EDGES_E, nan_E, nan_E)
        tpr_E = np.minimum(np.cumsum(self._mass_E) / tests, 1.0)
        shown_E = tpr_E + NEGATIVES * EDGES_E
        precision_E = np.divide(tpr_E, shown_E, out=np.zeros_like(tpr_E), where=shown_E > 0)
        recall_step_E = np.diff(tpr_E, prepend=0.0)
        before_E = np.concatenate((precision_E[:1], precision_E[:-1]))
        before_E = np.where(before_E > 0, before_E, precision_E)  # no precision before the first hit
        average = float(np.sum(recall_step_E * (before_E + precision_E) / 2))
        return Curve(int(tests), int(unknown), area / tests, average, EDGES_E, tpr_E, precision_E)

    def arrays(self) -> Arrays:
        return {"curve": self._mass_E.copy(), "curve_sums": self._sums.copy()}

    def load(self, arrays: Arrays) -> None:
        self._mass_E[:], self._sums[:] = arrays["curve"], arrays["curve_sums"]


@kernel()
def _add(below_B, tested_B, known_B, edges_E, mass_E, sums):  # type: ignore[no-untyped-def]
    for b in range(below_B.shape[0]):
        if not tested_B[b]:
            continue
        if not known_B[b]:
            sums[1] += 1
        elif np.isfinite(below_B[b]):
            depth = 1 - np.float64(below_B[b])
            mass_E[np.searchsorted(edges_E, depth)] += 1
            sums[0] += 1
            sums[2] += 1 - depth

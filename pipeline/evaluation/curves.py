"""ROC and precision-recall curves of what users took against what they did not: one histogram a model.

Scores of different users can't be compared, so no threshold on scores makes sense over a stream of events.
What can be compared is where in a user's own order an item stands. Of a test with n other candidates (known
items that the user has not taken), g of them scored above the target, the target's depth is x = g / n; that
of a candidate drawn at random is uniform on [0, 1]. "Show the top x of everybody's order" is the threshold:

    true positive rate  TPR(x) = share of the tests whose target stands at depth x or above
    false positive rate FPR(x) = x
    area under the ROC  = mean of 1 - g / n = chance that a target is scored above a random non-click

With N non-clicks sampled for every click, N x of them pass the threshold on average, so that

    recall(x) = TPR(x),  precision(x) = TPR(x) / (TPR(x) + N x)

These are the expected values over all samples: exact ranks need no draw (Fawcett, "An introduction to ROC
analysis", 2006, for both curves; Krichene and Rendle, "On sampled metrics for item recommendation", KDD 2020,
for what sampling does to ranks). A target level with e others takes each of the places g .. g + e with the
same chance, so a tie counts half in the area. `river.metrics.ROCAUC` and its like take one score and label
at a time and compare them across users, which is just what can't be done here.

Tests of items that were not known are left out, since no model can rank these; they are counted.
Axes: B = events of a batch, E = edges of the histogram.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.models.model import RankResult

NEGATIVES = 100  # non-clicks for each click in precision
PER_DECADE, DECADES = 32, 6
# Depth 0 has an edge of its own: the target was first. Dense where lists are short and catalogues long.
EDGES_E = np.concatenate(([0.0], np.logspace(-DECADES, 0, PER_DECADE * DECADES + 1)))

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[np.generic]]


class Curve(NamedTuple):
    """The curves of one model. All NaN where it had no test."""

    tests: int
    unknown: int  # tests left out: the item was not known
    auc: float  # exact; ties count half
    average_precision: float  # area under precision over recall
    fpr_E: Floats
    tpr_E: Floats  # also the recall
    precision_E: Floats


class Curves:
    """Keep every model's histogram of depths since the first event. A store: `arrays` and `load`."""

    def __init__(self, models: Sequence[str]) -> None:
        """Start from zero."""
        self.models = list(models)
        self._mass = {model: np.zeros(len(EDGES_E)) for model in models}
        # tests, tests of unknown items, sum of 1 - depth
        self._sums = {model: np.zeros(3) for model in models}

    def update(self, model: str, tested: RankResult) -> None:
        """Add one model's tests of a batch. Raises KeyError for a model that was not named at the start."""
        ranked_B = tested.tested_B & tested.known_B & np.isfinite(tested.below_B)
        depth_N = 1.0 - tested.below_B[ranked_B].astype(np.float64)
        np.add.at(self._mass[model], np.searchsorted(EDGES_E, depth_N), 1.0)
        unknown = int(np.count_nonzero(tested.tested_B & ~tested.known_B))
        self._sums[model] += np.array([depth_N.size, unknown, (1 - depth_N).sum()])

    def curve(self, model: str) -> Curve:
        """Return a model's curves, precision with `NEGATIVES` sampled non-clicks for each click."""
        tests, unknown, area = self._sums[model].tolist()
        if not tests:
            nothing_E = np.full(len(EDGES_E), np.nan)
            return Curve(0, int(unknown), np.nan, np.nan, EDGES_E, nothing_E, nothing_E)
        tpr_E = np.minimum(np.cumsum(self._mass[model]) / tests, 1.0)
        shown_E = tpr_E + NEGATIVES * EDGES_E
        precision_E = np.divide(tpr_E, shown_E, out=np.zeros_like(tpr_E), where=shown_E > 0)
        gained_E = np.diff(tpr_E, prepend=0.0)
        before_E = np.concatenate((precision_E[:1], precision_E[:-1]))
        before_E = np.where(before_E > 0, before_E, precision_E)  # no precision before the first hit
        average = float(np.sum(gained_E * (before_E + precision_E) / 2))
        return Curve(int(tests), int(unknown), area / tests, average, EDGES_E, tpr_E, precision_E)

    def arrays(self) -> Arrays:
        """Return each model's histogram and sums."""
        out: Arrays = {}
        for model in self.models:
            out[f"model.{model}.mass"] = self._mass[model].copy()
            out[f"model.{model}.sums"] = self._sums[model].copy()
        return out

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; a model that it doesn't hold starts from zero."""
        for model in self.models:
            if f"model.{model}.mass" in arrays:
                self._mass[model] = np.array(arrays[f"model.{model}.mass"], np.float64)
                self._sums[model] = np.array(arrays[f"model.{model}.sums"], np.float64)

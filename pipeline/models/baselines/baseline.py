"""What all baselines share. Axes as in pipeline/models/model.py."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.models.model import (
    MISS,
    FloatArray,
    IntArray,
    RankResult,
    Rows,
    Scores,
    Targets,
    TrainingCandidates,
)
from pipeline.state.queries import Queries
from pipeline.state.store import Store


class Baseline(Store):
    """A model without gated count features. Its ranks are exact, over all items that may be shown."""

    name: str

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Do nothing: there are no vectors."""

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray | None:
        """Return None: no history item accounts for a score."""
        return None


def exact_ranks(
    greater_B: npt.NDArray[np.int64],
    equal_B: npt.NDArray[np.int64],
    below_B: FloatArray,
    training: TrainingCandidates,
    targets: Targets,
) -> RankResult:
    """Return ranks over all items; `below_B` is replaced by the exact share where the target was ranked."""
    others_B = np.maximum(training.shown_B - 1, 1)
    exact_B = np.clip(1 - (greater_B + equal_B / 2) / others_B, 0, 1)
    below_B = np.where(greater_B < MISS, exact_B, below_B).astype(np.float32)
    return RankResult(greater_B, equal_B, training.shown_B, targets.tested_B, targets.known_B, below_B)

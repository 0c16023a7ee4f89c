"""What all baselines share: a name, no rows to initialise, parts of scores that rest on no history item."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Candidates
from pipeline.models.model import MISS, FloatArray, IntArray, RankResult, Rows, Scores, TrainResult
from pipeline.state.queries import Queries
from pipeline.state.store import Store


class Baseline(Store):
    """A model without gated count features. Its ranks are exact, over all items that may be shown."""

    name: str
    lists: tuple[int, ...]  # the popularity lists that candidates are drawn from when it is served

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Do nothing: there are no vectors."""

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray | None:
        """Return None: no history item accounts for a score."""
        return None


def counted(ranks: RankResult) -> TrainResult:
    """Return the result of a model that takes no steps."""
    return TrainResult(exact_below(ranks), float("nan"), 0.0, "no_parameters")


def exact_below(ranks: RankResult) -> RankResult:
    """Return ranks with the share of other items below each target counted where it was ranked."""
    others_B = np.maximum(ranks.candidates_B - 1, 1)
    exact_B = 1 - (ranks.greater_B + ranks.equal_B / 2) / others_B
    below_B = np.where(ranks.greater_B < MISS, np.clip(exact_B, 0, 1), ranks.below_B)
    return ranks._replace(below_B=below_B.astype(np.float32))


def share_below(own_B: FloatArray, negative_BS: FloatArray, used_BS: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the share of each query's used negatives that score below the target, ties counted half [B].

    NaN where none is used.

    >>> share_below(np.float32([2]), np.float32([[1, 2, 3, 0]]), np.array([[True, True, True,
    False]])).tolist() [0.5]
    """
    below_BS = (negative_BS < own_B[:, None]) + 0.5 * (negative_BS == own_B[:, None])
    drawn_B = used_BS.sum(1)
    total_B = np.where(used_BS, below_BS, 0).sum(1)
    share_B = np.divide(total_B, drawn_B, out=np.full(own_B.shape, np.nan), where=drawn_B > 0)
    return np.asarray(share_B, np.float32)

"""The protocol of every model, and what it sees: queries, a pool of rows, the targets.

Axes: B = queries, L = places of a window (newest first), C = candidate slots, N = sampled rows, M = item
rows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.features.memories import Candidates
from pipeline.models.tested import RankResult
from pipeline.state.queries import Queries
from pipeline.state.store import Column

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


class Pool(NamedTuple):
    """Which rows are scored: each query's candidates, and a sample that stands for all the others."""

    candidates: Candidates
    negatives_N: IntArray
    known: int  # rows that may be shown to somebody


class Targets(NamedTuple):
    """What a batch teaches, and where it tests. `row_B` is -1 where the event is no target: negative role,
    excluded, or unknown item.
    """

    row_B: IntArray
    weight_B: FloatArray
    # a positive event whose item the rules let through; a share of them where the catalogue is large
    tested_B: npt.NDArray[np.bool_]
    known_B: npt.NDArray[np.bool_]  # its item was known when the batch began
    seq: int
    # the item rows of all positive events, new and barred ones too (-1: not admitted): what is counted
    counted_B: IntArray
    pace: float = 1.0  # how much longer steps than usual are asked for; a model may leave it at that


class TrainResult(NamedTuple):
    """What a model says of one batch."""

    tested: RankResult
    loss: float  # mean over the targets; NaN without any
    gradient_norm: float
    skipped: str  # why no step was taken; "" when one was


class Model(Protocol):
    """A ranking model. It is a store: its columns are saved, digested, weighed and cleared with everything
    else.
    """

    @property
    def name(self) -> str:
        """The name in metrics and rankings."""

    @property
    def lists(self) -> tuple[int, ...]:
        """The popularity lists that it wants in its pool, see `pipeline.ranking.pools`."""

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        """Take note of items just admitted; no row number may decide anything."""

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        """Return the scores [B, C] of the pool's candidates; pure. Slots past a count mean nothing."""

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Test the batch with the parameters as they are, then update them from the same scores."""

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        """Return what each history item adds to the score of each row: [B, K, L + 1], the rest in the last
        place.

        The sum over the last axis is the score.
        """

    def columns(self) -> Mapping[str, Column]:
        """Return the model's columns."""

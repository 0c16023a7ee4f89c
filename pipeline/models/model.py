"""The protocol of every model, and what it sees: queries, candidates, targets.

Axes: B = queries, L = places of a window (newest first), N = candidates of all queries (those of query b are
`indptr[b]` to `indptr[b + 1]`), S = sampled negatives, K = places of a list, F = count features.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.features.bank import FeatureBank
from pipeline.features.block import Candidates
from pipeline.kernels import kernel
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import IdTable

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
Rows = Literal["item", "user", "event_type"]
MISS = np.iinfo(np.int32).max  # as `greater_B`: the target is none of its candidates


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a model: the keys of its table `[model.NAME]`."""


class Targets(NamedTuple):
    """What a batch teaches, and where it tests. `item_B` is -1 where the event is no target."""

    item_B: IntArray
    weight_B: FloatArray
    type_B: npt.NDArray[np.uint16]  # a stable hash of the event type's name
    role_B: npt.NDArray[np.int8]
    value_B: npt.NDArray[np.float64]  # NaN where the event had none
    tested_B: npt.NDArray[np.bool_]  # a positive event, its item neither excluded nor hidden
    known_B: npt.NDArray[np.bool_]  # its item was known when the batch began
    counted_B: IntArray  # the item rows of all positive events, new and excluded ones too (-1: not admitted)
    seq: int
    step_scale: float = 1.0  # how much longer steps than usual are asked for; a model may ignore it


class TrainingCandidates(NamedTuple):
    """What a batch is scored on: candidates, and a uniform draw of all items that stands for the others.

    `used_BS` is False where a negative is a candidate, the target or excluded of that query, `other_BS` only
    where it is the target or excluded. `stands_for_B`: how many items each used negative stands for.
    `place_B`: where the target stands among the candidates; -1: none of them, -2: the event has no target.
    """

    candidates: Candidates
    place_B: npt.NDArray[np.int64]
    target_features: FloatArray  # [B, F] of targets that are no candidates
    negatives_S: IntArray
    negative_features: FloatArray  # [positions, S, F]: by the query's session position
    used_BS: npt.NDArray[np.bool_]
    other_BS: npt.NDArray[np.bool_]
    stands_for_B: FloatArray
    shown_B: npt.NDArray[np.int64]  # items that may be shown, the target included


class Scores(NamedTuple):
    """The scores [N] of candidates; `detail` is what the model's `explain` needs of the computation."""

    values: FloatArray
    detail: Any = None


class RankResult(NamedTuple):
    """Where each target stood before the update; rows where `tested_B` is False mean nothing."""

    greater_B: npt.NDArray[np.int64]  # items that score above the target; MISS where it was not ranked
    equal_B: npt.NDArray[np.int64]  # other items that score the same as the target
    candidates_B: npt.NDArray[np.int64]  # items that may be shown, the target included
    tested_B: npt.NDArray[np.bool_]
    known_B: npt.NDArray[np.bool_]  # a test of an item that was not known is a miss
    below_B: FloatArray  # estimated share of all other items that score below the target; NaN: unknown
    loss_B: FloatArray | None = None  # nats, NaN where none; None where the model has no loss


class TrainResult(NamedTuple):
    """The result of learning one batch."""

    ranks: RankResult
    loss: float  # mean over the targets; NaN without any
    gradient_norm: float
    skipped: str  # why no step was taken; "" when one was


class ModelContext(NamedTuple):
    """What a model is built from, beside its own configuration."""

    users: IdTable
    items: IdTable
    bank: FeatureBank
    seed: int
    gated: bool = True  # `model.features`: whether count features are used


class Model(Protocol):
    """A ranking model. It is a store: its columns are saved, digested, grown and cleared."""

    @property
    def name(self) -> str:
        """The name in metrics and rankings."""

    def init_rows(self, axis: Rows, rows: IntArray, ids: Sequence[str]) -> None:
        """Initialise the rows of new items or users from their ids, independent of row order."""

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        """Return the scores of the candidates; pure."""

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Rank the targets with the parameters as they are, then update them from the same scores."""

    def explain(
        self, queries: Queries, candidates: Candidates, scores: Scores, places_BK: npt.NDArray[np.int64]
    ) -> FloatArray | None:
        """Return what each history item adds to scores [B, K, L + 1], the rest last; None: no such parts.

        `places` [B, K] are places among all candidates, -1 for none. The sum over the last axis is the score.
        """

    def columns(self) -> dict[str, Column]:
        """Return the model's columns by name."""


def ranks_within(
    scores_N: FloatArray, training: TrainingCandidates, targets: Targets, below_B: FloatArray
) -> RankResult:
    """Return where each target stands among its query's candidates.

    One that is none of them is a miss; one without a finite score stands below all.
    """
    indptr, place_B = training.candidates.indptr, training.place_B
    greater_B = np.full(place_B.shape[0], MISS, np.int64)
    equal_B = np.zeros(place_B.shape[0], np.int64)
    count_ranks(scores_N, indptr, place_B, greater_B, equal_B)
    return RankResult(greater_B, equal_B, training.shown_B, targets.tested_B, targets.known_B, below_B)


@kernel()
def count_ranks(scores_N, indptr, place_B, greater_B, equal_B):  # type: ignore[no-untyped-def]
    """Count the candidates above each target and those level with it, itself left out."""
    for b in range(place_B.shape[0]):
        if place_B[b] < 0:
            continue
        own = scores_N[place_B[b]]
        if not np.isfinite(own):
            continue
        greater = equal = 0
        for n in range(indptr[b], indptr[b + 1]):
            greater += scores_N[n] > own
            equal += scores_N[n] == own
        greater_B[b], equal_B[b] = greater, equal - 1

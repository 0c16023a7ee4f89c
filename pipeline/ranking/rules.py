"""Rules after scoring: what may not be shown gets -inf. A chain of functions; what a user consumed is barred
before scoring already (`Queries.barred`), because candidates must be topped up from what is left.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.features.memories import Candidates
from pipeline.models.model import FloatArray
from pipeline.state.queries import Queries
from pipeline.state.state import State
from pipeline.state.tables import LIVE

Rule = Callable[[State, Queries, Candidates, FloatArray], FloatArray]


def only_live(state: State, queries: Queries, candidates: Candidates, scores_BC: FloatArray) -> FloatArray:
    """Show nothing that has left the catalogue."""
    live = state.items.status.data[np.maximum(candidates.rows, 0)] == LIVE
    return np.where(live & (candidates.rows >= 0), scores_BC, np.float32(-np.inf))


RULES: tuple[Rule, ...] = (only_live,)


def apply_rules(
    rules: Sequence[Rule], state: State, queries: Queries, candidates: Candidates, scores_BC: FloatArray
) -> FloatArray:
    """Return the scores [B, C] after every rule in turn."""
    for rule in rules:
        scores_BC = rule(state, queries, candidates, scores_BC)
    return scores_BC

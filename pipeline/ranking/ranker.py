"""Lists of users by the served model: score the candidates, take the best, explain them.

Axes: B = users, K = places of a list.
"""

import numpy as np
import numpy.typing as npt

from pipeline.features.bank import FeatureBank
from pipeline.models.model import Model
from pipeline.ranking.explanations import reasons
from pipeline.ranking.lists import Ranked
from pipeline.ranking.top_k import filled_up, top_k
from pipeline.settings import RankConfig
from pipeline.state.queries import list_queries
from pipeline.state.state import State


def rank(
    state: State,
    bank: FeatureBank,
    model: Model,
    config: RankConfig,
    users: npt.NDArray[np.int32],
    explained: bool,
) -> Ranked:
    """Return the lists of these user rows, filled up with announced items where they are shorter than K.

    `explained`: with the history items that each place rests on. Changes nothing.
    """
    queries = list_queries(state, users)
    candidates = bank.candidates(queries)
    scores = model.score(queries, candidates)
    places_BK, scores_BK = top_k(scores.values, candidates, config.k)
    rows_BK = candidates.at(places_BK)
    parts = None
    if explained and config.explain:
        parts = model.explain(queries, candidates, scores, places_BK)
    if parts is None:
        reasons_BK = np.full((*rows_BK.shape, 0), -1, np.int32)
    else:
        reasons_BK = reasons(parts, queries.items_BL, rows_BK)
    return Ranked(*filled_up(rows_BK, scores_BK, state.newest), reasons_BK)

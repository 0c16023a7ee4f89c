"""Lists of users by the served model, and the records that go out for them.

Axes: B = users, K = places of a list.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.records import RankedItem, Ranking
from pipeline.features.bank import FeatureBank
from pipeline.models.model import Model
from pipeline.ranking.explanations import reasons
from pipeline.ranking.top_k import filled_up, top_k
from pipeline.settings import RankConfig
from pipeline.state.queries import list_queries
from pipeline.state.state import State

IntArray = npt.NDArray[np.int32]


class Ranked(NamedTuple):
    """Lists of item rows, best first, -1 past the end; `because_BK` [B, K, reasons] names history items."""

    rows_BK: IntArray
    scores_BK: npt.NDArray[np.float32]
    because_BK: IntArray


class Stamp(NamedTuple):
    """What the rankings of one batch have in common; `prefix` begins their ids."""

    prefix: str
    now_ms: int
    model: str
    version: int


def rank(
    state: State, bank: FeatureBank, model: Model, config: RankConfig, users: IntArray, explained: bool
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


def ranking_records(state: State, users: IntArray, ranked: Ranked, stamp: Stamp) -> list[Ranking]:
    """Return the records of lists. Flat lists and `map`: this is most of what Python does in a batch."""
    item_of, user_of = state.items.id_of, state.users.id_of
    filled_BK = ranked.rows_BK >= 0
    given_NR = ranked.because_BK[filled_BK]
    reasons_n = [item_of[row] for row in given_NR[given_NR >= 0].tolist()]
    edges = np.concatenate(([0], np.cumsum((given_NR >= 0).sum(1)))).tolist()
    items = list(
        map(
            RankedItem,
            [item_of[row] for row in ranked.rows_BK[filled_BK].tolist()],
            ranked.scores_BK[filled_BK].tolist(),
            [reasons_n[start:stop] for start, stop in pairwise(edges)],
        )
    )
    borders = np.concatenate(([0], np.cumsum(filled_BK.sum(1)))).tolist()
    prefix, now_ms, model, version = stamp
    newest = state.histories.newest_ms.data[users].tolist()
    return [
        Ranking(user_of[user], f"{prefix}{place}", items[start:stop], now_ms, event_ms, model, version)
        for place, (user, event_ms, (start, stop)) in enumerate(
            zip(users.tolist(), newest, pairwise(borders), strict=True)
        )
    ]

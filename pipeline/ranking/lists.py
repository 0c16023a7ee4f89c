"""Lists of users by the served model, why each item is on them, and the records that go out for them.

Axes: B = users, K = places of a list, L = places of a window, P = L and what history does not add.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.records import RankedItem, Ranking
from pipeline.features.bank import FeatureBank
from pipeline.kernels import kernel
from pipeline.models.model import FloatArray, Model
from pipeline.ranking.top_k import filled_up, top_k
from pipeline.settings import RankConfig
from pipeline.state.queries import list_queries
from pipeline.state.state import State

IntArray = npt.NDArray[np.int32]
REASONS = 3  # at most so many items an entry
LEAST_SHARE = 0.1  # of all that history adds: less is no reason


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


def reasons(parts_BKP: FloatArray, items_BL: IntArray, rows_BK: IntArray) -> IntArray:
    """Return the history items that add most to each score, as the model computes it: rows [B, K,
    REASONS], the strongest first, -1 where there is no further reason.

    `parts` [B, K, L + 1] are a model's contributions. Places of the same item count together. An item is no
    reason for itself.
    """
    out = np.full((*rows_BK.shape, REASONS), -1, np.int32)
    _reasons(
        parts_BKP, items_BL, rows_BK, np.float32(LEAST_SHARE), np.zeros(parts_BKP.shape[2], np.float32), out
    )
    return out


@kernel()
def _reasons(parts, items_BL, rows_BK, least_share, merged, out):  # type: ignore[no-untyped-def]
    length = min(items_BL.shape[1], parts.shape[2] - 1)
    for b in range(rows_BK.shape[0]):
        places = 0
        while places < length and items_BL[b, places] >= 0:
            places += 1
        for k in range(rows_BK.shape[1]):
            if rows_BK[b, k] < 0:
                continue
            total = np.float32(0)
            for p in range(places):
                first = 0
                while items_BL[b, first] != items_BL[b, p]:
                    first += 1
                if first == p:
                    merged[p] = 0
                merged[first] += parts[b, k, p]
                if first != p:
                    merged[p] = 0
            for p in range(places):
                if items_BL[b, p] == rows_BK[b, k]:
                    merged[p] = 0
                if merged[p] > 0:
                    total += merged[p]
            for r in range(out.shape[2]):
                best = -1
                for p in range(places):
                    if merged[p] > least_share * total and (best < 0 or merged[p] > merged[best]):
                        best = p
                if best < 0:
                    break
                out[b, k, r] = items_BL[b, best]
                merged[best] = 0

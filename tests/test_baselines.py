"""Baselines against one brute force: scores from a log of all events, ranks by a count of scores."""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness.streams import MINUTE_MS, Batches, Event, shoppers, small_settings, spied

from pipeline.features import transitions
from pipeline.features.block import Candidates
from pipeline.features.popularity import LISTED
from pipeline.features.sessions import PLACES
from pipeline.models.baselines import neighbours, session_knn
from pipeline.models.baselines.popularity import HALF_LIFE_COLUMNS
from pipeline.models.model import Model, Targets, TrainingCandidates, TrainResult
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state import reclaiming
from pipeline.state.positions import DAY_MS
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE

Scores = dict[int, float]  # by item row; every other item scores its popularity


class Seen(NamedTuple):
    """One positive event of the log; `before`: the user's items just before it, newest first."""

    user: int
    item: int
    time_ms: int
    before: list[int]


class Log(list[Seen]):
    """All positive events so far; what evicted items have done counts no more."""

    def popularity(self, half_life: str) -> Scores:
        """Return decayed counts by "all", a number of events, or "24h" of event time."""
        out: Scores = defaultdict(float)
        newest = max((event.time_ms for event in self), default=0)
        for age, event in enumerate(reversed(self), 1):
            days = half_life == "24h" and (newest - event.time_ms) / DAY_MS
            out[event.item] += 0.5 ** (days or (0 if half_life in ("all", "24h") else age / float(half_life)))
        return out

    def pairs(self, reach: int, fade: float, half_life: str, both: bool) -> dict[int, Scores]:
        """Return how often items came after another one, or near it."""
        out: dict[int, Scores] = defaultdict(lambda: defaultdict(float))
        kept = 1.0 if half_life == "all" else 0.5 ** (1 / float(half_life))
        for age, event in enumerate(reversed(self), 1):
            for k, h in enumerate(event.before[:reach]):
                out[h][event.item] += kept**age * fade**k
                if both:
                    out[event.item][h] += kept**age * fade**k
        return out

    def sessions(self, gap_ms: float) -> tuple[list[list[int]], dict[int, int]]:
        """Return the items of all sessions, and each user's newest session."""
        sessions: list[list[int]] = []
        of_user: dict[int, int] = {}
        newest: dict[int, int] = {}
        for event in self:
            if event.user not in of_user or event.time_ms - newest[event.user] >= gap_ms:
                of_user[event.user] = len(sessions)
                sessions.append([])
            sessions[of_user[event.user]].append(event.item)
            newest[event.user] = max(event.time_ms, newest.get(event.user, 0))
        return sessions, of_user


def over_popularity(log: Log, own: Scores, half_life: str, weight: float) -> Scores:
    counts = log.popularity(half_life)
    total = sum(counts.values())
    for m, count in counts.items():
        own[m] = own.get(m, 0.0) + weight * count / total
    return own


def pair_scores(
    reach: int, fade: float, both: bool, half_life: str = "all", base: str = "1000", weight: float = 1
):  # type: ignore[no-untyped-def]
    def scores(log: Log, user: int, history: list[int]) -> Scores:
        pairs, out = log.pairs(reach, fade, half_life, both), defaultdict(float)
        for k, h in enumerate(history[:reach]):
            for m, count in pairs[h].items():
                out[m] += neighbours.KNN_FADE**k * count
        return over_popularity(log, out, base, weight)

    return scores


def session_scores(gap_ms: float, after: bool):  # type: ignore[no-untyped-def]
    def scores(log: Log, user: int, history: list[int]) -> Scores:
        (sessions, of_user), out = log.sessions(gap_ms), defaultdict(float)
        mine = list(dict.fromkeys(history[: session_knn.REACH]))
        for number, whole in enumerate(sessions):
            shared = [m for m in mine if m in whole]  # an item keeps its visit when its place is replaced
            if not shared or number == of_user.get(user):
                continue
            items = whole[-PLACES:]
            near = sum(session_knn.FADE ** history.index(m) for m in shared)
            start = 0
            if after and shared[0] in items:
                start = len(items) - items[::-1].index(shared[0])
            for j, m in enumerate(items[start:]):
                if after or m != shared[0]:
                    out[m] += near * (session_knn.STEP**j if after else 1)
        return over_popularity(log, out, "1000", 1)

    return scores


def popular_scores(half_life: str):  # type: ignore[no-untyped-def]
    return lambda log, user, history: log.popularity(half_life)


ALL = {"half_life": "all"}
GAP_MS = 45 * MINUTE_MS  # pauses of the simulated users lie on both sides of it
NEAR = (transitions.REACH, transitions.FADE)
COUNTED = (neighbours.OWN_REACH, neighbours.OWN_FADE)
CASES: list[tuple[str, dict[str, Any], Any]] = [
    *(
        ("recent_popularity", {"half_life": each}, popular_scores(each))
        for each in (*HALF_LIFE_COLUMNS, "50")
    ),
    ("markov", {"half_life": "50"}, pair_scores(1, 1.0, False, "50")),
    ("markov", ALL | {"popularity": "300", "weight": 7}, pair_scores(1, 1.0, False, "all", "300", 7)),
    ("item_knn", {}, pair_scores(*NEAR, False)),
    ("item_knn", {"directed": False}, pair_scores(*NEAR, True)),
    ("item_knn", {"half_life": "40", "popularity": "24h"}, pair_scores(*COUNTED, False, "40", "24h")),
    ("item_knn", {"half_life": "80", "directed": False}, pair_scores(*COUNTED, True, "80")),
]
for gap_ms in (GAP_MS, 0):
    for after in (False, True):
        options = {"gap_minutes": gap_ms // MINUTE_MS, "after": after}
        CASES.append(("session_knn", options, session_scores(gap_ms or math.inf, after)))


def named(name: str, options: dict[str, Any]) -> str:
    return " ".join((name, *(f"{key}={value}" for key, value in options.items())))


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=2e-4, abs_tol=1e-6)


@pytest.mark.parametrize("exclude", [None, []], ids=["all excluded", "repeats"])
@pytest.mark.parametrize(("name", "options", "slow"), CASES, ids=[named(*case[:2]) for case in CASES])
def test_scores_and_parts_are_those_of_brute_force(
    name: str, options: dict[str, Any], slow: Any, exclude: list[str] | None
) -> None:
    log, tests = Log(), 0

    def hook(model: Model, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        nonlocal tests
        candidates = training.candidates
        found = model.score(queries, candidates)
        count = int(np.diff(candidates.indptr).max(initial=0))
        places_BK = candidates.indptr[:-1, None] + np.arange(count)
        places_BK = np.where(places_BK < candidates.indptr[1:, None], places_BK, -1)
        parts = model.explain(queries, candidates, found, places_BK)
        result = model.learn(queries, training, targets)
        for b in range(queries.user_B.size if targets.seq > 5 else 0):
            history = queries.items_BL[b, : queries.length_B[b]].tolist()
            expected = slow(log, int(queries.user_B[b]), history)
            scores = {int(candidates.rows[n]): found.values[n] for n in places_BK[b] if n >= 0}
            assert all(close(score, expected.get(m, 0.0)) for m, score in scores.items())
            if parts is not None:
                mine = parts[b, places_BK[b] >= 0].sum(1)
                np.testing.assert_allclose(mine, [*scores.values()], rtol=1e-4, atol=1e-6)
            tests += len(scores)
        for b in np.flatnonzero((targets.counted_B >= 0) & (targets.weight_B > 0)).tolist():
            before = queries.items_BL[b, : queries.length_B[b]].tolist()
            user, item = int(queries.user_B[b]), int(targets.counted_B[b])
            log.append(Seen(user, item, int(queries.now_ms_B[b]), before))
        return result

    recommender = spied(small_settings(exclude=exclude, history=12), name, hook, **options)
    stream = shoppers(np.random.default_rng(8), Batches(), 10, size=30, users=14, window=36)
    for raw in stream:
        recommender.step(raw)
    assert tests > 1000


def learn(model: Model, *given: Any) -> TrainResult:
    return model.learn(*given)


def exact_scores(model: Any, recommender: Recommender, queries: Queries, b: int) -> np.ndarray:  # type: ignore[type-arg]
    """Return what the model gives every item row, through its own score of all of them."""
    rows = np.arange(recommender.state.items.capacity, dtype=np.int32)
    indptr = np.zeros(queries.user_B.size + 1, np.int64)
    indptr[b + 1 :] = rows.size
    nothing = np.zeros((rows.size, 0), np.float32)
    return model.score(queries, Candidates(rows, indptr, nothing, nothing)).values  # type: ignore[no-any-return]


EXACT = [*(case[:2] for case in CASES), ("isgd", {}), ("biased_mf", {})]


@pytest.mark.parametrize("exclude", [None, []], ids=["all excluded", "repeats"])
@pytest.mark.parametrize(("name", "options"), EXACT, ids=[named(*case) for case in EXACT])
def test_ranks_are_exact_to_depth_100_over_a_long_tail(
    name: str, options: dict[str, Any], exclude: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under eviction, with items hidden, and with more items than popularity lists hold."""
    monkeypatch.setattr(reclaiming, "ROWS_WORTH_A_CYCLE", 30)
    seen: dict[str, int] = defaultdict(int)

    def hook(model: Model, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        live = recommender.state.items.status.data == LIVE
        tested = np.flatnonzero(targets.item_B >= 0)[:25].tolist()
        every = {b: exact_scores(model, recommender, queries, b) for b in tested}
        result = model.learn(queries, training, targets)
        ranks = result.ranks
        for b, scores in every.items() if targets.seq > 6 else ():
            target, shown = int(targets.item_B[b]), live.copy()
            out = queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]]
            shown[out[out >= 0]] = False
            shown[target] = False
            # products of matrices, and counts that are divided, differ in their last bits
            rounded = 0.0 if name in ("markov", "item_knn", "session_knn") else 1e-6
            near = np.isclose(scores, scores[target], rtol=rounded, atol=rounded * 1e-3) & shown
            above, level = int((scores > scores[target])[shown & ~near].sum()), int(near.sum())
            greater, equal = int(ranks.greater_B[b]), int(ranks.equal_B[b])
            if above + level < 100 or greater < 100:
                assert above <= greater <= greater + equal <= above + level
                assert rounded or greater == above
                assert rounded or equal == level or above + level >= 100
                seen["near"] += 1
                seen["level"] += level > 0
            else:
                seen["far"] += 1
            seen["hidden"] += int((~live[out[out >= 0]]).sum())
        return result

    limits = LimitsConfig(items=420)
    recommender = spied(small_settings(exclude=exclude, limits=limits, history=12), name, hook, **options)
    rng, batches = np.random.default_rng(6), Batches()
    for n in range(12):
        picked = np.where(rng.random(200) < 0.5, rng.random(200) * 30, rng.random(200) * 900).astype(int)
        events = [Event(f"u{rng.integers(12)}", f"i{m}") for m in (picked + 3 * n).tolist()]
        recommender.step(batches(events))
        items = recommender.state.items
        items.show(rng.permutation(items.rows(list(items.row_of)))[:8], False)
        recommender.bank.popularity.update_lists(np.empty(0, np.int32), items)
    assert recommender.state.items.evicted > 50
    assert (recommender.state.items.status.data == LIVE).sum() > LISTED
    assert min(seen["near"], seen["hidden"], seen["far"]) > (10 if exclude is None else -1)
    assert seen["level"] > 5 or options != ALL


def test_counts_go_on_when_their_weights_are_brought_back_to_one() -> None:
    """A half-life of one event doubles each weight: float32 would be full after 128."""
    for name in ("recent_popularity", "markov"):
        recommender = spied(small_settings(exclude=[]), name, learn, half_life="1")
        batches, rows = Batches(), []
        for _ in range(5):
            recommender.step(batches([Event("u", f"i{n % 3}") for n in range(60)]))
        columns, rows = recommender.models[0].columns(), recommender.state.items.rows(["i0", "i1", "i2"])
        if name == "recent_popularity":
            counts = columns["counts"].data[rows] / columns["gain"].data[0]
            np.testing.assert_allclose(counts, [1 / 7, 2 / 7, 4 / 7], rtol=1e-5)
            continue
        held = columns["pairs_partner"].data[rows[2]]
        assert held[held >= 0].tolist() == [rows[0]]
        value = columns["pairs_stored"].data[rows[2], 0] / columns["pairs_gain"].data[0]
        assert value == pytest.approx(1 / 8 / (1 - 1 / 8), rel=1e-5)

"""Rank metrics by segment: hit rate, NDCG and reciprocal rank at several cutoffs, cumulative and recent.

One histogram of ranks for each model and segment holds what all cumulative metrics are derived from; a window
of ranks holds the recent ones. Axes: B = events of a batch, N = tests, S = segments, P = places, F =
MEASURES.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.curves import Curve, CurveHistogram
from pipeline.kernels import kernel
from pipeline.models.model import RankResult

CUTOFF = 10  # the K of hr@10, ndcg@10 and mrr@10
CUTOFFS = (1, 5, 10, 20, 50)
MAX_PLACES = CUTOFFS[-1]
MEASURES = ("hr", "ndcg", "mrr")
USER_SEGMENTS = ("all", "cold", "warm")
SEGMENTS = (*USER_SEGMENTS, "new", "old")  # the last two by item
COLD_EVENTS = 5  # a user with fewer earlier events is cold
WINDOW_TESTS = 10_000

Ints = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[np.generic]]

_PLACES = np.arange(1, MAX_PLACES + 1)
# what the target adds to each measure at each place: [P, F]
_GAINS_PF = np.stack((np.ones(MAX_PLACES), 1 / np.log2(_PLACES + 1), 1 / _PLACES), axis=1)
_CUMULATIVE_GAINS = np.concatenate((np.zeros((1, len(MEASURES))), np.cumsum(_GAINS_PF, axis=0)))


class Gains(NamedTuple):
    """Expected metrics of each target, the order of equal scores being random. Each float64, shape [B]."""

    hit_B: Float64s
    ndcg_B: Float64s
    mrr_B: Float64s


def expected_gains(greater_B: npt.ArrayLike, equal_B: npt.ArrayLike, k: int = CUTOFF) -> Gains:
    """Return the hit, NDCG and reciprocal rank at `k` (1 to 50), averaged over the orders of equal scores.

    A target with `greater` better candidates and `equal` others of the same score takes each of the places
    greater + 1 .. greater + 1 + equal with equal probability. With one relevant item the ideal gain is 1, so
    NDCG is 1 / log2(place + 1) and the reciprocal rank 1 / place; both are 0 beyond place `k`.

    >>> gains = expected_gains([0, 9, 10], [0, 1, 0])
    >>> gains.hit_B.tolist()
    [1.0, 0.5, 0.0]
    """
    greater_B, equal_B = np.asarray(greater_B, np.int64), np.asarray(equal_B, np.int64)
    first_B, last_B = np.minimum(greater_B, k), np.minimum(greater_B + equal_B + 1, k)
    gains_BF = _CUMULATIVE_GAINS[last_B] - _CUMULATIVE_GAINS[first_B]
    return Gains(*(gains_BF / (equal_B + 1.0)[:, None]).T)


def ranked(result: RankResult) -> tuple[Ints, Ints]:
    """Return `greater` and `equal` [B], those of an unknown item beyond every cutoff."""
    known_B = result.tested_B & result.known_B
    return np.where(known_B, result.greater_B, MAX_PLACES), np.where(known_B, result.equal_B, 0)


def gains_of(result: RankResult, k: int = CUTOFF) -> Gains:
    """Return the gains [B] of a batch: 0 where the item was unknown, NaN where the event is no test."""
    gains = expected_gains(*ranked(result), k)
    return Gains(*(np.where(result.tested_B, gain_B, np.nan) for gain_B in gains))


SegmentMetrics = TypedDict(
    "SegmentMetrics", {"tests": int, "hr@10": float, "ndcg@10": float, "mrr@10": float}
)


class ModelMetrics(SegmentMetrics):
    """Cumulative metrics of one model, over all tests and by cold and warm users; 0.0 without tests."""

    cold: SegmentMetrics
    warm: SegmentMetrics


class ListHits(NamedTuple):
    """Events of users with a published list, and the share of them on an item of that list."""

    events: int
    hr: float


class Totals(NamedTuple):
    """Counts since the first event, at `CUTOFF` and by `USER_SEGMENTS`. M = models."""

    tests_MS: Ints
    sums_MSF: Float64s
    list_hits: Ints  # events of users who had a published list, and hits among them


class RankMetrics:
    """Accumulate the ranks of several models, `models[0]` the served one.

    Cumulative metrics cover all tests since the first event, recent ones the last `window` tests.
    """

    def __init__(self, models: Sequence[str], window: int = WINDOW_TESTS) -> None:
        self.models = list(models)
        self._ranks = {model: _ModelRanks(window) for model in models}
        self._list_hits = np.zeros(2, np.int64)  # events, hits
        self._recent_list_hits = _Ring(window, 1)

    def update(self, model: str, result: RankResult, cold_B: Bools, new_B: npt.NDArray[np.generic]) -> None:
        """Add a model's tests of a batch, by users with few earlier events (cold) and by new items."""
        self._ranks[model].update(result, cold_B, np.asarray(new_B, bool))

    def update_list_hits(self, hit_N: Bools) -> None:
        """Add events of users with a published list; `hit_N`: the event's item was on it."""
        self._list_hits += np.array([len(hit_N), np.count_nonzero(hit_N)])
        self._recent_list_hits.add(hit_N[:, None])

    def ratios(self) -> dict[tuple[str, str, str], float]:
        """Return (model, measure, segment) -> mean over the model's recent tests; no entry without tests."""
        out: dict[tuple[str, str, str], float] = {}
        for model, ranks in self._ranks.items():
            for segment, means in ranks.recent_means():
                out |= {
                    (model, measure, segment): mean for measure, mean in zip(MEASURES, means, strict=True)
                }
        hits = self._recent_list_hits.rows()
        if len(hits):
            out[self.models[0], "served_hr", "all"] = float(hits.mean())
        return out

    def cumulative(self) -> dict[str, ModelMetrics]:
        """Return every model's metrics since the first event, in full precision, with their counts."""
        users = len(USER_SEGMENTS)
        return {
            model: model_metrics(ranks.tests_S[:users], ranks.sums(CUTOFF)[:users])
            for model, ranks in self._ranks.items()
        }

    def at_cutoffs(self, model: str) -> dict[str, float]:
        """Return hit rate and NDCG over all tests at each of `CUTOFFS`, as `hr@20`; 0.0 without tests."""
        ranks = self._ranks[model]
        out: dict[str, float] = {}
        for k in CUTOFFS:
            means_F = (ranks.sums(k)[0] / max(int(ranks.tests_S[0]), 1)).tolist()
            out |= {f"hr@{k}": means_F[0], f"ndcg@{k}": means_F[1]}
        return out

    def of_segment(self, model: str, segment: str) -> SegmentMetrics:
        """Return a model's cumulative metrics at ten places in one of `SEGMENTS`; ValueError for another."""
        place, ranks = SEGMENTS.index(segment), self._ranks[model]
        return _segment_metrics(int(ranks.tests_S[place]), ranks.sums(CUTOFF)[place])

    def curve(self, model: str) -> Curve:
        """Return a model's ROC and precision-recall curves."""
        return self._ranks[model].curve.curve()

    def totals(self) -> Totals:
        """Return a copy of the counts that the cumulative metrics are derived from, models in order."""
        users, ranks = len(USER_SEGMENTS), self._ranks.values()
        tests_MS = np.stack([each.tests_S[:users] for each in ranks])
        sums_MSF = np.stack([each.sums(CUTOFF)[:users] for each in ranks])
        return Totals(tests_MS, sums_MSF, self._list_hits.copy())

    def list_hits(self) -> ListHits:
        """Return the share of events on an item of the list last published to their user."""
        events, hits = self._list_hits.tolist()
        return ListHits(events, hits / events if events else 0.0)

    def arrays(self) -> Arrays:
        out: Arrays = {"list_hits": self._list_hits.copy(), "list_hits.recent": self._recent_list_hits.rows()}
        for model, ranks in self._ranks.items():
            out |= {f"model.{model}.{name}": array for name, array in ranks.arrays().items()}
        return out

    def load(self, arrays: Arrays) -> None:
        self._list_hits[:] = arrays["list_hits"]
        if "list_hits.recent" in arrays:
            self._recent_list_hits.add(arrays["list_hits.recent"])
        for model, ranks in self._ranks.items():
            if f"model.{model}.tests" in arrays:
                ranks.load({name: arrays[f"model.{model}.{name}"] for name in ranks.arrays()})


def model_metrics(tests_S: Ints, sums_SF: Float64s) -> ModelMetrics:
    """Return the metrics of counts [S] and sums [S, F] of `USER_SEGMENTS`."""
    whole, cold, warm = (_segment_metrics(n, sums) for n, sums in zip(tests_S.tolist(), sums_SF, strict=True))
    return {**whole, "cold": cold, "warm": warm}


class _ModelRanks:
    """The ranks of one model: `mass_SP` is the expected number of targets at each of the first places."""

    def __init__(self, window: int) -> None:
        self.tests_S = np.zeros(len(SEGMENTS), np.int64)
        self.mass_SP = np.zeros((len(SEGMENTS), MAX_PLACES))
        self.curve = CurveHistogram()
        self._recent = _Ring(window, 3)  # greater, equal, whether the user is cold

    def update(self, result: RankResult, cold_B: Bools, new_B: Bools) -> None:
        greater_B, equal_B = ranked(result)
        recent = (self._recent.data, self._recent.written)
        _add(result.tested_B, (greater_B, equal_B), (cold_B, new_B), self.tests_S, self.mass_SP, recent)
        self.curve.update(result.below_B, result.tested_B, result.known_B)

    def sums(self, k: int) -> Float64s:
        """Return the sum of every measure at cutoff `k` in every segment: [S, F]."""
        sums_SF: Float64s = self.mass_SP[:, :k] @ _GAINS_PF[:k]
        return sums_SF

    def recent_means(self) -> Iterator[tuple[str, list[float]]]:
        """Yield each of `USER_SEGMENTS` that has recent tests, with the means of the measures."""
        greater_N, equal_N, cold_N = self._recent.rows().T
        gains_NF = np.stack(expected_gains(greater_N, equal_N), axis=1)
        masks = (np.ones(len(cold_N), bool), cold_N > 0, cold_N == 0)
        for segment, mask_N in zip(USER_SEGMENTS, masks, strict=True):
            if mask_N.any():
                yield segment, gains_NF[mask_N].mean(axis=0).tolist()

    def arrays(self) -> Arrays:
        counts = {"tests": self.tests_S.copy(), "mass": self.mass_SP.copy(), "recent": self._recent.rows()}
        return counts | self.curve.arrays()

    def load(self, arrays: Arrays) -> None:
        self.tests_S[:], self.mass_SP[:] = arrays["tests"], arrays["mass"]
        self.curve.load(arrays)
        self._recent.add(arrays["recent"])


class _Ring:
    """The last `size` rows: row n since the first lies at n % size; `written` [1] counts them."""

    def __init__(self, size: int, columns: int) -> None:
        self.data = np.zeros((size, columns), np.int64)
        self.written = np.zeros(1, np.int64)

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        rows = rows[-len(self.data) :]
        self.data[(self.written + np.arange(len(rows))) % len(self.data)] = rows
        self.written += len(rows)

    def rows(self) -> Ints:
        """Return a copy, oldest first."""
        written = int(self.written[0])
        if written <= len(self.data):
            return self.data[:written].copy()
        return np.roll(self.data, -(written % len(self.data)), axis=0)


@kernel()
def _add(tested_B, ranks, flags, tests_S, mass_SP, recent):  # type: ignore[no-untyped-def]
    """Count every test in its segments, each target spread evenly over the places that it can take."""
    greater_B, equal_B = ranks
    cold_B, new_B = flags
    data, written = recent
    for b in range(tested_B.shape[0]):
        if not tested_B[b]:
            continue
        greater, equal = greater_B[b], equal_B[b]
        by_user, by_item = 1 if cold_B[b] else 2, 3 if new_B[b] else 4  # of SEGMENTS
        for s in (0, by_user, by_item):
            tests_S[s] += 1
            for place in range(greater, min(greater + equal + 1, mass_SP.shape[1])):
                mass_SP[s, place] += 1.0 / (equal + 1)
        row = data[written[0] % data.shape[0]]
        row[0], row[1], row[2] = greater, equal, cold_B[b]
        written[0] += 1


def _segment_metrics(tests: int, sums_F: Float64s) -> SegmentMetrics:
    hr, ndcg, mrr = (sums_F / max(tests, 1)).tolist()
    return {"tests": tests, "hr@10": hr, "ndcg@10": ndcg, "mrr@10": mrr}

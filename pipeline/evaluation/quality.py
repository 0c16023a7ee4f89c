"""The judge: ranking quality on events that were predicted before they were learned.

Axes: B = events of a batch, N = tests, S = segments (all, cold, warm), F = figures (hit, ndcg, mrr).
Nothing here knows the models: it gets counts (`RankResult`) and keeps sums in float64.
"""

from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from pipeline.models.model import RankResult

CUTOFF = 10  # the K of hr@10, ndcg@10 and mrr@10
SEGMENTS = ("all", "cold", "warm")
MEASURES = ("hr", "ndcg", "mrr")
COLD_BELOW = 5  # a user with fewer earlier events is cold

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
IntLike = npt.NDArray[np.integer]
Arrays = dict[str, npt.NDArray[np.generic]]


class Gains(NamedTuple):
    """Expected figures of each target, its place among equal scores being random. Each float64, shape [B]."""

    hit_B: Float64s
    ndcg_B: Float64s
    mrr_B: Float64s


def expected_gains(greater_B: IntLike, equal_B: IntLike, k: int = CUTOFF) -> Gains:
    """Return what each target is worth in the first `k` places, on average over the orders of equal scores.

    A target with `greater` better and `equal` other candidates of its own score stands on each of the places
    greater + 1 .. greater + 1 + equal with the same chance. With one relevant item the ideal gain is 1, so
    NDCG is 1 / log2(place + 1) and the reciprocal rank 1 / place; both are 0 beyond place `k`.

    Raises ValueError where a count is negative.

    >>> gains = expected_gains(np.array([0, 9, 10]), np.array([0, 1, 0]))
    >>> gains.hit_B.tolist()
    [1.0, 0.5, 0.0]
    """
    greater_B, equal_B = np.asarray(greater_B, np.int64), np.asarray(equal_B, np.int64)
    if greater_B.size and min(greater_B.min(), equal_B.min()) < 0:
        raise ValueError(
            f"counts of candidates are {greater_B.min()} (greater) and {equal_B.min()} (equal) at the least: "
            "expected 0 or more; don't count the target itself among the equals"
        )
    first_B = np.minimum(greater_B, k)  # places before the target's best, seen from the first k
    last_B = np.minimum(greater_B + equal_B + 1, k)
    ways_B = equal_B + 1.0
    places = np.arange(1, k + 1)
    sums = [np.concatenate(([0.0], np.cumsum(gain))) for gain in (1 / np.log2(places + 1), 1 / places)]
    ndcg_B, mrr_B = ((total[last_B] - total[first_B]) / ways_B for total in sums)
    return Gains((last_B - first_B) / ways_B, ndcg_B, mrr_B)


def gains_of(tested: RankResult, k: int = CUTOFF) -> Gains:
    """Return the gains of a batch's tests: 0 where the item was not known, NaN where the event is no test."""
    # An event that is no test may hold anything, so its counts must not reach the check for negative ones.
    counts = [
        np.where(tested.tested_B & tested.known_B, column, 0) for column in (tested.greater_B, tested.equal_B)
    ]
    known = [np.where(tested.known_B, gain_B, 0.0) for gain_B in expected_gains(counts[0], counts[1], k)]
    return Gains(*(np.where(tested.tested_B, gain_B, np.nan) for gain_B in known))


SegmentFigures = TypedDict(
    "SegmentFigures", {"tests": int, "hr@10": float, "ndcg@10": float, "mrr@10": float}
)


class ModelFigures(SegmentFigures):
    """Cumulative figures of one model, over all tests and by cold and warm users; 0.0 where no test was."""

    cold: SegmentFigures
    warm: SegmentFigures


class ServedFigures(NamedTuple):
    """How many events came from users with a published list, and the share that took an item out of it."""

    events: int
    hr: float


class Totals(NamedTuple):
    """Counts since the first event, from which all cumulative figures are made. M = models."""

    tests_MS: npt.NDArray[np.int64]
    sums_MSF: Float64s
    served: npt.NDArray[np.int64]  # events of users who had a published list, and hits among them


class Quality:
    """Keep cumulative and recent figures of several models. A store: checkpoints use `arrays` and `load`.

    `models[0]` is the served one. The cumulative figures are sums in float64 over everything since the first
    event; the recent ones are means over the last `window` tests.
    """

    def __init__(self, models: list[str], window: int = 10_000) -> None:
        """Start from zero. Raises ValueError for no model, one named twice, or a window below 1."""
        if not models or len(set(models)) != len(models):
            raise ValueError(f"models {models}: expected one or more names, each once")
        if window < 1:
            raise ValueError(f"window {window}: expected 1 test or more")
        self.models = list(models)
        self.window = window
        self._tests = {model: np.zeros(len(SEGMENTS), np.int64) for model in models}
        self._sums = {model: np.zeros((len(SEGMENTS), len(MEASURES))) for model in models}
        self._recent = {
            model: _Ring(window, len(MEASURES) + 1) for model in models
        }  # last column: the user is cold
        self._served = np.zeros(2, np.int64)  # events, hits
        self._served_recent = _Ring(window, 1)

    def update(self, model: str, tested: RankResult, cold_B: Bools) -> Gains:
        """Add one model's tests of a batch. `cold_B`: the user had fewer than `COLD_BELOW` earlier events.

        Returns the gains of all B events (NaN: no test), so that drift detection need not compute them again.
        Raises KeyError when the model was not named at the start.
        """
        gains = gains_of(tested)
        figures_NF = np.stack(gains, axis=1)[tested.tested_B]
        cold_N = np.asarray(cold_B, bool)[tested.tested_B]
        for segment, in_N in enumerate(_segments(cold_N)):
            self._tests[model][segment] += len(figures_NF[in_N])
            self._sums[model][segment] += figures_NF[in_N].sum(axis=0)
        self._recent[model].add(np.column_stack((figures_NF, cold_N)))
        return gains

    def update_served(self, hit_B: Bools) -> None:
        """Add events whose user had a published list; `hit_B`: the user took an item that was on it."""
        self._served += np.array([len(hit_B), np.count_nonzero(hit_B)])
        self._served_recent.add(np.asarray(hit_B, np.float64)[:, None])

    def ratios(self) -> dict[tuple[str, str, str], float]:
        """Return (model, measure, segment) -> mean over the recent tests; what has no test yet is left out.

        A segment's mean is over its share of the model's last `window` tests.
        """
        out: dict[tuple[str, str, str], float] = {}
        for model in self.models:
            rows = self._recent[model].rows()
            cold_N = rows[:, -1] > 0
            for segment, in_N in zip(SEGMENTS, _segments(cold_N), strict=True):
                figures_NF = rows[in_N][:, :-1]
                if len(figures_NF):
                    means = figures_NF.mean(axis=0).tolist()
                    out |= {
                        (model, measure, segment): mean for measure, mean in zip(MEASURES, means, strict=True)
                    }
        served = self._served_recent.rows()
        if len(served):
            out[self.models[0], "served_hr", "all"] = float(served.mean())
        return out

    def cumulative(self) -> dict[str, ModelFigures]:
        """Return every model's figures since the first event, in full precision, with their counts."""
        return {model: model_figures(self._tests[model], self._sums[model]) for model in self.models}

    def totals(self) -> Totals:
        """Return a copy of the counts behind the cumulative figures, models in order."""
        tests, sums = ([kept[model] for model in self.models] for kept in (self._tests, self._sums))
        return Totals(np.stack(tests), np.stack(sums), self._served.copy())

    def served(self) -> ServedFigures:
        """Return the share of events that took an item out of the list last published to their user."""
        events, hits = self._served.tolist()
        return ServedFigures(events, hits / events if events else 0.0)

    def arrays(self) -> Arrays:
        """Return everything by name: sums and counts of each model, and the recent tests oldest first."""
        out: Arrays = {"served": self._served.copy(), "served.recent": self._served_recent.rows()}
        for model in self.models:
            out[f"model.{model}.tests"] = self._tests[model].copy()
            out[f"model.{model}.sums"] = self._sums[model].copy()
            out[f"model.{model}.recent"] = self._recent[model].rows()
        return out

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; what it doesn't hold, as of a new model, starts from zero."""
        self._served = np.array(arrays["served"], np.int64)
        self._served_recent = _Ring(self.window, 1, arrays.get("served.recent"))
        for model in self.models:
            if f"model.{model}.tests" in arrays:
                self._tests[model] = np.array(arrays[f"model.{model}.tests"], np.int64)
                self._sums[model] = np.array(arrays[f"model.{model}.sums"], np.float64)
                self._recent[model] = _Ring(self.window, len(MEASURES) + 1, arrays[f"model.{model}.recent"])


def between(before: ModelFigures, after: ModelFigures) -> ModelFigures:
    """Return the figures of the tests between two calls of `cumulative`, as for the quarters of a run.

    >>> figures = lambda n, hr: {"tests": n, "hr@10": hr, "ndcg@10": hr, "mrr@10": hr}
    >>> whole = lambda n, hr: {**figures(n, hr), "cold": figures(0, 0.0), "warm": figures(n, hr)}
    >>> between(whole(10, 0.1), whole(20, 0.2))["hr@10"]
    0.3
    """
    tests, sums = (
        np.subtract(late, early) for early, late in zip(_sums_of(before), _sums_of(after), strict=True)
    )
    return model_figures(tests, sums)


class Coverage:
    """Share of live items that stand on at least one of the last `lists` published lists.

    Kept as one stamp an item, the number of the list that it was last on: exact, and 8 bytes an item.
    """

    def __init__(self, lists: int = 10_000) -> None:
        """Start with no list published. Raises ValueError when `lists` is below 1."""
        if lists < 1:
            raise ValueError(f"lists {lists}: expected 1 or more")
        self.lists = lists
        self._published = 0
        self._stamp_I = np.zeros(0, np.int64)  # 1 + number of the newest list with this row; 0: on none

    def update(self, rows_UK: IntLike) -> None:
        """Add published lists [lists, places] of item rows, in order of publishing; -1 is an empty place."""
        rows_UK = np.asarray(rows_UK)
        if rows_UK.size and (top := int(rows_UK.max())) >= len(self._stamp_I):
            self._stamp_I = np.pad(self._stamp_I, (0, max(2 * top, 1024) - len(self._stamp_I)))
        stamp_U = np.arange(1, len(rows_UK) + 1) + self._published
        filled_UK = rows_UK >= 0
        # maximum.at, as numpy promises no order for a row that is assigned twice
        np.maximum.at(
            self._stamp_I, rows_UK[filled_UK], np.broadcast_to(stamp_U[:, None], rows_UK.shape)[filled_UK]
        )
        self._published += len(rows_UK)

    def clear(self, rows: IntLike) -> None:
        """Forget item rows that now belong to another item or to none."""
        self._stamp_I[rows[rows < len(self._stamp_I)]] = 0

    def ratio(self, live_rows: IntLike) -> float:
        """Return the share of these rows that a recent list held; 0.0 when there are none."""
        if not len(live_rows):
            return 0.0
        oldest = max(self._published - self.lists, 0)
        stamps = self._stamp_I[live_rows[live_rows < len(self._stamp_I)]]
        return float(np.count_nonzero(stamps > oldest)) / len(live_rows)

    def arrays(self) -> Arrays:
        """Return the stamps by row and the number of lists so far."""
        return {"stamps": self._stamp_I.copy(), "published": np.array([self._published], np.int64)}

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from."""
        self._stamp_I = np.array(arrays["stamps"], np.int64)
        self._published = int(np.asarray(arrays["published"], np.int64)[0])


class _Ring:
    """The last `size` rows of figures."""

    def __init__(self, size: int, columns: int, rows: npt.NDArray[np.generic] | None = None) -> None:
        self._data = np.zeros((size, columns))
        self._written = 0
        if rows is not None:
            self.add(np.asarray(rows, np.float64))

    def add(self, rows: Float64s) -> None:
        rows = rows[-len(self._data) :]
        self._data[(self._written + np.arange(len(rows))) % len(self._data)] = rows
        self._written += len(rows)

    def rows(self) -> Float64s:
        """Return a copy, oldest first."""
        if self._written <= len(self._data):
            return self._data[: self._written].copy()
        return np.roll(self._data, -(self._written % len(self._data)), axis=0)


def _segments(cold_N: Bools) -> tuple[Bools, Bools, Bools]:
    """Return which tests belong to each of `SEGMENTS`."""
    return np.ones_like(cold_N), cold_N, ~cold_N


def _segment_figures(tests: int, sums_F: Float64s) -> SegmentFigures:
    hr, ndcg, mrr = (sums_F / max(tests, 1)).tolist()
    return {"tests": tests, "hr@10": hr, "ndcg@10": ndcg, "mrr@10": mrr}


def model_figures(tests_S: npt.NDArray[np.int64], sums_SF: Float64s) -> ModelFigures:
    """Return the figures of counts [S] and sums [S, F]."""
    whole, cold, warm = (_segment_figures(n, sums) for n, sums in zip(tests_S.tolist(), sums_SF, strict=True))
    return {**whole, "cold": cold, "warm": warm}


def _sums_of(figures: ModelFigures) -> tuple[npt.NDArray[np.int64], Float64s]:
    parts = (figures, figures["cold"], figures["warm"])
    tests_S = np.array([part["tests"] for part in parts])
    means_SF = np.array([[part["hr@10"], part["ndcg@10"], part["mrr@10"]] for part in parts])
    return tests_S, means_SF * tests_S[:, None]

"""Predict-then-learn over recorded events: the service's own `Recommender`, judged on every event.

A run is a list of models on the same events: the served one first, then what it is compared with. A baseline
that has a setting runs in every variant of a printed grid; under its plain name stands the variant that did
best on this very stream (in hindsight, so the comparison errs in the baseline's favour).

A batch holds exactly so many good events (the last one: what is left). Rows that can't be read take no place
in it, as `replay` sends none of them: so batches are those of a service that reads the replayed topic in full
batches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.curves import Curve
from pipeline.evaluation.exposure import gini
from pipeline.evaluation.quality import ModelFigures, SegmentFigures, ServedFigures, between
from pipeline.events.batch import Events, RawBatch, Span, TopicPartition
from pipeline.models.model import FloatArray, IntArray, Model, Pool, Targets, TrainResult
from pipeline.models.registry import LIVE_LINES, Value, build_model
from pipeline.recommender import Recommender
from pipeline.service.ports import Clock
from pipeline.settings import Settings
from pipeline.state.popularity import ALL
from pipeline.state.queries import Queries
from pipeline.state.state import State
from pipeline.state.store import Column
from pipeline.state.tables import LIVE

# Where a file's users come from. No topic can have this name, so a service that starts from a trained
# checkpoint never takes the file for a partition of its own: it keeps these users, and each moves to the
# partition that the first live event comes from.
FILE_SOURCE = TopicPartition("@file", 0)
Setting = dict[str, Value]
BASELINES = ("popularity", "recent_popularity", "markov", "item_knn", "session_knn", "isgd", "biased_mf")
# What counts say of neighbours over popularity: at which half-life, and how much. The first only fills up.
_BACK_OFFS: list[Setting] = [
    {"popularity": "1000", "weight": 1},
    {"popularity": "300", "weight": 10},
    {"popularity": "24h", "weight": 250},
]


def _grid(*axes: Sequence[Setting]) -> list[Setting]:
    """Return every combination of one setting of each axis.

    >>> _grid([{"a": 1}, {"a": 2}], [{"b": 3}])
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(chain(*(part.items() for part in parts))) for parts in product(*axes)]


# The service's own setting comes first.
GRIDS: dict[str, list[Setting]] = {
    "recent_popularity": [{"half_life": each} for each in ("1000", "100", "300", "3000", "10000", "24h")],
    "markov": _grid([{"half_life": each} for each in ("10000", "3000", "100000")], _BACK_OFFS),
    "item_knn": [
        {**directed, **counts, **back_off}
        for directed in ({"directed": True}, {"directed": False})
        for counts in ({}, *({"half_life": each} for each in ("1000", "3000", "100000", "all")))
        for back_off in _BACK_OFFS
    ],
    "session_knn": _grid(
        [{"gap_minutes": 30}, {"gap_minutes": 0}], [{"after": False}, {"after": True}], _BACK_OFFS
    ),
    "isgd": [
        *_grid([{"rate": 0.1}, {"rate": 0.02}, {"rate": 0.4}], [{"negatives": 3}, {"negatives": 8}]),
        {"dim": 64, "rate": 0.02, "negatives": 3},
        {"rate": 0.1, "negatives": 0},  # as first published
    ],
    "biased_mf": [
        {"rate": 0.005, "negatives": 1},
        {"rate": 0.01, "negatives": 3},
        {"rate": 0.05, "negatives": 1},
    ],
}


class Variant(NamedTuple):
    """One model of a run: its plain name, and the setting that tells it from others of that name."""

    model: str
    setting: Setting

    @property
    def name(self) -> str:
        """Name of the variant.

        >>> Variant("item_knn", {"directed": True}).name, Variant("popularity", {}).name
        ('item_knn directed=true', 'popularity')
        """
        words = [f"{key}={str(value).lower()}" for key, value in self.setting.items()]
        return " ".join([self.model, *words])


def compared(settings: Settings, names: Sequence[str] = ()) -> list[Variant]:
    """Return the variants of a run, the served model's first. Without names: `model.name` and all baselines.

    `attention` is served wherever it is named: its lesson draws on candidates, and those are made for the
    served model. Otherwise `model.name` is, otherwise the first one named.
    """
    wanted = list(dict.fromkeys(names or (settings.model.name, *BASELINES)))
    wanted.sort(key=lambda name: (name != "attention", name != settings.model.name))
    return [Variant(name, setting) for name in wanted for setting in GRIDS.get(name, [{}])]


def as_served(settings: Settings) -> list[Variant]:
    """Return the models that the service itself runs."""
    served = settings.model.name
    return [Variant(name, {}) for name in (served, *(line for line in LIVE_LINES if line != served))]


class Line(NamedTuple):
    """What one model did. `quarters`: figures of equal parts of the stream; `seconds`: its lessons' time;
    `at`: hit rate and NDCG at several depths; `new` and `old`: over items known for fewer than 1,000 events,
    and for longer.
    """

    variant: Variant
    settings: Setting
    figures: ModelFigures
    quarters: list[ModelFigures]
    seconds: float
    at: dict[str, float]
    new: SegmentFigures
    old: SegmentFigures
    curve: Curve


class Shown(NamedTuple):
    """What the lists of the served model showed: no list is made for the others, which are tested alone."""

    lists: int
    coverage: float  # share of the known items that stood on any list
    gini: float  # of the places that items had: 0 all alike, 1 one item has all
    popularity: float  # events that an item shown has had in the whole run, on average over all places


@dataclass(frozen=True, slots=True)
class Result:
    """A run's outcome. `lines` holds every variant in the order of the models, the served one first."""

    events: int
    seconds: float
    duplicates: int  # events that were left out, as another with their event_id was learned before
    skipped_steps: int  # batches whose figures were not finite: nothing was learned from them
    lines: list[Line]
    served: ServedFigures
    shown: Shown

    def best(self) -> dict[str, Line]:
        """Return, by plain name, the line of the best variant by NDCG@10 (equal: the first)."""
        best: dict[str, Line] = {}
        for line in self.lines:
            held = best.get(line.variant.model)
            if held is None or line.figures["ndcg@10"] > held.figures["ndcg@10"]:
                best[line.variant.model] = line
        return best

    def grid(self, model: str) -> list[Line]:
        """Return the lines of a model's variants."""
        return [line for line in self.lines if line.variant.model == model]


class Evaluation:
    """One run. `recommender` is the service's, with every event tested and a stopwatch at each model."""

    def __init__(self, settings: Settings, variants: Sequence[Variant], clock: Clock) -> None:
        self._settings, self._variants, self._clock = settings, list(variants), clock
        self._timed: list[_Timed] = []
        self.recommender = Recommender(settings, self._build, test_all=True, unread=True)
        self._seconds = 0.0
        self._skipped = self._duplicates = 0
        self._newest_ms = 0  # time of the newest event so far

    def learn(
        self, chunks: Iterable[Events], now_ms: int, watch: Callable[[int], None] = lambda events: None
    ) -> None:
        """Test and learn the chunks in order, each as one batch. `watch` gets the events so far after each.

        `now_ms` is the wall-clock time; recorded times are capped by it. A batch is closed at the time of the
        newest event so far: by today's clock all that an old file tells of would have expired.
        """
        began_s = self._clock.monotonic_s()
        recommender = self.recommender
        at = recommender.offsets.get(FILE_SOURCE, 0)
        for events in chunks:
            span = Span(*FILE_SOURCE, at, at + len(events))
            self._newest_ms = max(self._newest_ms, min(int(events.time_ms_B.max()), now_ms))
            outcome = recommender.step(RawBatch(recommender.seq, self._newest_ms, (span,), events, []))
            self._duplicates += outcome.metrics.duplicates
            self._skipped += outcome.metrics.skipped == "non_finite"
            at = span.stop
            watch(at)
        self._seconds += self._clock.monotonic_s() - began_s

    def result(self) -> Result:
        """Return what the models did so far."""
        track = self.recommender.track()
        quarters = list(pairwise(track.borders(4)))
        lines = []
        for variant, timed in zip(self._variants, self._timed, strict=True):
            name = variant.name
            lines.append(
                Line(
                    variant,
                    variant.setting or self._settings_of(variant.model),
                    self.recommender.quality.cumulative()[name],
                    [between(track.figures(a, name), track.figures(b, name)) for a, b in quarters],
                    timed.seconds,
                    self.recommender.depths.at(name),
                    self.recommender.depths.of_items(name, "new"),
                    self.recommender.depths.of_items(name, "old"),
                    self.recommender.curves.curve(name),
                )
            )
        return Result(
            self.recommender.offsets.get(FILE_SOURCE, 0), self._seconds, self._duplicates, self._skipped,
            lines, self.recommender.quality.served(), self._shown(),
        )  # fmt: skip

    def _shown(self) -> Shown:
        state, exposure = self.recommender.state, self.recommender.exposure
        live = np.flatnonzero(state.items.status.data == LIVE)
        places = exposure.of(live)
        counts = state.popularity.stored.data[live, ALL]
        return Shown(
            exposure.lists,
            float(np.count_nonzero(places)) / max(len(live), 1),
            gini(places),
            float(places @ counts) / max(int(places.sum()), 1),
        )

    def _build(self, state: State, settings: Settings) -> list[Model]:
        models = [
            build_model(each.model, state, settings, each.setting, each.name) for each in self._variants
        ]
        self._timed = [_Timed(model, self._clock) for model in models]
        return list(self._timed)

    def _settings_of(self, model: str) -> Setting:
        chosen = self._settings.model
        if model != "attention":
            return {}
        return {
            "dim": chosen.dim, "history": chosen.history, "memories": chosen.memories, "seed": chosen.seed
        }  # fmt: skip


class _Timed:
    """A model with a stopwatch around its lessons."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self.name, self.lists = model.name, model.lists
        self.seconds = 0.0
        self.timed, self._clock = model, clock

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        began_s = self._clock.monotonic_s()
        learned = self.timed.learn(queries, pool, targets)
        self.seconds += self._clock.monotonic_s() - began_s
        return learned

    def welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        self.timed.welcome(rows, ids)

    def score(self, queries: Queries, pool: Pool) -> FloatArray:
        return self.timed.score(queries, pool)

    def contributions(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> FloatArray:
        return self.timed.contributions(queries, rows_BK, pool)

    def columns(self) -> Mapping[str, Column]:
        return self.timed.columns()

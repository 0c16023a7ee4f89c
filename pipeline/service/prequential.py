"""Prequential evaluation of recorded events: predict, then learn, with the service's own `Recommender`.

A run is a list of models on the same events, the served one first. A baseline with settings runs in every
variant of a printed grid; under its plain name stands the variant that did best on this very stream.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from pipeline.evaluation.curves import Curve
from pipeline.evaluation.exposure import gini
from pipeline.evaluation.rank_metrics import ListHits, ModelMetrics, SegmentMetrics
from pipeline.events.batch import Events, RawBatch, Span, TopicPartition
from pipeline.features.popularity import ALL
from pipeline.models.model import Model, Targets, TrainingCandidates, TrainResult
from pipeline.models.registry import LIVE_BASELINES, variant_of
from pipeline.models.registry import Variant as Configured
from pipeline.recommender import Recommender
from pipeline.service.ports import Clock
from pipeline.settings import Settings
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE

# The partition of a file's users. No topic can have this name: a service that starts from a trained
# checkpoint keeps these users, and each moves to the partition of the first live event.
FILE_SOURCE = TopicPartition("@file", 0)
Value = str | int | float | bool
Setting = dict[str, Value]
BASELINES = ("popularity", "recent_popularity", "markov", "item_knn", "session_knn", "isgd", "biased_mf")
# Half-life and weight of the popularity that counts of neighbours are backed off to
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
    "item_knn": _grid(
        [{"directed": True}, {"directed": False}],
        [{}, {"half_life": "1000"}, {"half_life": "3000"}, {"half_life": "100000"}, {"half_life": "all"}],
        _BACK_OFFS,
    ),
    "session_knn": _grid(
        [{"gap_minutes": 30}, {"gap_minutes": 0}], [{"after": False}, {"after": True}], _BACK_OFFS
    ),
    "isgd": [
        *_grid([{"rate": 0.1}, {"rate": 0.02}, {"rate": 0.4}], [{"negatives": 3}, {"negatives": 8}]),
        {"dim": 64, "rate": 0.02, "negatives": 3},
        {"rate": 0.1, "negatives": 0},  # as first published
    ],
    "biased_mf": [
        {"rate": rate, "negatives": negatives} for rate, negatives in ((0.005, 1), (0.01, 3), (0.05, 1))
    ],
}


class Variant(NamedTuple):
    """One model of a run: its name in the metrics, and the options that replace its configuration's."""

    model: str
    setting: Setting
    type: str

    @property
    def name(self) -> str:
        """Name of the variant.

        >>> Variant("item_knn", {"directed": True}, "item_knn").name, Variant("ncf", {}, "ncf").name
        ('item_knn directed=true', 'ncf')
        """
        words = [f"{key}={str(value).lower()}" for key, value in self.setting.items()]
        return self.model if ":" in self.model else " ".join([self.model, *words])


def compared(settings: Settings, names: Sequence[str] = ()) -> list[Variant]:
    """Return the variants of a run, the served model's first. Without names: `model.name` and all baselines.

    A name is a model's, or `NAME:key=value[:key=value]` with other settings. Served is `attention` if it is
    named, else `model.name`, else the first: candidates are made for the served model.
    """
    wanted = list(dict.fromkeys(names or (settings.model.name, *BASELINES)))
    wanted.sort(key=lambda name: (name != "attention", name != settings.model.name))
    variants = []
    for text in wanted:
        name, *options = text.split(":")
        setting: Setting = dict(option.partition("=")[::2] for option in options)
        grid = [setting] if options else GRIDS.get(name, [{}])
        variants += [Variant(text, each, name) for each in grid]
    return variants


def as_served(settings: Settings) -> list[Variant]:
    """Return the models that the service itself runs."""
    served = settings.model.name
    names = (served, *settings.model.shadows, *LIVE_BASELINES)
    return [Variant(name, {}, name) for name in dict.fromkeys(names)]


class Line(NamedTuple):
    """The metrics of one model."""

    variant: Variant
    settings: Setting
    figures: ModelMetrics
    quarters: list[ModelMetrics]  # of equal parts of the stream
    seconds: float  # of its training
    at: dict[str, float]  # hit rate and NDCG at several depths
    new: SegmentMetrics  # items known for fewer than 1,000 events
    old: SegmentMetrics
    curve: Curve


class Shown(NamedTuple):
    """What the lists of the served model showed; the other models make no lists."""

    lists: int
    coverage: float  # share of the known items that stood on any list
    gini: float  # of the places that items had: 0 all alike, 1 one item has all
    popularity: float  # events of an item shown in the whole run, mean over all places


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a run."""

    events: int
    seconds: float
    duplicates: int  # events left out: another one with their event_id was learned before
    skipped_steps: int  # batches with a loss or gradient that was not finite
    lines: list[Line]  # every variant in the order of the models, the served one first
    served: ListHits
    shown: Shown

    def best(self) -> dict[str, Line]:
        """Return, by plain name, the line of the best variant by NDCG@10 (equal: the first)."""
        models = dict.fromkeys(line.variant.model for line in self.lines)
        return {model: max(self.grid(model), key=lambda line: line.figures["ndcg@10"]) for model in models}

    def grid(self, model: str) -> list[Line]:
        """Return the lines of a model's variants."""
        return [line for line in self.lines if line.variant.model == model]


class Evaluation:
    """One run of the service's recommender, with a stopwatch at each model."""

    def __init__(
        self, settings: Settings, variants: Sequence[Variant], clock: Clock, rank_all: bool = False
    ) -> None:
        self._settings, self._variants, self._clock = settings, list(variants), clock
        self._timed: list[_Timed] = []
        configured = [self._configured(each) for each in self._variants]
        self.recommender = Recommender(settings, configured, self._time, unread=True, rank_all=rank_all)
        self._seconds = 0.0
        self._skipped = self._duplicates = 0
        self._newest_ms = 0  # time of the newest event so far

    def learn(
        self, chunks: Iterable[Events], now_ms: int, watch: Callable[[int], None] = lambda events: None
    ) -> None:
        """Evaluate and learn the chunks in order, each as one batch; call `watch` with the events so far.

        The time of a batch is that of the newest event so far, at most `now_ms`: by today's clock everything
        in an old file would have expired.
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
        """Return the metrics of the models so far."""
        track, quality = self.recommender.track(), self.recommender.quality
        quarters, figures = list(pairwise(track.borders(4))), quality.cumulative()
        lines = [
            Line(
                variant,
                self._settings_of(variant),
                figures[variant.name],
                [track.metrics(variant.name, start, stop) for start, stop in quarters],
                timed.seconds,
                quality.at_cutoffs(variant.name),
                quality.of_segment(variant.name, "new"),
                quality.of_segment(variant.name, "old"),
                quality.curve(variant.name),
            )
            for variant, timed in zip(self._variants, self._timed, strict=True)
        ]
        return Result(
            self.recommender.offsets.get(FILE_SOURCE, 0), self._seconds, self._duplicates, self._skipped,
            lines, quality.list_hits(), self._shown(),
        )  # fmt: skip

    def _shown(self) -> Shown:
        state, exposure = self.recommender.state, self.recommender.exposure
        live = np.flatnonzero(state.items.status.data == LIVE)
        places = exposure.of(live)
        counts = self.recommender.bank.popularity.stored.data[live, ALL]
        return Shown(
            exposure.lists,
            float(np.count_nonzero(places)) / max(len(live), 1),
            gini(places),
            float(places @ counts) / max(int(places.sum()), 1),
        )

    def _configured(self, each: Variant) -> Configured:
        """Return the registry's variant under its name in the metrics."""
        return variant_of(self._settings.model, each.type, each.setting)._replace(name=each.name)

    def _time(self, model: Model) -> Model:
        timed = _Timed(model, self._clock)
        self._timed.append(timed)
        return cast(Model, timed)

    def _settings_of(self, variant: Variant) -> Setting:
        if variant.type in BASELINES:
            return variant.setting
        model = self._settings.model
        config: Setting = msgspec.to_builtins(self._configured(variant).config)
        return {**config, "features": model.features, "seed": model.seed}


class _Timed:
    """A model with a stopwatch around its learning; everything else is the model's own."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self.seconds = 0.0
        self.timed, self._clock = model, clock

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        began_s = self._clock.monotonic_s()
        result = self.timed.learn(queries, training, targets)
        self.seconds += self._clock.monotonic_s() - began_s
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.timed, name)

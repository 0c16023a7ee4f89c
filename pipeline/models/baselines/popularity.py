"""Popularity as a model, of all time or recent: the same list for everybody, less what each has consumed."""

import numpy as np

from pipeline.features.block import Candidates
from pipeline.features.popularity import ALL, DAY, LISTED, P300, P1000, Popularity, most_popular
from pipeline.kernels import kernel
from pipeline.models.baselines.counts import Base, CountModel, base_of
from pipeline.models.model import Config, Model, ModelContext, Scores, Targets
from pipeline.state.queries import Queries
from pipeline.state.store import Column
from pipeline.state.tables import LIVE

HALF_LIFE_COLUMNS = {"all": ALL, "300": P300, "1000": P1000, "24h": DAY}
HalfLife = str  # events as text, "24h" or "all"


class PopularityConfig(Config, frozen=True):
    """Settings of `popularity`."""

    half_life: HalfLife = "all"


class RecentPopularityConfig(Config, frozen=True):
    """Settings of `recent_popularity`."""

    half_life: HalfLife = "1000"


def popularity_base(popularity: Popularity, column: int, scale: float) -> Base:
    """Return the counts of one column as base scores."""
    listed = popularity.listed.data[column]
    complete = bool(popularity.complete.data[column])
    return base_of(popularity.stored.data[:, column], scale, listed[listed >= 0], complete)


def popularity_model(
    context: ModelContext, name: str, config: PopularityConfig | RecentPopularityConfig
) -> Model:
    """Return a model of the counts that the bank keeps, or of counts with a half-life of its own."""
    if config.half_life in HALF_LIFE_COLUMNS:
        return PopularityModel(context, name, HALF_LIFE_COLUMNS[config.half_life])
    return FadingModel(context, name, float(config.half_life))


class PopularityModel(CountModel):
    """Ranks by a column of the count features, so that it costs next to nothing beside the served model."""

    def __init__(self, context: ModelContext, name: str, column: int) -> None:
        super().__init__(context, name)
        self._column = column

    def base(self) -> Base:
        """Return the stored counts: what all of them are divided by changes no rank."""
        return popularity_base(self._popularity, self._column, 1)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        gain = np.float32(self._popularity.gain.data[self._column])
        stored_N = self._popularity.stored.data[candidates.rows, self._column]
        return Scores(np.asarray(stored_N / gain, np.float32))


class FadingModel(CountModel):
    """Recent popularity with a half-life of its own. Columns: `counts` float32 [M], `gain` float64 [1].

    Its list is made from all items in every batch: for evaluations.
    """

    def __init__(self, context: ModelContext, name: str, half_life: float) -> None:
        super().__init__(context, name)
        self.half_life = half_life
        self.counts = Column(np.zeros(context.items.capacity, np.float32), "item")
        self.gain = Column(np.ones(1), "none")

    def base(self) -> Base:
        rows = np.flatnonzero((self._items.status.data == LIVE) & (self.counts.data > 0)).astype(np.int32)
        listed = most_popular(rows, self.counts.data[rows], LISTED)
        return base_of(self.counts.data, 1, listed, rows.size <= LISTED)

    def score(self, queries: Queries, candidates: Candidates) -> Scores:
        gain = np.float32(self.gain.data[0])
        return Scores(np.asarray(self.counts.data[candidates.rows] / gain, np.float32))

    def count(self, queries: Queries, targets: Targets) -> None:
        growth = 2.0 ** (1 / self.half_life)
        _fade(targets.counted_B, targets.weight_B, growth, self.counts.data, self.gain.data)


@kernel()
def _fade(item_B, weight_B, growth, counts, gain):  # type: ignore[no-untyped-def]
    """Count events in order, each weighing more than the one before, so that nothing has to be shrunk."""
    for b in range(item_B.shape[0]):
        if item_B[b] < 0 or weight_B[b] <= 0:
            continue
        counts[item_B[b]] += weight_B[b] * gain[0]
        gain[0] *= growth
        if gain[0] > 1e20:
            for m in range(counts.shape[0]):
                counts[m] /= np.float32(gain[0])
            gain[0] = 1.0

"""Which rows are scored: each query's candidates, and a uniform sample of all known items for the lesson."""

import numpy as np
import numpy.typing as npt

from pipeline.features.candidates import Gatherer
from pipeline.features.memories import LISTED
from pipeline.models.model import Pool
from pipeline.state.counts import Counts
from pipeline.state.popularity import P1000, WIDTH, Popularity
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE, IdTable

IntArray = npt.NDArray[np.int32]
NEGATIVES = 128  # measured: from 64 to 1,024 no difference in quality, since the candidates carry the mass


class PopularLists:
    """The LISTED most popular live rows by every popularity column, kept current by what a batch touched.

    All of a column decays alike, so only touched rows can rise: the next list is among the last one and them.
    After rows left the table or were hidden, or the stored weights were rounded anew, the lists are made
    afresh. Order: (value desc, row asc). Derived, never saved.
    """

    def __init__(self, popularity: Popularity, items: IdTable) -> None:
        self.popularity, self.items = popularity, items
        self.rows: IntArray = np.full((WIDTH, LISTED), -1, np.int32)
        self._made_for = (-1, -1, -1)

    def update(self, touched: IntArray) -> None:
        """Bring the lists up to date after rows were counted."""
        state = (self.items.evicted, self.items.reshown, self.popularity.rescaled)
        status = self.items.status.data
        if state != self._made_for:
            self._made_for = state
            pools: list[IntArray] = [np.flatnonzero(status == LIVE).astype(np.int32)] * WIDTH
        else:
            touched = touched[status[touched] == LIVE]
            pools = [np.union1d(listed[listed >= 0], touched) for listed in self.rows]
        for column, rows in enumerate(pools):
            stored = self.popularity.stored.data[rows, column]
            best = _best(rows[stored > 0], stored[stored > 0], LISTED)
            self.rows[column] = -1
            self.rows[column, : best.size] = best

    def longer(self, column: int, count: int) -> IntArray:
        """Return the `count` most popular live rows by one column, those without weight included."""
        live = np.flatnonzero(self.items.status.data == LIVE).astype(np.int32)
        return _best(live, self.popularity.stored.data[live, column], count)


def _best(rows: IntArray, values: npt.NDArray[np.float32], count: int) -> IntArray:
    """Return the `count` rows with the largest values: (value desc, row asc); `rows` are in order.

    >>> _best(np.int32([3, 5, 8, 9]), np.float32([1, 7, 1, 0]), 2).tolist()
    [5, 3]
    """
    if rows.size > count:
        least = -np.partition(-values, count - 1)[count - 1]
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        kept = np.concatenate((above, level[: count - above.size]))
        rows, values = rows[kept], values[kept]
    best: IntArray = rows[np.lexsort((rows, -values))]
    return best


class Pools:
    """Builds pools from the memories; holds only what can be derived."""

    def __init__(
        self,
        counts: Counts,
        items: IdTable,
        least: int,
        repeats: bool,
        seed: int,
    ) -> None:
        self.counts, self.items = counts, items
        self.popular = PopularLists(counts.popularity, items)
        self.gatherer = Gatherer(least)
        self.repeats, self.seed = repeats, seed

    def candidates(self, queries: Queries, lists: tuple[int, ...]) -> Pool:
        """Return each query's candidates alone: what a ranking is made of.

        Where the memories and the popular lists give too few, the next most popular items follow.
        """
        found = self.gatherer.gather(
            queries, self.repeats, lists, len(self.items), self.counts, self.popular.rows,
            self.items.status.data,
        )  # fmt: skip
        short = np.flatnonzero(found.count < self.gatherer.least)
        if short.size:
            excluded = int(np.diff(queries.border_B)[short].max())
            order = self.popular.longer(next(iter(lists), P1000), self.gatherer.least + excluded)
            self.gatherer.top_up(found, short, queries, order)
        return Pool(found, np.empty(0, np.int32), 0)

    def lesson(self, queries: Queries, lists: tuple[int, ...], seq: int) -> Pool:
        """Return candidates and a sample of the known items, drawn from (seed, seq) alone."""
        known = np.flatnonzero(self.items.status.data == LIVE).astype(np.int32)
        drawn = known
        if known.size > NEGATIVES:
            places = np.random.default_rng((self.seed, seq)).choice(
                known.size, NEGATIVES, replace=False, shuffle=False
            )
            drawn = known[np.sort(places)]
        return self.candidates(queries, lists)._replace(negatives_N=drawn, known=known.size)

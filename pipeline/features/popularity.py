"""What is popular now: decayed counts of every item at several half-lives, and lists of the most popular.

    long      ln(count + SMALL), half-life 1,000 events
    recent    ln(count + SMALL), half-life 300 events
    day       ln(count + SMALL), one day of event time
    position  ln(count + SMALL), half-life 300 events, of moments of the same session position alone

Decay touches no table: a column adds a growing weight g instead of shrinking what is there, and value =
stored / g. Axes: M = item rows, W = columns of counts.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.features.block import Block, may_show, slot_of
from pipeline.features.family import Family, Shown
from pipeline.features.lessons import Lessons
from pipeline.kernels import inlined, kernel, log32, log_all
from pipeline.state.positions import DAY_MS, POSITIONS
from pipeline.state.store import Column
from pipeline.state.tables import LIVE, IdTable

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# columns: all time, half-life 1,000 and 300 events, one day by event time, half-life 300 by session position
ALL, P1000, P300, DAY, POSITION = 0, 1, 2, 3, 4
WIDTH = POSITION + POSITIONS
HALF_LIVES = np.array([np.inf, 1000.0, 300.0, np.inf] + [300.0] * POSITIONS)
LISTS_SHOWN = (P1000, DAY, POSITION)  # that candidates are drawn from; POSITION: the moment's own
POPULAR = 20  # items taken from each of these lists
LISTED = 256  # length of a list
SMALL = 0.02  # pseudo-count
SCALE = 1.0 / 3.0  # brings logarithms to about -2 .. 2
_MAX_GAIN = 1e20


class Counts(NamedTuple):
    """The arrays that kernels read popularity from."""

    stored_MW: FloatArray
    gain_W: npt.NDArray[np.float64]


class Shares(NamedTuple):
    """Smoothed shares of one column's counts, times a factor, for kernels: see `share_of`."""

    stored_MW: FloatArray
    column: int
    inverse_gain: np.float32
    scale: np.float32


class Popularity(Family):
    """Columns: `stored` float32 [M, W], `gain` float64 [W] (the present g), `total` float64 [W] (sum over
    items), `clock_ms` int64 [1] (newest event time of the one-day column), `listed` int32 [W, LISTED] (item
    rows, most popular first, -1 at the end) and `complete` bool [W] (every live item with a count is listed).
    """

    features = ("long", "recent", "day", "position")

    def __init__(self, capacity: int, lists: tuple[int, ...] = LISTS_SHOWN) -> None:
        self.lists = np.array(lists, np.int64)
        self.stored = Column(np.zeros((capacity, WIDTH), np.float32), "item")
        self.gain = Column(np.ones(WIDTH), "none")
        self.total = Column(np.zeros(WIDTH), "none")
        self.clock_ms = Column(np.zeros(1, np.int64), "none")
        self.listed = Column(np.full((WIDTH, LISTED), -1, np.int32), "none", -1, of_items=True)
        self.complete = Column(np.ones(WIDTH, np.bool_), "none")
        self._rescaled = self._reshown = 0  # how often, when the lists were last made

    @property
    def counts(self) -> Counts:
        return Counts(self.stored.data, self.gain.data)

    def shares(self, column: int, known: int, factor: float) -> Shares:
        """Return the shares of a column, each times `factor`; `known` items have a pseudo-count each."""
        gain = float(self.gain.data[column])
        total = float(self.total.data[column]) / gain + SMALL * max(known, 1)
        return Shares(self.stored.data, column, np.float32(1 / gain), np.float32(factor / total))

    def values(self, column: int) -> FloatArray:
        """Return the decayed counts [M] of one column."""
        return np.asarray(self.stored.data[:, column] / np.float32(self.gain.data[column]), np.float32)

    def retrieve(self, block: Block, at: int) -> None:
        _retrieve(block, self.listed.data, self.lists)

    def finish(self, block: Block, at: int) -> None:
        _finish(block, self.counts, at)

    def bare(
        self, rows_N: IntArray, position_N: npt.NDArray[np.integer], out_NF: FloatArray, at: int
    ) -> None:
        """Write the features of items that are no candidates: popularity is defined for every item."""
        _bare(rows_N, position_N, self.counts, at, out_NF)

    def attribute(self, shown: Shown, at: int, out_BKP: FloatArray) -> None:
        out_BKP[:, :, -1] += shown.value_BKF[:, :, at : at + len(self.features)].sum(2)

    def update(self, lessons: Lessons, status_M: npt.NDArray[np.uint8], seed: int) -> None:
        self._rescaled += _add(
            lessons, HALF_LIVES, self.stored.data, self.gain.data, self.total.data, self.clock_ms.data,
            np.zeros(WIDTH),
        )  # fmt: skip

    def forget(self, rows: IntArray) -> None:
        if rows.size:
            self.total.data -= self.stored.data[rows].sum(0, dtype=np.float64)
            np.maximum(self.total.data, 0, out=self.total.data)

    def update_lists(self, touched: IntArray, items: IdTable) -> None:
        """Update the lists after the rows `touched` were counted. Order: (value desc, row asc).

        All of a column decays alike, so only touched rows can rise: the next list is among the last one and
        them, as long as what is left of it is long enough. It is made from all items after hidden ones were
        shown again, and after stored weights were rescaled (and so rounded).
        """
        status, stored = items.status.data, self.stored.data
        remake_W = np.full(WIDTH, self._rescaled > 0 or self._reshown != items.reshown)
        self._rescaled, self._reshown = 0, items.reshown
        touched = np.unique(touched[(touched >= 0) & (status[touched] == LIVE)])
        _move(touched, stored, status, self.listed.data, self.complete.data, remake_W)
        for column in np.flatnonzero(remake_W):
            live = np.flatnonzero((status == LIVE) & (stored[:, column] > 0)).astype(np.int32)
            best = most_popular(live, stored[live, column], LISTED)
            self.listed.data[column] = -1
            self.listed.data[column, : best.size] = best
            self.complete.data[column] = live.size <= LISTED

    def longer(self, column: int, count: int, items: IdTable) -> IntArray:
        """Return the `count` most popular live rows by one column, of all items: for short lists."""
        live = np.flatnonzero(items.status.data == LIVE).astype(np.int32)
        return most_popular(live, self.stored.data[live, column], count)

    def start_lists(self, items: IdTable) -> None:
        """Continue with the lists of a checkpoint."""
        self._rescaled, self._reshown = 0, items.reshown


def most_popular(rows: IntArray, values: FloatArray, count: int) -> IntArray:
    """Return the `count` rows with the largest values: (value desc, row asc); `rows` are in order.

    >>> most_popular(np.int32([3, 5, 8, 9]), np.float32([1, 7, 1, 0]), 2).tolist()
    [5, 3]
    """
    if rows.size > count:
        least = -np.partition(-values, count - 1)[count - 1]
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        kept = np.concatenate((above, level[: count - above.size]))
        rows, values = rows[kept], values[kept]
    best: IntArray = rows[np.lexsort((rows, -values))]
    return best


@kernel()
def _move(touched, stored_MW, status_M, listed_WE, complete_W, remake_W):  # type: ignore[no-untyped-def]
    """Put touched rows (in order) in their places in the lists; flag lists of which too little is left."""
    most = listed_WE.shape[1]
    for w in range(listed_WE.shape[0]):
        if remake_W[w]:
            continue
        # what ranks below the last of an incomplete list may rank below items that are not on it
        listed, held, floor, last = listed_WE[w], 0, np.float32(np.inf), -1
        for e in range(most):
            m = listed[e]
            if m >= 0 and status_M[m] == LIVE:
                held += 1
                value = stored_MW[m, w]
                last = m if value < floor else (max(last, m) if value == floor else last)
                floor = min(floor, value)
        if held < most // 2 and not complete_W[w]:
            remake_W[w] = True
            continue
        count = 0
        for e in range(most):
            m = listed[e]
            listed[e] = -1
            if m >= 0 and status_M[m] == LIVE and stored_MW[m, w] > 0:
                place = np.searchsorted(touched, m)
                if place == touched.shape[0] or touched[place] != m:
                    listed[count] = m
                    count += 1
        kept = count
        for m in touched:
            value = stored_MW[m, w]
            if value <= 0 or (not complete_W[w] and (value < floor or (value == floor and m > last))):
                continue
            kept += 1
            at = count
            while at > 0 and _ranks_before(stored_MW, w, m, listed[at - 1]):
                if at < most:
                    listed[at] = listed[at - 1]
                at -= 1
            if at < most:
                listed[at] = m
            count = min(count + 1, most)
        complete_W[w] = complete_W[w] and kept <= most


@inlined
def _ranks_before(stored_MW, w, a, b):  # type: ignore[no-untyped-def]
    """Return whether item a stands above item b in list w: more popular, or as popular with a lower row."""
    return stored_MW[a, w] > stored_MW[b, w] or (stored_MW[a, w] == stored_MW[b, w] and a < b)


@inlined
def share_of(shares, m):  # type: ignore[no-untyped-def]
    """Return item m's smoothed share, times the factor."""
    count = shares.stored_MW[m, shares.column] * shares.inverse_gain
    return (count + np.float32(SMALL)) * shares.scale


@kernel()
def _finish(block, counts, at):  # type: ignore[no-untyped-def]
    for b in range(block.count_B.shape[0]):
        n = block.count_B[b]
        columns = (np.int64(P1000), np.int64(P300), np.int64(DAY), POSITION + np.int64(block.position_B[b]))
        for f in range(4):
            share = np.float32(1.0 / counts.gain_W[columns[f]])
            values = block.scratch_C
            for c in range(n):
                values[c] = counts.stored_MW[block.rows_BC[b, c], columns[f]] * share + np.float32(SMALL)
            log_all(values, n)
            for c in range(n):
                block.features_BCF[b, c, at + f] = values[c] * np.float32(SCALE)


@kernel()
def _bare(rows_N, position_N, counts, at, out_NF):  # type: ignore[no-untyped-def]
    for n in range(rows_N.shape[0]):
        columns = (np.int64(P1000), np.int64(P300), np.int64(DAY), POSITION + np.int64(position_N[n]))
        for f in range(4):
            value = counts.stored_MW[rows_N[n], columns[f]] * np.float32(1.0 / counts.gain_W[columns[f]])
            out_NF[n, at + f] = log32(value + np.float32(SMALL)) * np.float32(SCALE)


@kernel()
def _retrieve(block, listed, lists):  # type: ignore[no-untyped-def]
    for b in range(block.count_B.shape[0]):
        for choice in range(lists.shape[0]):
            which = lists[choice]
            if which == POSITION:
                which += block.position_B[b]
            taken = 0
            for e in range(listed.shape[1]):
                m = listed[which, e]
                if m < 0 or taken == POPULAR:
                    break
                if may_show(block, b, m):
                    taken += 1
                    slot_of(block, b, m, block.rows_BC.shape[1])


@kernel()
def _add(lessons, half_lives, stored, gain, total, clock, growth):  # type: ignore[no-untyped-def]
    for c in range(growth.shape[0]):
        growth[c] = np.exp(math.log(2.0) / half_lives[c])
    rescaled = 0
    for b in range(lessons.item_B.shape[0]):
        m, w = lessons.item_B[b], lessons.weight_B[b]
        if m < 0 or w <= 0:
            continue
        if clock[0] == 0:
            clock[0] = lessons.time_ms_B[b]
        if lessons.time_ms_B[b] > clock[0]:
            gain[DAY] *= 2.0 ** min((lessons.time_ms_B[b] - clock[0]) / DAY_MS, 60.0)
            clock[0] = lessons.time_ms_B[b]
            rescaled += _rescale(DAY, stored, gain, total)
        own = POSITION + lessons.position_B[b]
        for c in range(POSITION + POSITIONS):
            if c < POSITION or c == own:
                stored[m, c] += w * gain[c]
                total[c] += w * gain[c]
            if c != DAY:
                gain[c] *= growth[c]
                rescaled += _rescale(c, stored, gain, total)
    return rescaled


@kernel()
def _rescale(c, stored, gain, total):  # type: ignore[no-untyped-def]
    """Bring a column's weights back to 1 before float32 can't hold them; return how often (0 or 1).

    Within the batch: three pauses of two months in one batch are more than float32 holds.
    """
    if gain[c] <= _MAX_GAIN:
        return 0
    for m in range(stored.shape[0]):
        stored[m, c] /= np.float32(gain[c])
    total[c] /= gain[c]
    gain[c] = 1.0
    return 1

"""The content of a report: metrics of a recommender that evaluated a file or was restored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.evaluation.curves import Curve
from pipeline.evaluation.exposure import gini, share_of_most
from pipeline.evaluation.rank_metrics import ListHits, ModelMetrics
from pipeline.evaluation.timeline import Track
from pipeline.events.records import DriftAlarm
from pipeline.features.popularity import ALL
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.state.tables import LIVE

TABLES = ("model", "rank", "events", "limits")  # on which metrics depend; no addresses, no host names


class Fact(NamedTuple):
    """A line of the page's head or of its settings."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One model: `label` is its name on the page, `name` that of its metrics."""

    label: str
    name: str
    figures: ModelMetrics
    curve: Curve
    events_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of something over the known items. I = known items."""

    counts_I: npt.NDArray[np.float64]

    @property
    def used(self) -> int:
        """Items with a count above 0."""
        return int(np.count_nonzero(self.counts_I))

    @property
    def gini(self) -> float:
        """The Gini coefficient: 0 where all items are equal, 1 where one item has everything."""
        return gini(self.counts_I)

    def top(self, share: float) -> float:
        """Return the share of the total that the top items have, this share of all items."""
        return share_of_most(self.counts_I, share)


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the page. `lines[0]` is the served model, the only one with published lists."""

    title: str
    facts: list[Fact]
    settings: list[Fact]
    lines: list[Line]
    track: Track
    alarms: list[DriftAlarm]
    served: ListHits
    coverage: float  # of the known items, on the newest lists
    lists: int  # published since counting began
    shown: Spread  # places on lists
    taken: Spread  # positive events, by weight
    k: int
    notes: list[str] = field(default_factory=list)

    @property
    def best_baseline(self) -> Line | None:
        """The best model but the served one by NDCG@10; None without any."""
        return max(self.lines[1:], key=lambda line: line.figures["ndcg@10"], default=None)


class Extra(NamedTuple):
    """A model's name on the page, and what is known of it beyond its metrics."""

    label: str
    events_per_s: float | None = None


def gather(
    recommender: Recommender,
    models: Mapping[str, Extra],
    title: str,
    facts: list[Fact],
    notes: list[str],
) -> Report:
    """Return the report of these models, keyed by the names of their metrics; the served one first."""
    cumulative = recommender.quality.cumulative()
    live = np.flatnonzero(recommender.state.items.status.data == LIVE)
    lines = [
        Line(extra.label, name, cumulative[name], recommender.quality.curve(name), extra.events_per_s)
        for name, extra in models.items()
    ]
    track = recommender.track()
    return Report(
        title=title,
        facts=[*facts, *_facts_of(recommender, track, len(live))],
        settings=_settings_of(recommender.settings),
        lines=lines,
        track=track,
        alarms=recommender.evaluator.timeline.alarms,
        served=recommender.quality.list_hits(),
        coverage=recommender.exposure.coverage(live),
        lists=recommender.exposure.lists,
        shown=Spread(recommender.exposure.of(live).astype(np.float64)),
        taken=Spread(recommender.bank.popularity.values(ALL)[live].astype(np.float64)),
        k=recommender.settings.rank.k,
        notes=notes,
    )


def check_writable(path: Path, option: str) -> None:
    """Raise `UsageError` when no file can be written there, before the work starts."""
    there = path.is_file()
    try:
        path.open("ab").close()
    except OSError as error:
        raise UsageError(_unwritable(path, option, error)) from None
    if not there:
        path.unlink()


def write(path: Path, option: str, text: str) -> None:
    """Write a page. Raise `UsageError` where that fails."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(_unwritable(path, option, error)) from None


def day(ms: int) -> str:
    """Return the date and minute of a time in UTC.

    >>> day(1_700_000_000_000)
    '2023-11-14 22:13 UTC'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _unwritable(path: Path, option: str, error: OSError) -> str:
    return f"{option} {path}: can't be written: {error.strerror}; name a file in a folder that is there"


def _facts_of(recommender: Recommender, track: Track, items: int) -> list[Fact]:
    times = track.time_ms_N[track.time_ms_N > 0]
    facts = [
        Fact("events learned", f"{recommender.events_learned:,}"),
        Fact("users, items", f"{len(recommender.state.users) - 1:,} users, {items:,} items known"),
    ]
    if times.size:
        facts.append(Fact("event times", f"{day(int(times[0]))} to {day(int(times[-1]))}"))
    return facts


def _settings_of(settings: Settings) -> list[Fact]:
    plain = msgspec.to_builtins(settings)
    return [
        Fact(f"{table}.{key}", msgspec.json.encode(value).decode())
        for table in TABLES
        for key, value in plain[table].items()
    ]

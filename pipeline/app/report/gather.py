"""What a report shows: figures read off a recommender that judged a file or came out of a checkpoint."""

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

TABLES = ("model", "rank", "events", "limits")  # what figures hang on; no address and no name of a machine


class Fact(NamedTuple):
    """A line of the page's head."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One model: `label` is what the page calls it, `name` what the measures do."""

    label: str
    name: str
    figures: ModelMetrics
    curve: Curve
    events_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """How the known items share in something: I = known items."""

    counts_I: npt.NDArray[np.float64]

    @property
    def used(self) -> int:
        """Items that have any."""
        return int(np.count_nonzero(self.counts_I))

    @property
    def gini(self) -> float:
        """0: all items alike; 1: one item has all."""
        return gini(self.counts_I)

    def top(self, share: float) -> float:
        """Return what this share of the items, those with the most, has of all."""
        return share_of_most(self.counts_I, share)


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows. `lines[0]` is the served model, the only one that makes lists."""

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
        """The best model beside the served one by NDCG@10; None where it stands alone."""
        return max(self.lines[1:], key=lambda line: line.figures["ndcg@10"], default=None)


class Extra(NamedTuple):
    """What the page calls a model, and what a run knows of it beyond the measures."""

    label: str
    events_per_s: float | None = None


def gather(
    recommender: Recommender,
    models: Mapping[str, Extra],
    title: str,
    facts: list[Fact],
    settings: Settings,
    notes: list[str],
) -> Report:
    """Read the figures of these models, keyed by the names that the measures know; the served one first."""
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
        settings=_settings_of(settings),
        lines=lines,
        track=track,
        alarms=recommender.evaluator.timeline.alarms,
        served=recommender.quality.list_hits(),
        coverage=recommender.exposure.coverage(live),
        lists=recommender.exposure.lists,
        shown=Spread(recommender.exposure.of(live).astype(np.float64)),
        taken=Spread(recommender.bank.popularity.values(ALL)[live].astype(np.float64)),
        k=settings.rank.k,
        notes=notes,
    )


def check_writable(path: Path, option: str) -> None:
    """Raise `UsageError` when no file can be written there: better before an hour's work than after it."""
    there = path.is_file()
    try:
        path.open("ab").close()
    except OSError as error:
        raise UsageError(_unwritable(path, option, error)) from None
    if not there:
        path.unlink()


def write(path: Path, option: str, text: str) -> None:
    """Write a page. Raise `UsageError` when that can't be done."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(_unwritable(path, option, error)) from None


def day(ms: int) -> str:
    """Return a moment's date and minute in UTC.

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

"""Read the metrics of a report from a recommender that evaluated a file or was restored from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.app.config import shown_values
from pipeline.errors import UsageError
from pipeline.evaluation.curves import Curve
from pipeline.evaluation.rank_metrics import ModelMetrics
from pipeline.evaluation.timeline import Track
from pipeline.events.records import DriftAlarm
from pipeline.recommender import Recommender
from pipeline.state.tables import LIVE

TABLES = ("model.", "rank.", "events.", "limits.")  # that influence quality; no addresses


class Line(NamedTuple):
    """One model: `label` is its name on the page, `name` in the metrics."""

    label: str
    name: str
    figures: ModelMetrics
    curve: Curve


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the page; `lines[0]` is the served model, which makes the lists."""

    title: str
    facts: dict[str, str]
    settings: dict[str, str]
    lines: list[Line]
    track: Track
    alarms: list[DriftAlarm]
    coverage: float  # of the known items, on the newest lists
    lists: int  # published since counting began
    k: int
    notes: list[str]

    @property
    def best_baseline(self) -> Line | None:
        """The best other model by NDCG@10; None without another."""
        return max(self.lines[1:], key=lambda line: line.figures["ndcg@10"], default=None)

    def ratio(self, line: Line) -> float | None:
        """Return a model's NDCG@10 over that of the best other model; None where that is 0."""
        best = self.best_baseline.figures["ndcg@10"] if self.best_baseline is not None else 0.0
        return line.figures["ndcg@10"] / best if best else None


def gather(
    recommender: Recommender, models: Mapping[str, str], title: str, facts: dict[str, str], notes: list[str]
) -> Report:
    """Read the metrics of models, by their names in the metrics with their labels; the served one first."""
    cumulative, settings = recommender.quality.cumulative(), recommender.settings
    live = np.flatnonzero(recommender.state.items.status.data == LIVE)
    track = recommender.track()
    times = track.time_ms_N[track.time_ms_N > 0]
    facts = facts | {
        "events learned": f"{recommender.events_learned:,}",
        "users, items": f"{len(recommender.state.users) - 1:,} users, {len(live):,} items known",
    }
    if times.size:
        facts["event times"] = f"{day(int(times[0]))} to {day(int(times[-1]))}"
    return Report(
        title=title,
        facts=facts,
        settings={key: value for key, value in shown_values(settings).items() if key.startswith(TABLES)},
        lines=[
            Line(label, name, cumulative[name], recommender.quality.curve(name))
            for name, label in models.items()
        ],
        track=track,
        alarms=recommender.evaluator.timeline.alarms,
        coverage=recommender.exposure.coverage(live),
        lists=recommender.exposure.lists,
        k=settings.rank.k,
        notes=notes,
    )


def check_writable(path: Path, option: str) -> None:
    """Raise `UsageError` when no file can be written there, before hours of work."""
    there = path.is_file()
    _write(path, option, "", "a")
    if not there:
        path.unlink()


def write(path: Path, option: str, text: str) -> None:
    """Write a page. Raise `UsageError` when that fails."""
    _write(path, option, text, "w")


def _write(path: Path, option: str, text: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"{option} {path}: can't be written: {error.strerror}; name a file in an existing folder"
        ) from None


def day(ms: int) -> str:
    """Return a moment's date and minute in UTC.

    >>> day(1_700_000_000_000)
    '2023-11-14 22:13 UTC'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

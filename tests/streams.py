"""Streams for tests of the core: raw batches from plain events, and one step of the state without models."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.rank_metrics import ModelMetrics
from pipeline.events.batch import Batch, Events, RawBatch, Span, TopicPartition
from pipeline.settings import (
    BatchConfig,
    EventsConfig,
    LimitsConfig,
    ModelConfig,
    RankConfig,
    Settings,
)
from pipeline.state.queries import Queries, training_queries
from pipeline.state.state import State

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
ROLES = EventsConfig(roles={"view": "neutral"})


class Event(NamedTuple):
    """One event of a test's stream."""

    user: str
    item: str
    type: str = "click"
    time_ms: int = START_MS
    event_id: str | None = None
    partition: int = 0


class Batches:
    """Makes raw batches in order: offsets go on by the number of events, `seq` by one."""

    def __init__(self, topic: str = "events", seq: int = 0, ends: dict[int, int] | None = None) -> None:
        self.topic, self.seq = topic, seq
        self.ends = dict(ends or {})

    def __call__(self, events: Sequence[Event], now_ms: int | None = None) -> RawBatch:
        """Return the next batch; `now_ms` is the newest event's time unless it is given."""
        partitions = sorted({event.partition for event in events}) or [0]
        spans = []
        for partition in partitions:
            start = self.ends.get(partition, 0)
            stop = start + sum(event.partition == partition for event in events)
            self.ends[partition] = stop
            spans.append(Span(self.topic, partition, start, stop))
        times = np.array([event.time_ms for event in events], np.int64)
        now = int(times.max(initial=START_MS)) if now_ms is None else now_ms
        columns = Events(
            [event.user for event in events],
            [event.item for event in events],
            [event.type for event in events],
            [event.event_id for event in events],
            times,
            np.full(len(events), now),  # sent just now, whatever time it tells of
            np.full(len(events), np.nan),
            np.array([partitions.index(event.partition) for event in events], np.int32),
        )
        raw = RawBatch(self.seq, now, tuple(spans), columns, [])
        self.seq += 1
        return raw


def source(partition: int = 0) -> TopicPartition:
    """Return a partition of the tests' topic."""
    return TopicPartition("events", partition)


def small_settings(
    *,
    name: str = "attention",
    exclude: list[str] | None = None,
    limits: LimitsConfig | None = None,
    k: int = 5,
    history: int = 8,
    dim: int = 8,
) -> Settings:
    """Return settings that make every table and tensor small."""
    return Settings(
        events=ROLES,
        batch=BatchConfig(max_events=64),
        model=ModelConfig(name=name, tables={"attention": {"dim": dim, "history": history}}),
        rank=RankConfig(k=k, exclude_event_types=exclude),
        limits=limits or LimitsConfig(),
    )


def new_state(settings: Settings) -> State:
    """Return the state that a recommender of these settings starts with."""
    return State(
        settings.events,
        settings.limits,
        settings.rank.exclude_event_types,
        settings.model.history,
        settings.rank.k,
        0,
    )


class Moved(NamedTuple):
    """What one step of the state gave."""

    batch: Batch
    queries: Queries
    gone: list[str]


def move_on(
    state: State, raw: RawBatch, before_update: Callable[[Batch, Queries], None] | None = None
) -> Moved:
    """Bring a state on by one batch, as `Recommender.step` does, without models."""
    batch = state.admit(raw)
    queries = training_queries(state, batch)
    if before_update:
        before_update(batch, queries)
    state.update(batch, queries.windows)
    return Moved(batch, queries, state.expire(raw.now_ms))


def names_of(state: State, rows: Sequence[int] | np.ndarray) -> list[str]:  # type: ignore[type-arg]
    """Return the ids of item rows, -1 left out."""
    return [state.items.id_of[row] for row in np.asarray(rows).tolist() if row >= 0]


def shoppers(
    rng: np.random.Generator,
    batches: Batches,
    count: int,
    *,
    size: int = 24,
    users: int = 12,
    window: int = 40,
    pace: int = 0,
    partitions: int = 1,
    ids: bool = False,
    types: Sequence[str] = ("click",),
) -> list[RawBatch]:
    """Return `count` batches of random events over items that move on: `pace` new ones come with each batch.

    With `ids` every event has an id and about a tenth come twice. A user keeps to one partition.
    """
    made = []
    time_ms = START_MS + MINUTE_MS * 1000 * batches.seq
    for _ in range(count):
        first = batches.seq * pace
        events: list[Event] = []
        for _ in range(size):
            time_ms += int(rng.integers(1, 20 * MINUTE_MS))
            user = int(rng.integers(users))
            item = first + int(rng.integers(window) * rng.random())
            event_id = f"e{batches.seq}-{len(events)}" if ids else None
            kind = types[int(rng.integers(len(types)))]
            events.append(Event(f"u{user}", f"i{item}", kind, time_ms, event_id, user % partitions))
            if ids and rng.random() < 0.1:
                events.append(events[int(rng.integers(len(events)))])
        made.append(batches(events))
    return made


def ndcg_between(before: ModelMetrics, after: ModelMetrics) -> float:
    """Return the NDCG@10 of the tests between two calls of `cumulative`."""
    early, late = before["ndcg@10"] * before["tests"], after["ndcg@10"] * after["tests"]
    return (late - early) / (after["tests"] - before["tests"])

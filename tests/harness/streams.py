"""Raw batches of plain events for tests of the core, one step of the state, and a whole recommender."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.rank_metrics import ModelMetrics
from pipeline.events.batch import Batch, CatalogUpdate, Events, ItemChange, RawBatch, Span, TopicPartition
from pipeline.features.lessons import Lessons
from pipeline.models.model import Model, Targets, TrainingCandidates, TrainResult
from pipeline.models.registry import configured, history_of, variant_of
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import BatchConfig, EventsConfig, LimitsConfig, ModelConfig, RankConfig, Settings
from pipeline.state.queries import Queries, training_queries
from pipeline.state.state import State

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
ROLES = EventsConfig(roles={"view": "neutral"})


class Event(NamedTuple):
    """One event of a test stream."""

    user: str
    item: str
    type: str = "click"
    time_ms: int = START_MS
    event_id: str | None = None
    partition: int = 0


class Batches:
    """Make raw batches in order: offsets increase by the number of events, `seq` by one."""

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
            np.full(len(events), now),  # the record's time
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
    blocked: Sequence[str] = (),
    **model: Any,
) -> Settings:
    """Return settings that make every table and tensor small; `model`: more keys of [model]."""
    tables = {each: {"dim": dim, "history": history} for each in ("attention", "sasrec")}
    return Settings(
        events=ROLES,
        batch=BatchConfig(max_events=64),
        model=ModelConfig(name=name, tables=tables | model.pop("tables", {}), **model),
        rank=RankConfig(k=k, exclude_event_types=exclude, blocked_items=list(blocked)),
        limits=limits or LimitsConfig(),
    )


class Spy:
    """A model that learns through `hook(model, queries, training, targets)`."""

    def __init__(self, model: Model, hook: Callable[..., TrainResult]) -> None:
        self.model, self.hook = model, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        return self.hook(self.model, queries, training, targets)


def spied(settings: Settings, name: str, hook: Callable[..., TrainResult], **options: Any) -> Recommender:
    """Return a recommender of one model alone, which learns through `hook`."""
    variants = [variant_of(settings.model, name, options)]
    return Recommender(settings, variants, lambda model: Spy(model, hook))


def new_state(settings: Settings) -> State:
    """Return the state that a recommender of these settings starts with."""
    return State(settings, history_of(configured(settings.model)))


class StateStep(NamedTuple):
    batch: Batch
    queries: Queries
    removed_users: list[str]


def move_on(
    state: State, raw: RawBatch, before_update: Callable[[Batch, Queries], None] | None = None
) -> StateStep:
    """Advance a state by one batch as `Recommender.step` does, without features and models."""
    batch = state.admit(raw)
    queries = training_queries(state, batch)
    if before_update:
        before_update(batch, queries)
    state.update(batch)
    expired = state.expire(raw.now_ms)
    state.reclaim(expired)
    return StateStep(batch, queries, expired.removed_users)


def names_of(state: State, rows: Sequence[int] | np.ndarray) -> list[str]:  # type: ignore[type-arg]
    """Return the ids of item rows, -1 left out."""
    return [state.items.id_of[row] for row in np.asarray(rows).tolist() if row >= 0]


def lessons(
    items: Sequence[int],
    windows: Sequence[Sequence[int]] = (),
    weights: Sequence[float] = (),
    *,
    positions: Sequence[int] = (),
    times_ms: Sequence[int] = (),
    sessions: Sequence[int] = (),
    length: int = 12,
) -> Lessons:
    """Return lessons of these item rows, each after a window, newest first; all else is alike by default."""
    count = len(items)
    items_BL = np.full((count, length), -1, np.int32)
    for b, window in enumerate(windows):
        items_BL[b, : len(window)] = window
    return Lessons(
        np.array(items, np.int32),
        np.array(weights or [1.0] * count, np.float32),
        np.zeros(count, np.uint16),
        np.array(times_ms or [START_MS] * count, np.int64),
        np.array(sessions or [1] * count, np.uint64),
        np.array(positions or [0] * count, np.int8),
        items_BL,
        (items_BL >= 0).sum(1).astype(np.int32),
        0,
    )


def copied(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: column.data.copy() for name, column in columns.items()}


def same(columns: dict[str, Any], before: dict[str, Any], rows: Any = slice(None)) -> None:
    """Assert that columns hold what they held, in these rows."""
    for name, column in columns.items():
        np.testing.assert_array_equal(column.data[rows], before[name][rows], err_msg=name)


def history_items(state: State, user: str) -> list[str]:
    """Return the ids of the items of a user's history, newest first."""
    rows = np.array([state.users.row_of[user]], np.int32)
    items_BL, _, _, length_B = state.histories.latest(rows, state.items.status.data)
    return names_of(state, items_BL[0, : length_B[0]])


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
    """Return `count` batches of random events over a moving window of items: `pace` new ones a batch.

    With `ids` every event has an id and about a tenth are duplicates. A user stays in one partition.
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


class Shop:
    """A recommender, its batches, and the newest published list of every user."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.recommender = Recommender(settings or small_settings())
        self.batches = Batches()
        self.newest: dict[str, list[str]] = {}
        self.learned: list[RawBatch] = []

    def step(self, events: Sequence[Event], *changes: tuple[str, bool]) -> Outcome:
        """Learn a batch of events and of changes of availability by item id.

        Without events the batch has no partition, as in the service.
        """
        raw = self.batches(events)
        catalog = CatalogUpdate(self.recommender.catalog_changes(ItemChange(*change) for change in changes))
        raw = dataclasses.replace(raw, catalog=catalog, spans=raw.spans if events else ())
        self.learned.append(raw)
        return self.learn(raw)

    def learn(self, raw: RawBatch) -> Outcome:
        outcome = self.recommender.step(raw)
        for ranking in outcome.rankings:
            self.newest[ranking.user_id] = [item.item_id for item in ranking.items]
        return outcome

    def steps(self, events: Sequence[Event], size: int = 600) -> None:
        for first in range(0, len(events), size):
            self.step(events[first : first + size])

    def settle(self) -> int:
        """Publish all pending lists; return the number of batches."""
        batches = 0
        while self.recommender.pending_rankings:
            self.step([])
            batches += 1
        return batches

    def restart(self, settings: Settings | None = None) -> None:
        again = Recommender(settings or self.recommender.settings)
        again.restore(self.recommender.snapshot())
        self.recommender = again

    def holders(self, item: str) -> set[str]:
        """Return the users with an item in their newest list."""
        return {user for user, items in self.newest.items() if item in items}

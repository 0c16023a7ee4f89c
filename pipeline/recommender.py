"""The stages in order: a batch in, rankings out. Everything that a checkpoint holds; no Kafka, no clock, no
thread.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.describe import item_document, user_document
from pipeline.evaluation.curves import Curves
from pipeline.evaluation.depths import Depths
from pipeline.evaluation.drift_control import DriftControl
from pipeline.evaluation.exposure import Exposure
from pipeline.evaluation.quality import COLD_BELOW, Coverage, Quality
from pipeline.evaluation.stale_metrics import drop_stale_metrics, of_measure
from pipeline.evaluation.timeline import Measure, Seen, Timeline, Track
from pipeline.events.batch import Batch, ItemChange, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.models.model import Model, Pool, Targets, TrainResult
from pipeline.models.registry import build_models, restart_models
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.ranking.explanations import reasons
from pipeline.ranking.lists import Ranked, Stamp, ranking_records
from pipeline.ranking.pools import Pools
from pipeline.ranking.recipients import audience, nobody
from pipeline.ranking.rules import RULES, apply_rules
from pipeline.ranking.top_k import filled_up, top_k
from pipeline.settings import POSITIVE, Settings
from pipeline.state import moving, packing
from pipeline.state.queries import Queries, barred_targets, lesson_queries, serving_queries
from pipeline.state.refresh import LATER, NOW
from pipeline.state.shards import Shard, Snapshot
from pipeline.state.state import State
from pipeline.state.tables import HIDDEN, LIVE
from pipeline.step_metrics import figures_of, tables_of

IntArray = npt.NDArray[np.int32]
# query-item pairs scored exactly a batch; of a larger catalogue a share of the events is tested
TEST_CELLS = 1_400_000


class Recommender:
    """Learns batches in order. Two of them fed the same batches hold the same content, bit for bit.

    `models[0]` is served, the others are live baselines. `test_all`: rank every event's target exactly,
    however large the catalogue; else a share of them, drawn by (seed, seq), keeps a step's cost bounded.
    `unread`: lists are measured, but nobody reads them, so that they need no reasons and no records.
    `evaluate` asks for both.
    """

    def __init__(
        self,
        settings: Settings,
        models: Callable[[State, Settings], list[Model]] = build_models,
        test_all: bool = False,
        unread: bool = False,
    ) -> None:
        rank, model = settings.rank, settings.model
        self.settings, self.test_all, self.unread = settings, test_all, unread
        self.state = State(
            settings.events, settings.limits, rank.exclude_event_types, model.history, rank.k, model.seed,
            rank.blocked_items,
        )  # fmt: skip
        self.models = models(self.state, settings)
        for m in self.models:
            self.state.register(f"model.{m.name}", m)
        self.state.welcome = self._welcome
        # room for lists of K even where a user has consumed what is popular
        self.pools = Pools(
            self.state.counts, self.state.items, rank.k, rank.exclude_event_types is not None, model.seed
        )
        names = [m.name for m in self.models]
        self.quality = Quality(names)
        self.coverage, self.exposure = Coverage(), Exposure()
        self.drift = DriftControl(self.state, settings.drift.reaction)
        self.curves, self.timeline, self.depths = Curves(names), Timeline(names), Depths(names)
        self.seq = 0
        self.held: Collection[TopicPartition] = ()  # partitions that the loop holds, with events or without
        # items of the default list last published; not saved: after a restart it goes out again
        self._default: list[str] | None = None

    @property
    def events_learned(self) -> int:
        """Events that have been learned, duplicates and rejects left out."""
        return self.state.events_learned

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset of every partition held."""
        return self.state.offsets

    @property
    def pending_rankings(self) -> bool:
        """Whether lists are to go out that wait for no event: a batch without any will make them."""
        refresh = self.state.refresh
        due = refresh.waiting(NOW) or refresh.waiting(LATER)
        return bool(due) or (self._default is None and self._leads())

    @property
    def item_offsets(self) -> dict[TopicPartition, int]:
        """The next offsets of the items topic."""
        return self.state.item_offsets

    def catalog_changes(self, changes: Iterable[ItemChange]) -> tuple[ItemChange, ...]:
        """Return those changes of items that change anything."""
        return self.state.availability.news(changes, self.state.items.row_of.keys())

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Learn a batch and rank its users; the lines are the stages.

        `raw.seq` must be `seq`, the number of batches learned so far: ValueError otherwise.
        """
        if raw.seq != self.seq:
            raise ValueError(f"batch {raw.seq}: expected {self.seq}; batches are learned in order, each once")
        before = tables_of(self.state)
        self.state.apply_catalog(raw.catalog)
        batch = self.state.admit(raw)
        mark("event")
        queries = lesson_queries(self.state, batch)
        targets = self._targets(batch, queries)
        mark("state")
        pool = self.pools.lesson(queries, self.models[0].lists, batch.seq)
        lessons = [model.learn(queries, pool, targets) for model in self.models]
        mark("train")
        alarms = self._measure(batch, queries, targets, lessons)
        mark("measure")
        self.state.update(batch, queries.windows)
        gone = self.state.expire(raw.now_ms)
        self.state.announce()
        if not self.unread:
            self.state.mark_short()
        self.pools.popular.update(np.unique(batch.item_B[batch.item_B >= 0]))
        self.seq += 1
        mark("state")
        # a step that was skipped for its numbers has nothing to say to users
        spoilt = lessons[0].skipped == "non_finite"
        whose = nobody(batch) if spoilt else audience(self.state, batch, raw.now_ms, self.settings.rank)
        rankings = self._rank(whose.users, raw)
        default_due = rankings or raw.catalog or len(self._default or ()) < self.settings.rank.k
        rankings += self._default_ranking(raw) if default_due else []
        mark("rank")
        figures = figures_of(self.state, batch, lessons[0], before, whose, self.drift.reacting)
        in_time_ms_B = np.where(whose.late_B, 0, batch.append_ms_B)
        return Outcome(rankings, gone, alarms, figures, in_time_ms_B, self._sources(whose.due))

    def catch_up(self, raw: RawBatch) -> None:
        """Bring users' state alone up to date with events that another worker has learned; `seq` stays."""
        learned = self.state.events_learned
        batch = self.state.admit(raw)
        queries = lesson_queries(self.state, batch)
        self.state.update(batch, queries.windows, learn=False)
        self.state.mark_short()
        self.state.events_learned = learned

    def _default_ranking(self, raw: RawBatch) -> list[Ranking]:
        """Return the list for people without events when it is ours to publish and its items have changed."""
        if self.unread or not self._leads():
            self._default = None  # another worker's is the newest by the time that this one leads again
            return []
        (ranking,) = self._rank(np.zeros(1, np.int32), raw, "default")
        items = [item.item_id for item in ranking.items]
        if items == self._default:
            return []
        self._default = items
        return [ranking]

    def _leads(self) -> bool:
        """Say whether the first partition is ours: its owner publishes the default list."""
        first = TopicPartition(next(iter(self.settings.topics.event_topics())), 0)
        return first in self.state.offsets or first in self.held

    def _welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        self.coverage.clear(rows)
        self.drift.welcome(rows)
        self.exposure.clear(rows)
        for model in self.models:
            model.welcome(rows, ids)

    def _targets(self, batch: Batch, queries: Queries) -> Targets:
        """Say what is to be learned and what is a test: positive events whose item the rules let through."""
        hidden_B = (self.state.items.status.data[batch.item_B] == HIDDEN) & (batch.item_B >= 0)
        counted_B = np.where(batch.role_B == POSITIVE, batch.item_B, -1).astype(np.int32)
        tested_B = (batch.role_B == POSITIVE) & ~barred_targets(queries, batch.item_B) & ~hidden_B
        row_B = np.where(tested_B & batch.known_B, batch.item_B, -1).astype(np.int32)
        most = max(1, TEST_CELLS // max(1, len(self.state.items)))
        if not self.test_all and row_B.shape[0] > most:
            rng = np.random.default_rng((self.settings.model.seed, batch.seq, 1))
            tested_B[rng.permutation(row_B.shape[0])[most:]] = False
        pace = self.drift.pace(batch.first_event)
        return Targets(row_B, batch.weight_B, tested_B, batch.known_B, batch.seq, counted_B, pace)

    def _measure(
        self, batch: Batch, queries: Queries, targets: Targets, lessons: Sequence[TrainResult]
    ) -> list[DriftAlarm]:
        """Judge every model on the batch; return what the drift detectors say of the served one."""
        cold_B = queries.earlier_B < COLD_BELOW
        young_B = self.drift.young(batch)
        gains = []
        for model, lesson in zip(self.models, lessons, strict=True):
            gains.append(self.quality.update(model.name, lesson.tested, cold_B))
            self.curves.update(model.name, lesson.tested)
            self.depths.update(model.name, lesson.tested, young_B)
        listed_B, hit_B = self.state.served.hits(batch.user_B, batch.item_B, self.state.items.status.data)
        self.quality.update_served(hit_B[listed_B & (batch.role_B == POSITIVE)])
        alarms = self.drift.update(batch, gains[0].hit_B, lessons[0].tested)
        newest_ms = int(batch.moment_ms_B.max(initial=0))
        self.timeline.update(self.state.events_learned, newest_ms, alarms, self._seen)
        return alarms

    def _seen(self) -> Seen:
        live = np.flatnonzero(self.state.items.status.data == LIVE)
        return Seen(self.quality.totals(), self.coverage.ratio(live), len(live))

    def track(self) -> Track:
        """Return the figures over time, up to now."""
        return self.timeline.track(self.state.events_learned, self._seen())

    def _rank(self, users: IntArray, raw: RawBatch, label: str = "") -> list[Ranking]:
        """Rank for these users with the new parameters and histories: score > rules > top K > reasons."""
        if users.size == 0:
            return []
        ranked = self.rank(users, explained=not self.unread)
        self.state.served.put(users, ranked.rows_BK)
        self.coverage.update(ranked.rows_BK)
        self.exposure.update(ranked.rows_BK)
        if self.unread:
            return []
        prefix = f"{self.settings.kafka.worker_id}-{raw.seq}-{label}"
        stamp = Stamp(prefix, raw.now_ms, self.models[0].name, self.seq)
        return ranking_records(self.state, users, ranked, stamp)

    def rank(self, users: IntArray, explained: bool = True) -> Ranked:
        """Rank for these user rows: score > rules > top K > reasons > announced items where these are fewer
        than K. Changes nothing.
        """
        model = self.models[0]
        queries = serving_queries(self.state, users)
        pool = self.pools.candidates(queries, model.lists)
        scores = model.score(queries, pool)
        scores = apply_rules(RULES, self.state, queries, pool.candidates, scores)
        rows_BK, scores_BK = top_k(scores, pool.candidates.rows, pool.candidates.count, self.settings.rank.k)
        reasons_BK = self._because(queries, rows_BK, pool, explained)
        return Ranked(*filled_up(rows_BK, scores_BK, self.state.newest), reasons_BK)

    def _because(self, queries: Queries, rows_BK: IntArray, pool: Pool, explained: bool) -> IntArray:
        if not (explained and self.settings.rank.explain):
            return np.full((*rows_BK.shape, 0), -1, np.int32)
        return reasons(self.models[0].contributions(queries, rows_BK, pool), queries.items_BL, rows_BK)

    def _sources(self, users: IntArray) -> dict[str, TopicPartition]:
        """Return the partition of each of these users, by id."""
        state = self.state
        numbers = state.origin.partition.data[users].tolist()
        return {
            state.users.id_of[user]: state.partitions[number]
            for user, number in zip(users.tolist(), numbers, strict=True)
        }

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        """Copy the partitions' users out."""
        return moving.take(self.state, sources)

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        """Add the users of a shard's partitions, of these or of all, in the place of what is held of them."""
        moving.put(self.state, shard, sources)
        self.state.mark_short()

    def release(self, sources: Collection[TopicPartition]) -> None:
        """Drop partitions: their users and their offsets."""
        self.state.drop_partitions(sources)

    def _measures(self) -> dict[str, Measure]:
        """Return what a checkpoint keeps of the stage, by the names of its arrays."""
        return {
            "quality": self.quality, "coverage": self.coverage, "drift": self.drift,
            "exposure": self.exposure, "curves": self.curves, "timeline": self.timeline,
            "depths": self.depths,
        }  # fmt: skip

    def snapshot(self) -> Snapshot:
        """Copy everything out, the users of every partition held too."""
        arrays, meta = packing.save_items(self.state)
        for name, part in self._measures().items():
            arrays |= {f"{name}/{key}": array for key, array in part.arrays().items()}
        meta |= {"seq": self.seq, "served_model": self.models[0].name}
        return Snapshot(arrays, meta, self.take(self.state.offsets))

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot was, users included; a model that can't go on starts anew.

        Raises ValueError where something is learned, `CheckpointError` where a column can't be made to fit.
        """
        if self.seq or self.offsets:
            raise ValueError(f"{self.seq} batches are learned already: expected a fresh one")
        different, restarted = packing.load_items(self.state, snapshot.arrays, snapshot.meta)
        restart_models(self.models, restarted, self.state.items)
        served = self.models[0].name
        another = served in restarted or snapshot.meta.get("served_model", served) != served
        figures = drop_stale_metrics(snapshot.arrays, restarted, another)
        for name, part in self._measures().items():
            part.load(of_measure(figures, name))
        admitted, evicted = self.state.users.admitted, self.state.users.evicted
        different |= moving.put(self.state, snapshot.shard)
        different.tell()
        self.state.users.admitted, self.state.users.evicted = admitted, evicted
        self.state.reconcile()
        self.state.announce()
        self.state.mark_short()
        self.seq = int(str(snapshot.meta["seq"]))
        self.pools.popular.update(np.empty(0, np.int32))

    def digests(self) -> dict[str, str]:
        """Return `digest_model` and `digest_users`: equal for equal content, whatever the row numbers."""
        return packing.digests(self.state)

    def describe_user(self, user_id: str) -> dict[str, object] | None:
        """Return what is held of a user, as JSON values; None when nobody of that id is held."""
        row = self.state.users.row_of.get(user_id)
        if row is None:
            return None
        return user_document(self.state, self.settings, row, self.rank(np.array([row], np.int32)))

    def describe_item(self, item_id: str) -> dict[str, object] | None:
        """Return what is held of an item, as JSON values; None when nothing is known of it."""
        return item_document(self.state, item_id)

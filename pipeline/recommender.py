"""The stages in order: a batch in, rankings out. Everything that a checkpoint holds; no Kafka, no clock, no
thread.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.describe import item_document, user_document
from pipeline.evaluation.drift import NEW_ITEM_EVENTS
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.rank_metrics import COLD_EVENTS
from pipeline.evaluation.reaction import Response
from pipeline.evaluation.timeline import Track
from pipeline.events.batch import Batch, ItemChange, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.features.bank import FeatureBank
from pipeline.features.lessons import Lessons
from pipeline.models.full_ranks import full_ranks
from pipeline.models.model import Model, ModelContext, Targets, TrainingCandidates, TrainResult
from pipeline.models.registry import Variant, build_model, configured, history_of, lists_of, restart_models
from pipeline.models.training import Trainer
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.ranking.lists import Ranked, Stamp, ranking_records
from pipeline.ranking.ranker import rank
from pipeline.ranking.recipients import no_recipients, recipients
from pipeline.settings import POSITIVE, Settings
from pipeline.state import moving, packing
from pipeline.state.item_age import ItemAge
from pipeline.state.queries import Queries, excluded_targets, training_queries
from pipeline.state.refresh import LATER, NOW
from pipeline.state.shards import Shard, Snapshot
from pipeline.state.state import State
from pipeline.state.tables import HIDDEN, LIVE
from pipeline.step_metrics import step_metrics_of, tables_of

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int32]
DEFAULT_LIST_EVERY = 64  # events between two rankings of the default list, at least
Wrap = Callable[[Model], Model]


class Recommender:
    """Learns batches in order. Two of them fed the same batches hold the same content, bit for bit.

    `models[0]` is served; the others, shadows and live baselines, learn and are measured on the same events.
    `variants`: the models of the settings, unless others are given; `wrap` is put around each, as a
    stopwatch. `unread`: lists are measured, but not read, so that they need no explanations and no records.
    `rank_all`: targets are ranked over all items, not within their candidates.
    """

    def __init__(
        self,
        settings: Settings,
        variants: Sequence[Variant] = (),
        wrap: Wrap = lambda model: model,
        unread: bool = False,
        rank_all: bool = False,
    ) -> None:
        config, seed = settings.rank, settings.model.seed
        variants = variants or configured(settings.model)
        self.settings, self.unread, self.rank_all = settings, unread, rank_all
        served_history = history_of(variants[:1])
        self.state = State(settings, history_of(variants), served_history)
        state = self.state
        self.bank = FeatureBank(
            state.items, state.users.capacity, config.k, config.exclude_event_types is not None, seed,
            lists_of(variants[0]), served_history,
        )  # fmt: skip
        self.trainer = Trainer(self.bank, seed)
        for name, store in self.bank.stores.items():
            state.register(f"features.{name}", store)
        context = ModelContext(state.users, state.items, self.bank, seed, settings.model.features != "none")
        self.models = [wrap(build_model(context, each)) for each in variants]
        self.disabled: set[str] = set()  # models that have failed
        for model in self.models:
            state.register(f"model.{model.name}", model)
        self.item_age = ItemAge(state.items.capacity)
        state.register("item_age", self.item_age)
        self.evaluator = Evaluator([model.name for model in self.models], settings.drift.reaction)
        self.quality, self.exposure = self.evaluator.quality, self.evaluator.exposure
        self.seq = 0
        self.held: Collection[TopicPartition] = ()  # partitions that the loop holds, with events or without
        # items of the default list last published; not saved: after a restart it goes out again
        self._default: list[str] | None = None
        self._moved_logged = False
        self._default_at = 0  # events learned when it was last ranked

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
        state, before = self.state, tables_of(self.state)
        state.apply_catalog(raw.catalog)
        if raw.catalog.changes:  # items that are shown again or hidden now count with this batch
            self.bank.popularity.update_lists(np.empty(0, np.int32), state.items)
        batch = state.admit(raw)
        self._init_rows(batch.new_users, batch.new_items)
        mark("event")
        queries = training_queries(state, batch)
        targets = self._targets(batch, queries)
        mark("state")
        training = self.trainer.candidates(queries, self.bank.candidates(queries), targets.item_B, batch.seq)
        results = self._learn(queries, training, targets)
        self.bank.success.update(queries.user_B, training.candidates, training.place_B)
        mark("train")
        served = results[self.models[0].name]
        alarms = self._evaluate(batch, queries, results)
        mark("measure")
        session_B = state.update(batch)
        self.bank.update(lessons_of(batch, queries, session_B))
        expired = state.expire(raw.now_ms)
        self.bank.forget(expired.items)
        state.reclaim(expired)
        state.announce()
        if not self.unread:
            state.mark_short()
        self.bank.popularity.update_lists(batch.item_B, state.items)
        self.seq += 1
        mark("state")
        # after a step that was skipped for its numbers no list is published
        spoilt = served.skipped == "non_finite"
        to = no_recipients(batch) if spoilt else recipients(state, batch, raw.now_ms, self.settings.rank)
        rankings = self._publish(to.users, raw)
        rankings += self._default_ranking(raw, bool(rankings))
        mark("rank")
        metrics = step_metrics_of(state, batch, served, before, to, self.reacting)
        in_time_ms_B = np.where(to.late_B, 0, batch.append_ms_B)
        return Outcome(rankings, expired.removed_users, alarms, metrics, in_time_ms_B, self._sources(to.due))

    def catch_up(self, raw: RawBatch) -> None:
        """Bring users' state alone up to date with events that another worker has learned; `seq` stays."""
        learned = self.state.events_learned
        batch = self.state.admit(raw)
        self._init_rows(batch.new_users, batch.new_items)
        self.state.update(batch)
        self.state.mark_short()
        self.state.events_learned = learned

    def _learn(
        self, queries: Queries, training: TrainingCandidates, targets: Targets
    ) -> dict[str, TrainResult]:
        """Let every model rank and learn a batch. One that fails is disabled, unless it is the served one."""
        results: dict[str, TrainResult] = {}
        for model in self.models:
            if model.name in self.disabled:
                continue
            try:
                ranks = full_ranks(model, self.bank, queries, training, targets) if self.rank_all else None
                result = model.learn(queries, training, targets)
                if ranks is not None:
                    result = result._replace(
                        ranks=result.ranks._replace(greater_B=ranks.greater_B, equal_B=ranks.equal_B)
                    )
                results[model.name] = result
            except Exception:
                if model is self.models[0]:
                    raise
                self.disabled.add(model.name)
                logger.warning("model %s failed: disabled until the next start", model.name, exc_info=True)
        return results

    def _default_ranking(self, raw: RawBatch, published: bool) -> list[Ranking]:
        """Return the list for people without events when it is ours to publish and its items have changed."""
        if self.unread or not self._leads():
            self._default = None  # another worker's is the newest by the time that this one leads again
            return []
        short = len(self._default or ()) < self.settings.rank.k
        aged = published and self.events_learned - self._default_at >= DEFAULT_LIST_EVERY
        if not (short or aged or raw.catalog):
            return []
        self._default_at = self.events_learned
        users = np.zeros(1, np.int32)
        ranked = self.rank(users)
        items = [self.state.items.id_of[row] for row in ranked.rows_BK[0].tolist() if row >= 0]
        if items == self._default:
            return []
        self._default = items
        return self._records(users, ranked, raw, "default")

    def _leads(self) -> bool:
        """Return whether the first partition is ours: its owner publishes the default list."""
        first = TopicPartition(next(iter(self.settings.topics.event_topics())), 0)
        return first in self.state.offsets or first in self.held

    def _init_rows(self, users: IntArray, items: IntArray) -> None:
        """Initialise everything that is kept of new users and items, independent of row order."""
        self.item_age.note(items, self.state.events_learned)
        self.exposure.clear(items)
        user_ids = [self.state.users.id_of[row] for row in users.tolist()]
        item_ids = [self.state.items.id_of[row] for row in items.tolist()]
        for model in self.models:
            model.init_rows("user", users, user_ids)
            model.init_rows("item", items, item_ids)

    def _targets(self, batch: Batch, queries: Queries) -> Targets:
        """Return what is learned and what is tested: positive events with items that may be shown."""
        hidden_B = (self.state.items.status.data[batch.item_B] == HIDDEN) & (batch.item_B >= 0)
        positive_B = batch.role_B == POSITIVE
        tested_B = positive_B & ~excluded_targets(queries, batch.item_B) & ~hidden_B
        return Targets(
            item_B=np.where(tested_B & batch.known_B, batch.item_B, -1).astype(np.int32),
            weight_B=batch.weight_B,
            type_B=batch.type_B,
            role_B=batch.role_B,
            value_B=batch.value_B,
            tested_B=tested_B,
            known_B=batch.known_B,
            counted_B=np.where(positive_B, batch.item_B, -1).astype(np.int32),
            seq=batch.seq,
            step_scale=self.evaluator.reaction.step_factor(batch.first_event),
        )

    def _evaluate(
        self, batch: Batch, queries: Queries, results: Mapping[str, TrainResult]
    ) -> list[DriftAlarm]:
        """Evaluate every model on the batch and react to drift of the served one; return the alarms."""
        listed_B, hit_B = self.state.published.hits(batch.user_B, batch.item_B, self.state.items.status.data)
        response = self.evaluator.update(
            batch,
            {name: result.ranks for name, result in results.items()},
            cold_B=queries.earlier_B < COLD_EVENTS,
            new_B=self.item_age.young(batch.item_B, batch.first_event, NEW_ITEM_EVENTS),
            list_hit_N=hit_B[listed_B & (batch.role_B == POSITIVE)],
        )
        self.react(response)
        if self.evaluator.timeline.is_due(self.state.events_learned):
            self.evaluator.record_moment(self.state.events_learned, self._live_rows())
        return response.alarms

    def react(self, response: Response) -> None:
        """Let the past count less, as the response to drift alarms requires."""
        if response.fade is not None:
            self.bank.fade(response.fade.weakening, response.fade.share_left)

    def _live_rows(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self.state.items.status.data == LIVE)

    @property
    def reacting(self) -> bool:
        """Whether a reaction to drift runs at the next event."""
        return self.evaluator.reaction.running(self.state.events_learned)

    def track(self) -> Track:
        """Return the metrics over time, up to now."""
        return self.evaluator.track(self.state.events_learned, self._live_rows())

    def _publish(self, users: IntArray, raw: RawBatch) -> list[Ranking]:
        """Return these users' lists, by the new parameters and histories: score > top K > explanations."""
        if users.size == 0:
            return []
        return self._records(users, self.rank(users, explained=not self.unread), raw, "")

    def _records(self, users: IntArray, ranked: Ranked, raw: RawBatch, label: str) -> list[Ranking]:
        """Note lists as published, and return their records."""
        self.state.published.put(users, ranked.rows_BK)
        self.exposure.update(ranked.rows_BK)
        if self.unread:
            return []
        prefix = f"{self.settings.kafka.worker_id}-{raw.seq}-{label}"
        stamp = Stamp(prefix, raw.now_ms, self.models[0].name, self.seq)
        return ranking_records(self.state, users, ranked, stamp)

    def rank(self, users: IntArray, explained: bool = True) -> Ranked:
        """Return the lists of these user rows; changes nothing."""
        return rank(self.state, self.bank, self.models[0], self.settings.rank, users, explained)

    def _sources(self, users: IntArray) -> dict[str, TopicPartition]:
        """Return the partition of each of these users, by id."""
        state = self.state
        numbers = state.partition_of.partition.data[users].tolist()
        return {
            state.users.id_of[user]: state.partitions[number]
            for user, number in zip(users.tolist(), numbers, strict=True)
        }

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        """Copy the partitions' users out."""
        return moving.take(self.state, sources)

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        """Add the users of a shard's partitions, of these or of all, in the place of what is held of them."""
        added = moving.put(self.state, shard, sources)
        self._init_rows(added.users, added.items)
        relearned = [m.name for m in self.models if any(column.own for column in m.columns().values())]
        if relearned and added.users.size and not self._moved_logged:
            self._moved_logged = True
            names = ", ".join(relearned)
            logger.info("user parameters of %s start again for users of other workers", names)
        self.state.mark_short()

    def release(self, sources: Collection[TopicPartition]) -> None:
        """Drop partitions: their users and their offsets."""
        self.state.drop_partitions(sources)

    def snapshot(self) -> Snapshot:
        """Copy everything out, the users of every partition held too."""
        arrays, meta = packing.save_items(self.state)
        arrays |= self.evaluator.arrays()
        meta |= {"seq": self.seq, "served_model": self.models[0].name}
        return Snapshot(arrays, meta, self.take(self.state.offsets))

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state from a snapshot, users included; a model that does not fit restarts.

        Raises ValueError where something is learned, `CheckpointError` where a column can't be made to fit.
        """
        if self.seq or self.offsets:
            raise ValueError(f"{self.seq} batches are learned already: expected a fresh one")
        state = self.state
        different, restarted = packing.load_items(state, snapshot.arrays, snapshot.meta)
        restart_models(self.models, restarted, state.items)
        served = self.models[0].name
        other_served = served in restarted or snapshot.meta.get("served_model", served) != served
        self.evaluator.load(snapshot.arrays, restarted, other_served)
        admitted, evicted = state.users.admitted, state.users.evicted
        different |= moving.put(state, snapshot.shard, own=True).differences
        different.tell()
        state.users.admitted, state.users.evicted = admitted, evicted
        self.bank.popularity.start_lists(state.items)
        state.reconcile()
        state.announce()
        state.mark_short()
        self.seq = int(str(snapshot.meta["seq"]))
        self.bank.popularity.update_lists(np.empty(0, np.int32), state.items)

    def digests(self) -> dict[str, str]:
        """Return `digest_model` and `digest_users`: equal for equal content, whatever the row numbers."""
        return packing.digests(self.state)

    def describe_user(self, user_id: str) -> dict[str, object] | None:
        """Return what is held of a user, as JSON values; None for an unknown id."""
        row = self.state.users.row_of.get(user_id)
        if row is None:
            return None
        return user_document(self.state, self.settings, row, self.rank(np.array([row], np.int32)))

    def describe_item(self, item_id: str) -> dict[str, object] | None:
        """Return what is held of an item, as JSON values; None when nothing is known of it."""
        return item_document(self.state, self.bank, item_id)


def lessons_of(batch: Batch, queries: Queries, session_B: npt.NDArray[np.uint64]) -> Lessons:
    """Return what count features learn from a batch: its positive events and the moments before them."""
    weight_B = np.where(batch.role_B == POSITIVE, batch.weight_B, np.float32(0))
    return Lessons(
        batch.item_B, weight_B, batch.type_B, batch.moment_ms_B, session_B, queries.position_B,
        queries.items_BL, queries.length_B, batch.seq,
    )  # fmt: skip

"""The stages in order: a batch in, rankings out. Holds everything that a checkpoint does."""

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
from pipeline.models.model import Model, ModelContext, TrainResult
from pipeline.models.registry import Variant, build_model, configured, history_of, lists_of, restart_models
from pipeline.models.training import Trainer, targets_of
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.ranking.lists import Ranked, Stamp, rank, ranking_records
from pipeline.ranking.recipients import no_recipients, recipients
from pipeline.settings import POSITIVE, Settings
from pipeline.state import moving, packing
from pipeline.state.published_lists import LATER, NOW
from pipeline.state.queries import Queries, training_queries
from pipeline.state.shards import Shard, Snapshot
from pipeline.state.state import State
from pipeline.state.tables import LIVE, ItemAge
from pipeline.step_metrics import step_metrics_of, tables_of

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int32]
DEFAULT_LIST_EVERY = 64  # events between two rankings of the default list, at least


class Recommender:
    """Learns batches in order. Two of them fed the same batches hold the same content, bit for bit.

    `models[0]` is served; shadows and live baselines learn the same events. `variants`: other models than
    those of the settings; `wrap` is put around each. `unread`: lists need no explanations and no records.
    `rank_all`: targets are ranked over all items, not within their candidates.
    """

    def __init__(
        self,
        settings: Settings,
        variants: Sequence[Variant] = (),
        wrap: Callable[[Model], Model] = lambda model: model,
        unread: bool = False,
        rank_all: bool = False,
    ) -> None:
        config, seed = settings.rank, settings.model.seed
        variants = variants or configured(settings.model)
        self.settings, self.unread = settings, unread
        served_history = history_of(variants[:1])
        self.state = state = State(settings, history_of(variants), served_history)
        self.bank = FeatureBank(
            state.items, state.users.capacity, config.k, config.exclude_event_types is not None, seed,
            lists_of(variants[0]), served_history,
        )  # fmt: skip
        self.trainer = Trainer(self.bank, seed, rank_all)
        for name, store in self.bank.stores.items():
            state.register(f"features.{name}", store)
        context = ModelContext(state.users, state.items, self.bank, seed, settings.model.features != "none")
        self.models = [wrap(build_model(context, each)) for each in variants]
        for model in self.models:
            state.register(f"model.{model.name}", model)
        self.item_age = ItemAge(state.items.capacity)
        state.register("item_age", self.item_age)
        self.evaluator = Evaluator([model.name for model in self.models], settings.drift.reaction)
        self.quality, self.exposure = self.evaluator.quality, self.evaluator.exposure
        self.seq = 0
        # the next offsets of every partition held, and of the items topic
        self.offsets, self.item_offsets = state.offsets, state.item_offsets
        self.held: Collection[TopicPartition] = ()  # partitions that the loop holds, with events or without
        self._default: list[str] | None = None  # default list last published; not saved, so goes out again
        self._default_at = 0  # events learned when it was last ranked
        self._moved_logged = False

    @property
    def events_learned(self) -> int:
        """Events that have been learned, duplicates and rejects left out."""
        return self.state.events_learned

    @property
    def pending_rankings(self) -> bool:
        """Whether lists are to go out that wait for no event: a batch without any will make them."""
        waiting = self.state.refresh.waiting
        return bool(waiting(NOW) or waiting(LATER)) or (self._default is None and self._leads())

    def catalog_changes(self, changes: Iterable[ItemChange]) -> tuple[ItemChange, ...]:
        """Return those changes of items that change anything."""
        return self.state.availability.news(changes, self.state.items.row_of.keys())

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Learn a batch and rank its users; ValueError where `raw.seq` is not `seq`, the next one."""
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
        targets = targets_of(state, batch, queries, self.evaluator.reaction.step_factor(batch.first_event))
        mark("state")
        training = self.trainer.candidates(queries, self.bank.candidates(queries), targets.item_B, batch.seq)
        results = self.trainer.learn(self.models, queries, training, targets)
        self.bank.success.update(queries.user_B, training.candidates, training.place_B)
        mark("train")
        served = results[self.models[0].name]
        alarms = self._evaluate(batch, queries, results)
        mark("measure")
        session_B = state.update(batch)
        weight_B = np.where(batch.role_B == POSITIVE, batch.weight_B, np.float32(0))
        self.bank.update(Lessons.of(queries, batch.item_B, weight_B, batch.type_B, session_B, batch.seq))
        expired = state.expire(raw.now_ms)
        self.bank.forget(expired.items)
        state.reclaim(expired)
        state.announce()
        if not self.unread:
            state.mark_short()
        self.bank.popularity.update_lists(batch.item_B, state.items)
        self.seq += 1
        mark("state")
        publishes = served.skipped != "non_finite"
        to = recipients(state, batch, raw.now_ms, self.settings.rank) if publishes else no_recipients(batch)
        rankings = self._publish(to.users, raw)
        rankings += self._default_ranking(raw, bool(rankings))
        mark("rank")
        reacting = self.evaluator.reaction.running(self.events_learned)
        metrics = step_metrics_of(state, batch, served, before, to, reacting)
        in_time_ms_B = np.where(to.late_B, 0, batch.append_ms_B)
        return Outcome(rankings, expired.removed_users, alarms, metrics, in_time_ms_B, self._sources(to.due))

    def catch_up(self, raw: RawBatch) -> None:
        """Bring users' state alone up to date with events that another worker has learned; `seq` stays."""
        state, learned = self.state, self.state.events_learned
        batch = state.admit(raw)
        self._init_rows(batch.new_users, batch.new_items)
        state.update(batch)
        state.mark_short()
        state.events_learned = learned

    def _default_ranking(self, raw: RawBatch, published: bool) -> list[Ranking]:
        """Return the list for users without events, where its items have changed and this worker leads."""
        if self.unread or not self._leads():
            self._default = None  # another worker's is the newest by the time that this one leads again
            return []
        short = len(self._default or ()) < self.settings.rank.k
        aged = published and self.events_learned - self._default_at >= DEFAULT_LIST_EVERY
        if not (short or aged or raw.catalog):
            return []
        self._default_at = self.events_learned
        users = np.zeros(1, np.int32)  # row 0 is the user without events
        ranked = self.rank(users)
        items = [self.state.items.id_of[row] for row in ranked.rows_BK[0].tolist() if row >= 0]
        if items == self._default:
            return []
        self._default = items
        return self._records(users, ranked, raw, "default")

    def _leads(self) -> bool:
        """Return whether this worker holds the first partition: its owner publishes the default list."""
        first = TopicPartition(next(iter(self.settings.topics.event_topics())), 0)
        return first in self.state.offsets or first in self.held

    def _init_rows(self, users: IntArray, items: IntArray) -> None:
        """Initialise what is kept of new users and items, independent of row order."""
        self.item_age.note(items, self.state.events_learned)
        self.exposure.clear(items)
        user_ids = [self.state.users.id_of[row] for row in users.tolist()]
        item_ids = [self.state.items.id_of[row] for row in items.tolist()]
        for model in self.models:
            model.init_rows("user", users, user_ids)
            model.init_rows("item", items, item_ids)

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
            self.bank.fade(*response.fade)

    def track(self) -> Track:
        """Return the metrics over time, up to now."""
        return self.evaluator.track(self.events_learned, self._live_rows())

    def _live_rows(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self.state.items.status.data == LIVE)

    def _publish(self, users: IntArray, raw: RawBatch) -> list[Ranking]:
        """Return these users' lists, by the new parameters and histories."""
        return self._records(users, self.rank(users, not self.unread), raw, "") if users.size else []

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
        """Return each user's partition, by id."""
        id_of, partitions = self.state.users.id_of, self.state.partitions
        numbers = self.state.partition_of.partition.data[users].tolist()
        return {id_of[u]: partitions[number] for u, number in zip(users.tolist(), numbers, strict=True)}

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        """Copy the partitions' users out."""
        return moving.take(self.state, sources)

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        """Replace the users of a shard's partitions, of these or of all."""
        added = moving.put(self.state, shard, sources)
        self._init_rows(added.users, added.items)
        own = [m.name for m in self.models if any(column.own for column in m.columns().values())]
        if own and added.users.size and not self._moved_logged:
            self._moved_logged = True
            logger.info("user parameters of %s start again for users of other workers", ", ".join(own))
        self.state.mark_short()

    def release(self, sources: Collection[TopicPartition]) -> None:
        """Drop partitions: their users and their offsets."""
        self.state.drop_partitions(sources)

    def snapshot(self) -> Snapshot:
        """Copy everything out, the users of every partition too."""
        arrays, meta = packing.save_items(self.state)
        arrays |= self.evaluator.arrays()
        meta |= {"seq": self.seq, "served_model": self.models[0].name}
        return Snapshot(arrays, meta, self.take(self.state.offsets))

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state from a snapshot; a model that does not fit restarts.

        Raises ValueError where something is learned, `CheckpointError` where a column can't be made to fit.
        """
        if self.seq or self.offsets:
            raise ValueError(f"{self.seq} batches are learned already: expected a fresh one")
        state, served = self.state, self.models[0].name
        different, restarted = packing.load_items(state, snapshot.arrays, snapshot.meta)
        restart_models(self.models, restarted, state.items)
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
        """Return `digest_model` and `digest_users`: equal for equal content, whatever the rows."""
        return packing.digests(self.state)

    def describe_user(self, user_id: str) -> dict[str, object] | None:
        """Return what is held of a user, as JSON values; None for an unknown id."""
        row = self.state.users.row_of.get(user_id)
        if row is None:
            return None
        return user_document(self.state, self.settings, row, self.rank(np.array([row], np.int32)))

    def describe_item(self, item_id: str) -> dict[str, object] | None:
        """Return what is held of an item, as JSON values; None for an unknown id."""
        return item_document(self.state, self.bank, item_id)

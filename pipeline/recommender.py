"""The stages in order: a batch in, rankings out. Everything that a checkpoint holds; no Kafka, no clock, no
thread.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.event.batch import Batch, RawBatch, TopicPartition
from pipeline.event.records import DriftAlarm, RankedItem, Ranking
from pipeline.measure.drift import DriftWatch, scaled_loss
from pipeline.measure.quality import COLD_BELOW, Coverage, Quality
from pipeline.outcome import Figures, Mark, Outcome, TableFigures, no_mark
from pipeline.rank.pools import Pools
from pipeline.rank.reasons import reasons
from pipeline.rank.rules import RULES, apply_rules
from pipeline.rank.top_k import top_k
from pipeline.settings import POSITIVE, Settings
from pipeline.state import packing
from pipeline.state.popularity import P1000
from pipeline.state.queries import Queries, barred_targets, lesson_queries, serving_queries
from pipeline.state.shards import Shard, Snapshot
from pipeline.state.state import State
from pipeline.state.tables import LIVE
from pipeline.train.build import build_models
from pipeline.train.model import Learned, Model, Pool, Targets

IntArray = npt.NDArray[np.int32]
MORE_TYPES = "other"  # names of event types come from outside: figures name so many at most
TYPES_NAMED = 32
# query-item pairs scored exactly a batch; of a larger catalogue a share of the events is tested
TEST_CELLS = 1_400_000


class Ranked(NamedTuple):
    """Lists of item rows, best first, -1 past the end; `because_BK` [B, K, reasons] names history items."""

    rows_BK: IntArray
    scores_BK: npt.NDArray[np.float32]
    because_BK: IntArray


class Recommender:
    """Learns batches in order. Two of them fed the same batches hold the same content, bit for bit.

    `models[0]` is served, the others are live baselines. `test_all`: rank every event's target exactly,
    however large the catalogue (`evaluate`); else a share of them, drawn by (seed, seq), keeps a step's cost
    bounded.
    """

    def __init__(
        self,
        settings: Settings,
        models: Callable[[State, Settings], list[Model]] = build_models,
        test_all: bool = False,
    ) -> None:
        rank, model = settings.rank, settings.model
        self.settings, self.test_all = settings, test_all
        self.state = State(settings.events, settings.limits, rank.exclude, model.history, rank.k, model.seed)
        self.models = models(self.state, settings)
        for m in self.models:
            self.state.register(f"model.{m.name}", m)
        self.state.welcome = self._welcome
        # room for lists of K even where a user has consumed what is popular
        self.pools = Pools(
            self.state.popularity,
            self.state.successors,
            self.state.items,
            rank.k,
            rank.exclude is not None,
            model.seed,
        )
        self.quality = Quality([m.name for m in self.models])
        self.coverage = Coverage()
        self.drift = DriftWatch()
        self.seq = 0
        # items of the default list last published; not saved: after a restart it goes out again
        self._default: list[str] = []

    @property
    def events_learned(self) -> int:
        """Events that have been learned, duplicates and rejects left out."""
        return self.state.events_learned

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset of every partition held."""
        return self.state.offsets

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Learn a batch and rank its users; the lines are the stages.

        `raw.seq` must be `seq`, the number of batches learned so far: ValueError otherwise.
        """
        if raw.seq != self.seq:
            raise ValueError(f"batch {raw.seq}: expected {self.seq}; batches are learned in order, each once")
        before = self._tables()
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
        self.pools.popular.update(np.unique(batch.item_B[batch.item_B >= 0]))
        self.seq += 1
        mark("state")
        # a step that was skipped for its numbers has nothing to say to users
        rankings = self._rank(self._touched(batch), raw) if lessons[0].skipped != "non_finite" else []
        rankings += self._default_ranking(raw) if rankings else []
        mark("rank")
        return Outcome(rankings, gone, alarms, self._figures(batch, lessons[0], before), batch.append_ms_B)

    def catch_up(self, raw: RawBatch) -> None:
        """Bring users' state alone up to date with events that another worker has learned; `seq` stays."""
        learned = self.state.events_learned
        batch = self.state.admit(raw)
        queries = lesson_queries(self.state, batch)
        self.state.update(batch, queries.windows, learn=False)
        self.state.events_learned = learned

    def _default_ranking(self, raw: RawBatch) -> list[Ranking]:
        """Return the list for people without events when it is ours to publish and its items have changed."""
        first = next(iter(self.settings.topics.event_topics()))
        if TopicPartition(first, 0) not in self.state.offsets:
            return []
        (ranking,) = self._rank(np.zeros(1, np.int32), raw, "default")
        items = [item.item_id for item in ranking.items]
        if items == self._default:
            return []
        self._default = items
        return [ranking]

    def _welcome(self, rows: IntArray, ids: Sequence[str]) -> None:
        self.coverage.clear(rows)
        for model in self.models:
            model.welcome(rows, ids)

    def _targets(self, batch: Batch, queries: Queries) -> Targets:
        """Say what is to be learned and what is a test: positive events whose item the rules let through."""
        tested_B = (batch.role_B == POSITIVE) & ~barred_targets(queries, batch.item_B)
        row_B = np.where(tested_B & batch.known_B, batch.item_B, -1).astype(np.int32)
        most = max(1, TEST_CELLS // max(1, len(self.state.items)))
        if not self.test_all and row_B.shape[0] > most:
            rng = np.random.default_rng((self.settings.model.seed, batch.seq, 1))
            tested_B[rng.permutation(row_B.shape[0])[most:]] = False
        return Targets(row_B, batch.weight_B, tested_B, batch.known_B, batch.seq)

    def _measure(
        self, batch: Batch, queries: Queries, targets: Targets, lessons: Sequence[Learned]
    ) -> list[DriftAlarm]:
        """Judge every model on the batch; return what the drift detectors say of the served one."""
        cold_B = queries.earlier_B < COLD_BELOW
        gains = [
            self.quality.update(model.name, lesson.tested, cold_B)
            for model, lesson in zip(self.models, lessons, strict=True)
        ]
        listed_B, hit_B = self.state.served.hits(batch.user_B, batch.item_B, self.state.items.status.data)
        self.quality.update_served(hit_B[listed_B & (batch.role_B == POSITIVE)])
        return self.drift.update(
            gains[0].hit_B, scaled_loss(lessons[0].tested), batch.first_event, batch.now_ms
        )

    def _touched(self, batch: Batch) -> IntArray:
        """Return the batch's users that are still held, each once, in order of appearance."""
        users, first = np.unique(batch.user_B, return_index=True)
        users = users[np.argsort(first)]
        return users[self.state.origin.partition.data[users] >= 0]

    def _rank(self, users: IntArray, raw: RawBatch, label: str = "") -> list[Ranking]:
        """Rank for these users with the new parameters and histories: score > rules > top K > reasons."""
        if users.size == 0:
            return []
        ranked = self.rank(users)
        self.state.served.put(users, ranked.rows_BK)
        self.coverage.update(ranked.rows_BK)
        return self._rankings(users, ranked, raw, label)

    def rank(self, users: IntArray) -> Ranked:
        """Rank for these user rows: score > rules > top K > reasons. Changes nothing."""
        model = self.models[0]
        queries = serving_queries(self.state, users)
        pool = self.pools.candidates(queries, model.lists)
        scores = model.score(queries, pool)
        scores = apply_rules(RULES, self.state, queries, pool.candidates, scores)
        rows_BK, scores_BK = top_k(scores, pool.candidates.rows, pool.candidates.count, self.settings.rank.k)
        return Ranked(rows_BK, scores_BK, self._because(queries, rows_BK, pool))

    def _because(self, queries: Queries, rows_BK: IntArray, pool: Pool) -> IntArray:
        if not self.settings.rank.because:
            return np.full((*rows_BK.shape, 0), -1, np.int32)
        return reasons(self.models[0].contributions(queries, rows_BK, pool), queries.items_BL, rows_BK)

    def _rankings(self, users: IntArray, ranked: Ranked, raw: RawBatch, label: str) -> list[Ranking]:
        """Put rows into records. Flat lists and `map`: this is most of what Python does in a batch."""
        item_of, user_of = self.state.items.id_of, self.state.users.id_of
        filled_BK = ranked.rows_BK >= 0
        given_NR = ranked.because_BK[filled_BK]
        reasons_n = [item_of[row] for row in given_NR[given_NR >= 0].tolist()]
        edges = np.concatenate(([0], np.cumsum((given_NR >= 0).sum(1)))).tolist()
        items = list(
            map(
                RankedItem,
                [item_of[row] for row in ranked.rows_BK[filled_BK].tolist()],
                ranked.scores_BK[filled_BK].tolist(),
                [reasons_n[start:stop] for start, stop in pairwise(edges)],
            )
        )
        borders = np.concatenate(([0], np.cumsum(filled_BK.sum(1)))).tolist()
        prefix = f"{self.settings.kafka.worker_id}-{raw.seq}-{label}"
        newest = self.state.histories.newest_ms.data[users].tolist()
        name, version, now_ms = self.models[0].name, self.seq, raw.now_ms
        return [
            Ranking(user_of[user], f"{prefix}{place}", items[start:stop], now_ms, event_ms, name, version)
            for place, (user, event_ms, (start, stop)) in enumerate(
                zip(users.tolist(), newest, pairwise(borders), strict=True)
            )
        ]

    def _tables(self) -> dict[str, TableFigures]:
        """Return each table's live rows, and how many ever came and went."""
        users, items = self.state.users, self.state.items
        return {
            "users": TableFigures(len(users) - 1, users.admitted, users.evicted),  # row 0 is nobody's
            "items": TableFigures(len(items), items.admitted, items.evicted),
        }

    def _figures(self, batch: Batch, served: Learned, before: dict[str, TableFigures]) -> Figures:
        types = dict(sorted(batch.types.items(), key=lambda pair: -pair[1])[:TYPES_NAMED])
        rest = sum(batch.types.values()) - sum(types.values())
        tables = {
            name: TableFigures(now.live, now.admitted - was.admitted, now.evicted - was.evicted)
            for (name, was), now in zip(before.items(), self._tables().values(), strict=True)
        }
        return Figures(
            types | ({MORE_TYPES: rest} if rest else {}),
            batch.duplicates,
            len(batch.user_B),
            served.loss,
            served.gradient_norm,
            served.skipped,
            int(batch.time_ms_B.max(initial=0)),
            tables,
        )

    def take(self, source: TopicPartition) -> Shard:
        """Copy the partition's users out."""
        return packing.take(self.state, source)

    def put(self, shard: Shard) -> None:
        """Add a shard's users, in the place of what is held of that partition."""
        packing.put(self.state, shard)

    def release(self, source: TopicPartition) -> None:
        """Drop a partition: its users and its offset."""
        self.state.drop_partition(source)

    def snapshot(self) -> Snapshot:
        """Copy everything out, with a shard for every partition held."""
        arrays, meta = packing.save_items(self.state)
        for name, part in (("quality", self.quality), ("coverage", self.coverage), ("drift", self.drift)):
            arrays |= {f"{name}/{key}": array for key, array in part.arrays().items()}
        shards = [self.take(source) for source in sorted(self.state.offsets)]
        return Snapshot(arrays, meta | {"seq": self.seq}, shards)

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot was, shards included. Raises ValueError where something is learned."""
        if self.seq or self.offsets:
            raise ValueError(f"{self.seq} batches are learned already: expected a fresh one")
        packing.load_items(self.state, snapshot.arrays, snapshot.meta)
        for name, part in (("quality", self.quality), ("coverage", self.coverage), ("drift", self.drift)):
            part.load(
                {k.partition("/")[2]: a for k, a in snapshot.arrays.items() if k.startswith(f"{name}/")}
            )
        admitted, evicted = self.state.users.admitted, self.state.users.evicted
        for shard in snapshot.shards:
            self.put(shard)
        self.state.users.admitted, self.state.users.evicted = admitted, evicted
        self.seq = int(str(snapshot.meta["seq"]))
        self.pools.popular.update(np.empty(0, np.int32))

    def digests(self) -> dict[str, str]:
        """Return `digest_model` and `digest_users`: equal for equal content, whatever the row numbers."""
        return packing.digests(self.state)

    def describe_user(self, user_id: str) -> dict[str, object] | None:
        """Return what is held of a user, as JSON values; None when nobody of that id is held."""
        row = self.state.users.row_of.get(user_id)
        if row is None or row == 0:
            return None
        state = self.state
        items, times = state.histories.window(row, state.items.status.data)
        name = state.items.id_of
        ranked = self.rank(np.array([row], np.int32))
        lists = zip(*(column[0].tolist() for column in ranked), strict=True)
        return {
            "user_id": user_id,
            "partition": list(state.partitions[int(state.origin.partition.data[row])]),
            "history": [
                {"item_id": name[item], "timestamp_ms": ms}
                for item, ms in zip(items.tolist(), times.tolist(), strict=True)
            ],
            "consumed": [name[item] for item in state.consumed.of(row, state.items.status.data).tolist()],
            "ranking": [
                {"item_id": name[item], "score": score, "because": [name[r] for r in why if r >= 0]}
                for item, score, why in lists
                if item >= 0
            ],
        }

    def describe_item(self, item_id: str) -> dict[str, object] | None:
        """Return what is held of an item, as JSON values; None when it is not in the catalogue."""
        row = self.state.items.row_of.get(item_id)
        if row is None:
            return None
        state, successors = self.state, self.state.successors
        partners = successors.partner.data[row]
        weights = successors.forward.data[row]
        live = (partners >= 0) & (state.items.status.data[partners] == LIVE) & (weights > 0)
        order = np.flatnonzero(live)[np.argsort(-weights[live], kind="stable")]
        return {
            "item_id": item_id,
            "events": float(successors.count.data[row]),
            "popularity": float(state.popularity.values(P1000)[row]),
            "last_timestamp_ms": int(state.items.last_ms.data[row]),
            "followed_by": [
                {"item_id": state.items.id_of[partners[slot]], "weight": float(weights[slot])}
                for slot in order[:10].tolist()
            ],
        }

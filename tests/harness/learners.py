"""A small exact learner: every lost, repeated or reordered event changes its digests."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from pipeline.events.batch import ItemChange, RawBatch, TopicPartition
from pipeline.events.records import RankedItem, Ranking
from pipeline.outcome import Mark, Outcome, StepMetrics, no_mark
from pipeline.settings import Settings
from pipeline.state.shards import Arrays, Shard, Snapshot, pack_texts, unpack_texts

Users = dict[str, list[object]]  # user -> [newest event time, digest of all events so far, [recent items]]


class CountingLearner:
    """Counts items over all partitions, and lists each user's recent items, scored by their counts.

    The model's digest depends on boundaries, times and order of all batches; a user's on that user's events.
    """

    def __init__(self, settings: Settings) -> None:
        self.k = settings.rank.k
        self.seq = 0
        self.events_learned = 0
        self.offsets: dict[TopicPartition, int] = {}
        self.counts: Counter[str] = Counter()
        self.chain = ""
        self.users: dict[TopicPartition, Users] = {}
        self.held: Collection[TopicPartition] = ()
        self.due: set[str] = set()  # users with a pending ranking
        self.item_offsets: dict[TopicPartition, int] = {}
        self.withdrawn: set[str] = set()

    @property
    def pending_rankings(self) -> bool:
        return bool(self.due)

    def catalog_changes(self, changes: Iterable[ItemChange]) -> tuple[ItemChange, ...]:
        return tuple(each for each in changes if each.available == (each.item_id in self.withdrawn))

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Count the events, then rank their users."""
        assert raw.seq == self.seq, f"batch {raw.seq}, expected {self.seq}"
        for change in raw.catalog.changes:
            (self.withdrawn.discard if change.available else self.withdrawn.add)(change.item_id)
            self.due |= {user for user, (_, _, recent) in self._all_users() if change.item_id in recent}  # type: ignore[operator]
        self.item_offsets |= {TopicPartition(*at): offset for *at, offset in raw.catalog.offsets}
        touched = self._learn_users(raw)
        mark("state")
        events = raw.events
        self.counts.update(events.item_ids)
        pairs = list(zip(events.user_ids, events.item_ids, strict=True))
        self.chain = _digest(self.chain, raw.seq, raw.now_ms, pairs, sorted(self.withdrawn))
        self.seq += 1
        self.events_learned += len(events)
        mark("train")
        refreshed = self._next_due(touched)
        listed = sorted((touched | refreshed).items())
        rankings = [self._rank(user, source, raw) for user, source in listed]
        mark("rank")
        newest = int(events.time_ms_B.max(initial=0))
        metrics = StepMetrics(dict(Counter(events.types)), 0, len(events), 0.5, 0.1, "", newest, {})
        return Outcome(rankings, [], [], metrics, events.append_ms_B, refreshed)

    def catch_up(self, raw: RawBatch) -> None:
        self._learn_users(raw)

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        users = [[*source, self.users[source]] for source in sorted(sources)]
        data = np.frombuffer(json.dumps(users).encode(), np.uint8).copy()
        return Shard({source: self.offsets[source] for source in sorted(sources)}, {"users": data})

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        for topic, partition, users in json.loads(shard.arrays["users"].tobytes()):
            source = TopicPartition(topic, partition)
            if sources is None or source in sources:
                self.users[source], self.offsets[source] = users, shard.offsets[source]

    def release(self, sources: Collection[TopicPartition]) -> None:
        for source in sources:
            del self.users[source], self.offsets[source]

    def snapshot(self) -> Snapshot:
        names = sorted(self.counts)
        data, borders = pack_texts(names)
        arrays: Arrays = {
            "items": data,
            "borders": borders,
            "counts": np.array([self.counts[name] for name in names], np.int64),
        }
        meta = {
            "seq": self.seq,
            "events_learned": self.events_learned,
            "chain": self.chain,
            "withdrawn": sorted(self.withdrawn),
            "due": sorted(self.due),
            "item_offsets": [[*at, offset] for at, offset in sorted(self.item_offsets.items())],
        }
        return Snapshot(arrays, meta, self.take(self.offsets))

    def restore(self, snapshot: Snapshot) -> None:
        assert (self.seq, self.offsets) == (0, {}), "restore on a learner that has learned"
        names = unpack_texts(snapshot.arrays["items"], snapshot.arrays["borders"])
        self.counts = Counter(dict(zip(names, snapshot.arrays["counts"].tolist(), strict=True)))
        self.seq, self.events_learned = int(snapshot.meta["seq"]), int(snapshot.meta["events_learned"])
        self.chain = str(snapshot.meta["chain"])
        self.withdrawn, self.due = set(snapshot.meta["withdrawn"]), set(snapshot.meta["due"])
        self.item_offsets = {TopicPartition(*at): offset for *at, offset in snapshot.meta["item_offsets"]}
        self.put(snapshot.shard)

    def digests(self) -> dict[str, str]:
        users = {user: state for held in self.users.values() for user, state in held.items()}
        model = _digest(self.chain, sorted(self.counts.items()))
        return {"digest_model": model, "digest_users": _digest(sorted(users.items()))}

    @property
    def quality(self) -> "CountingLearner":
        return self

    def cumulative(self) -> dict[str, object]:
        return {"counting": {"tests": self.events_learned}}

    def describe_user(self, user_id: str) -> dict[str, object] | None:
        for source, users in self.users.items():
            if user_id in users:
                return {"partition": source.partition, "history": users[user_id][2]}
        return None

    def describe_item(self, item_id: str) -> dict[str, object] | None:
        return {"count": self.counts[item_id]} if item_id in self.counts else None

    def _learn_users(self, raw: RawBatch) -> dict[str, TopicPartition]:
        for span in raw.spans:
            known = self.offsets.get(span.source, span.start)
            assert known == span.start, f"{span} comes after offset {known}"
            self.offsets[span.source] = span.stop
            self.users.setdefault(span.source, {})
        touched = {}
        events = raw.events
        columns = (events.user_ids, events.item_ids, events.time_ms_B.tolist(), events.source_B.tolist())
        for user, item, time_ms, place in zip(*columns, strict=True):
            source = raw.spans[place].source
            before = self.users[source].get(user, [0, "", []])
            recent = [item, *(other for other in before[2] if other != item)][: self.k]  # type: ignore[attr-defined]
            self.users[source][user] = [time_ms, _digest(before[1], item, time_ms), recent]
            touched[user] = source
        return touched

    def _all_users(self) -> list[tuple[str, list[object]]]:
        return [each for users in self.users.values() for each in users.items()]

    def _next_due(self, touched: Mapping[str, TopicPartition]) -> dict[str, TopicPartition]:
        """Return two users with a pending ranking, without those ranked in this batch."""
        self.due -= touched.keys()
        homes = {user: source for source, users in self.users.items() for user in users}
        chosen = {user: homes[user] for user in sorted(self.due & homes.keys())[:2]}
        self.due -= chosen.keys()
        return chosen

    def _rank(self, user: str, source: TopicPartition, raw: RawBatch) -> Ranking:
        time_ms, _, recent = self.users[source][user]
        shown = (item for item in recent if item not in self.withdrawn)  # type: ignore[attr-defined]
        items = [RankedItem(item, float(self.counts[item])) for item in shown]
        return Ranking(user, f"{user}-{raw.seq}", items, raw.now_ms, int(time_ms), "counting", raw.seq)  # type: ignore[call-overload]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

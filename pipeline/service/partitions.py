"""The partitions assigned to this worker, and how their users are taken over and released.

The group calls `assigned`, `revoked` and `lost` inside `poll` or `keep_alive`. They do only what can't wait:
seek positions and write revoked users. `settle`, which the loop calls before the next batch, reads shards and
topics. A user's events are in the same partition number of each topic, and the user's state is stored with
the partition of the newest event: so the partitions of a number are taken over together.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.errors import OffsetsGone
from pipeline.events.batch import Span, TopicPartition
from pipeline.outcome import Learner
from pipeline.persistence.shard_files import ShardFiles
from pipeline.service.catch_up import CHUNK_OFFSETS, in_time_order
from pipeline.service.delivery import Delivery
from pipeline.service.ports import Adapters

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)  # compared by identity: the same partition may come twice
class Takeover:
    """A partition to take over: from its newest shard, then from the topic up to `target`."""

    target: int
    restored: bool = False  # from the shard


Group = Mapping[TopicPartition, Takeover]


class Partitions:
    """The listener of the source: applies each assignment to the learner.

    `held` are the assigned partitions. `unsettled`: the state has changed, or is to change, outside of the
    journal, so `settle` and a checkpoint come before the next batch. `stopping`: a takeover may be abandoned.
    `leaving`: the last checkpoint is written and holds what is revoked from now on.
    """

    def __init__(
        self, learner: Learner, adapters: Adapters, delivery: Delivery, shards: ShardFiles | None
    ) -> None:
        self.held: set[TopicPartition] = set()
        self.unsettled = self.stopping = self.leaving = False
        self._learner, self._delivery, self._shards = learner, delivery, shards
        self._source, self._decoder = adapters.source, adapters.decoder
        self._clock, self._observer = adapters.clock, adapters.observer
        self._pending: dict[TopicPartition, Takeover] = {}
        self._ready = False

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Seek each partition to the next offset of its users' state, or of that after `settle`."""
        self.held.update(partitions)
        self._delivery.forget(partitions)  # offsets of an earlier assignment may be outdated
        starts = self._source.start_offsets(partitions)
        ends = self._source.end_offsets(partitions)
        commits = self._source.committed(partitions)
        shards = {} if self._shards is None else self._shards.newest(partitions)
        local = self._learner.offsets
        targets = {source: max(commits.get(source, -1), shards.get(source, -1)) for source in partitions}
        behind = {source.partition for source in partitions if local.get(source, -1) < targets[source]}
        stale = [source for source in partitions if source in local and source.partition in behind]
        for source, target in targets.items():
            if source in local:
                self._compare(source, local[source], target, commits.get(source))
            position = max(target, local.get(source, -1))
            if position >= 0:
                _check_range(source, position, starts[source], ends[source])
                if self._shards is not None and source.partition in behind:
                    self._pending[source] = Takeover(position)
            self._source.seek(source, position if position >= 0 else starts[source])
        self._release(stale)
        self.unsettled = self.unsettled or bool(stale or self._pending)
        self._observer.rebalanced()
        self._observer.holds(len(self.held))
        self.joined()

    def _compare(self, source: TopicPartition, local: int, target: int, commit: int | None) -> None:
        """Log a state that is behind the group; let offsets that the group lacks be committed."""
        if local < target:
            logger.warning(
                "%s-%d: learned here up to %d, by the group up to %d; its users are taken from the newest "
                "shard and the topic", *source, local, target,
            )  # fmt: skip
        elif local != commit:
            self._delivery.acknowledged[source] = local  # published before a restart, not committed

    def joined(self) -> None:
        """Become ready once joined and settled, even without a partition: an idle worker is a standby."""
        if not self._ready and not self.unsettled and self._source.generation():
            self._ready = True
            self._observer.became("ready")

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish what is in flight, commit, write the partitions' users, and release them.

        The commit comes first: if the shard is not completed, the next owner catches up to the commit.
        """
        if self.leaving:
            return
        self._rebalancing()
        self._delivery.drain()
        self._delivery.commit(self.held)
        if self._shards is not None:
            offsets, pending = self._learner.offsets, self._pending
            whole = [source for source in partitions if source in offsets and source not in pending]
            if whole:
                shard = self._learner.take(whole)
                self._shards.save(shard, self._source.generation(), self._learner.seq, whole)
        self._drop_assignment(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Release partitions that another worker owns already: write and commit nothing of them."""
        names = ", ".join(f"{topic}-{number}" for topic, number in partitions)
        logger.warning("the group assigned %s to another worker", names)
        self._rebalancing()
        self._drop_assignment(partitions)

    def settle(self) -> None:
        """Restore the users of newly assigned partitions from their newest shards and the topic.

        A rebalance may happen during the call. When stopping, the remaining partitions are dropped. All
        shards come first: a user may have events in several partitions, and a shard replaces the whole user.
        """
        while self._pending:
            groups = by_number(self._pending)
            self._put_shards(groups)
            starts = self._starts(self._pending)
            for bundle in bundles(groups, starts):
                if not self._catch_up(bundle, starts):
                    break
                for source in bundle:
                    del self._pending[source]
        self.unsettled = False
        self.joined()

    def _put_shards(self, groups: Sequence[Group]) -> None:
        """Restore the users of groups from the newest shards, except of those restored already."""
        unrestored = [group for group in groups if not all(each.restored for each in group.values())]
        new = {source: takeover for group in unrestored for source, takeover in group.items()}
        if not new:
            return
        shards = [] if self._shards is None else self._shards.load_newest(new.keys())
        for shard, some in shards:
            self._learner.put(shard, some)
        for takeover in new.values():
            takeover.restored = True
        found = sum(len(some) for _, some in shards)
        logger.info(
            "taking over %d partitions: users of %d from %d shards, then newer events from the topics",
            len(new), found, len(shards),
        )  # fmt: skip

    def _catch_up(self, group: Group, starts: Mapping[TopicPartition, int]) -> bool:
        """Update partitions' users from `starts` up to the targets, or drop them when stopping.

        Return False if a rebalance changed the group of partitions.
        """
        spans = [Span(*source, starts[source], takeover.target) for source, takeover in group.items()]
        for polled in in_time_order(self._source.read, spans):
            if not self._is_pending(group):
                return False
            if self.stopping:
                self._release(group)
                return True
            for part in self._decoder.parts(polled, CHUNK_OFFSETS):
                raw = self._decoder.decode(self._learner.seq, self._clock.now_ms(), part)
                self._learner.catch_up(raw)
            self._source.keep_alive()
        return self._is_pending(group)

    def _is_pending(self, group: Group) -> bool:
        return all(self._pending.get(source) is takeover for source, takeover in group.items())

    def _starts(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset to learn of each partition."""
        offsets = self._learner.offsets
        known = {source: offsets[source] for source in sources if source in offsets}
        unknown = sorted(set(sources) - known.keys())
        return known | (self._source.start_offsets(unknown) if unknown else {})

    def release_orphaned_users(self) -> None:
        """Drop users of partitions that this worker restored and the group assigned to another worker."""
        if self.held:
            self._release(self._learner.offsets.keys() & set(self._source.partitions()) - self.held)

    def _rebalancing(self) -> None:
        self._ready = False
        self._observer.became("rebalancing")

    def _drop_assignment(self, partitions: Sequence[TopicPartition]) -> None:
        self._delivery.forget(partitions)
        for source in partitions:
            self._pending.pop(source, None)
            self.held.discard(source)
        if self._release(partitions):
            self.unsettled = True
        self._observer.holds(len(self.held))

    def _release(self, sources: Iterable[TopicPartition]) -> bool:
        """Drop the users of partitions; return whether there were any."""
        known = sorted(self._learner.offsets.keys() & set(sources))
        if known:
            self._learner.release(known)
        return bool(known)


def by_number(pending: Group) -> list[Group]:
    """Group partitions by their number: the partitions of a number share their users."""
    ordered = sorted(pending.items(), key=lambda item: (item[0].partition, item[0].topic))
    return [dict(group) for _, group in groupby(ordered, key=lambda item: item[0].partition)]


def bundles(groups: Sequence[Group], starts: Mapping[TopicPartition, int]) -> Iterator[Group]:
    """Join groups with at most `CHUNK_OFFSETS` offsets to read: these are read in one call."""
    bundle: dict[TopicPartition, Takeover] = {}
    offsets = 0
    for group in groups:
        more = sum(max(0, takeover.target - starts[source]) for source, takeover in group.items())
        if bundle and offsets + more > CHUNK_OFFSETS:
            yield bundle
            bundle, offsets = {}, 0
        bundle |= group
        offsets += more
    if bundle:
        yield bundle


def _check_range(source: TopicPartition, position: int, start: int, end: int) -> None:
    if not start <= position <= end:
        raise OffsetsGone(
            f"{source.topic}-{source.partition}: offset {position} comes next, but the topic holds {start} "
            f"to {end}; expected an offset in this range. The topic was recreated or its retention is too "
            "short: choose another kafka.group_id and checkpoint.path to start empty, or restore the topic"
        )

"""The partitions assigned to this worker, and how their users are taken over and released.

The group calls `assigned`, `revoked` and `lost` from inside `poll` or `keep_alive`. These calls do only what
can't wait: they seek positions and write revoked users. Reading shards and topics takes long and is left to
`settle`, which the loop calls before the next batch.

With several topics a user's events are in the same partition number of each topic, and the user's state is
stored with the partition of the newest event. So the partitions of a number are taken over together.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.errors import OffsetsGone
from pipeline.events.batch import Span, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.outcome import Learner
from pipeline.persistence.shard_files import ShardFiles
from pipeline.service.catch_up import CHUNK_OFFSETS, in_time_order
from pipeline.service.delivery import Delivery
from pipeline.service.observe import Observer
from pipeline.service.ports import Clock, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: the same partition may come twice
class Takeover:
    """A partition to take over: from its newest shard, then from the topic up to `target`."""

    target: int


class Partitions:
    """The listener of the source: applies each assignment to the learner.

    `held` are the assigned partitions. `unsettled`: the state has changed, or is to change, outside of the
    journal, so `settle` and a checkpoint come before the next batch. `stopping`: a takeover may be abandoned.
    `leaving`: the last checkpoint is written and holds what is revoked from now on.
    """

    def __init__(
        self,
        learner: Learner,
        source: Source,
        delivery: Delivery,
        shards: ShardFiles | None,
        observer: Observer,
    ) -> None:
        self.held: set[TopicPartition] = set()
        self.unsettled = self.stopping = self.leaving = False
        self._learner = learner
        self._source = source
        self._delivery = delivery
        self._shards = shards
        self._observer = observer
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
        targets = {source: _furthest(commits.get(source), shards.get(source)) for source in partitions}
        behind = {source.partition for source in partitions if self._is_behind(source, targets[source])}
        stale: list[TopicPartition] = []
        for source in partitions:
            is_behind = source.partition in behind
            position = self._position(source, commits.get(source), targets[source], is_behind, stale)
            if position is None:
                position = starts[source]
            else:
                _check_range(source, position, starts[source], ends[source])
            self._source.seek(source, position)
        self._release(stale)
        self._observer.rebalanced()
        self._observer.holds(len(self.held))
        self.joined()

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
        logger.warning(
            "the group assigned %s to another worker", ", ".join(f"{t}-{p}" for t, p in partitions)
        )
        self._rebalancing()
        self._drop_assignment(partitions)

    def settle(self, decoder: Decoder, clock: Clock) -> None:
        """Restore the users of newly assigned partitions from their newest shards and the topic.

        A rebalance may happen during the call. When stopping, the remaining partitions are dropped. All
        shards come first: a user may have events in several partitions, and a shard replaces the whole user.
        """
        begun: dict[TopicPartition, Takeover] = {}
        while self._pending:
            groups = by_number(self._pending)
            new = [
                group
                for group in groups
                if any(begun.get(source) is not takeover for source, takeover in group.items())
            ]
            if new:
                self._put_shards({source for group in new for source in group})
                begun |= {source: takeover for group in new for source, takeover in group.items()}
            starts = self._starts(self._pending)
            for some in bundles(groups, starts):
                if not self._catch_up(some, starts, decoder, clock):
                    break
                for source in some:
                    del self._pending[source]
        self.unsettled = False
        self.joined()

    def _put_shards(self, sources: Collection[TopicPartition]) -> None:
        """Restore the users of partitions from the newest shards."""
        shards = [] if self._shards is None else self._shards.load_newest(sources)
        for shard, some in shards:
            self._learner.put(shard, some)
        found = sum(len(some) for _, some in shards)
        logger.info(
            "taking over %d partitions: users of %d from %d shards, then newer events from the topics",
            len(sources), found, len(shards),
        )  # fmt: skip

    def _catch_up(
        self,
        group: Mapping[TopicPartition, Takeover],
        starts: Mapping[TopicPartition, int],
        decoder: Decoder,
        clock: Clock,
    ) -> bool:
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
            for part in decoder.parts(polled, CHUNK_OFFSETS):
                self._learner.catch_up(decoder.decode(self._learner.seq, clock.now_ms(), part))
            self._source.keep_alive()
        return self._is_pending(group)

    def _is_pending(self, group: Mapping[TopicPartition, Takeover]) -> bool:
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

    def _is_behind(self, source: TopicPartition, target: int | None) -> bool:
        """Return whether the group has committed beyond the users' state of a partition."""
        return target is not None and self._learner.offsets.get(source, -1) < target

    def _position(
        self,
        source: TopicPartition,
        commit: int | None,
        target: int | None,
        behind: bool,
        stale: list[TopicPartition],
    ) -> int | None:
        """Plan where a partition's users come from; return its next offset, None: the earliest.

        `behind`: the users lack events of this partition, or of the same number of another topic. Partitions
        to drop first are added to `stale`.
        """
        local = self._learner.offsets.get(source)
        if local is not None and (target is None or local >= target):
            if local != commit:
                self._delivery.acknowledged[source] = local  # published before a restart, not committed
            if not behind:
                return local
            target = local
        elif local is not None:
            logger.warning(
                "%s-%d: learned here up to %d, committed by the group up to %s; its users are taken from the "
                "newest shard and the topic", source.topic, source.partition, local, target,
            )  # fmt: skip
        if local is not None:
            stale.append(source)
            self.unsettled = True
        if target is not None and self._shards is not None:
            self._pending[source] = Takeover(target)
            self.unsettled = True
        return target

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


def by_number(pending: Mapping[TopicPartition, Takeover]) -> list[dict[TopicPartition, Takeover]]:
    """Group partitions by their number: the partitions of a number share their users."""
    ordered = sorted(pending.items(), key=lambda item: (item[0].partition, item[0].topic))
    return [dict(group) for _, group in groupby(ordered, key=lambda item: item[0].partition)]


def bundles(
    groups: Sequence[Mapping[TopicPartition, Takeover]], starts: Mapping[TopicPartition, int]
) -> Iterator[dict[TopicPartition, Takeover]]:
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


def _furthest(*offsets: int | None) -> int | None:
    return max((offset for offset in offsets if offset is not None), default=None)


def _check_range(source: TopicPartition, position: int, start: int, end: int) -> None:
    if not start <= position <= end:
        raise OffsetsGone(
            f"{source.topic}-{source.partition}: offset {position} comes next, but the topic holds {start} "
            f"to {end}; expected an offset in this range. The topic was recreated or its retention is too "
            "short: choose another kafka.group_id and checkpoint.path to start empty, or restore the topic"
        )

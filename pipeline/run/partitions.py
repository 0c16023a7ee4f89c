"""Which partitions this worker owns, and how their users come and go.

The group calls `assigned`, `revoked` and `lost` from inside `poll` or `keep_alive`. There only what can't
wait is done: positions are sought, revoked users written. What takes long, reading shards and topics, is left
to `settle`, which the loop calls before it learns again.

With several topics a user's events lie in the same partition number of each, and the user's state goes with
the newest of them. So the partitions of a number are taken over together, or none of them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.errors import OffsetsGone
from pipeline.event.batch import Span, TopicPartition
from pipeline.event.decode import Decoder
from pipeline.outcome import Learner
from pipeline.run.catch_up import CHUNK, in_time_order
from pipeline.run.in_flight import InFlight
from pipeline.run.observe import Observer
from pipeline.run.ports import Clock, Source
from pipeline.run.shard_files import ShardFiles, Together

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: the same partition may come twice
class Takeover:
    """A partition whose users come from its newest shard, and from the topic up to `target`."""

    target: int


class Partitions:
    """The listener of the source, and the owner of what each assignment means for the learner.

    `held` are the partitions assigned here. `unsettled` says that the state has changed outside of the
    journal, or is to: then nothing may be learned before `settle` and a checkpoint.
    """

    def __init__(
        self,
        learner: Learner,
        source: Source,
        in_flight: InFlight,
        shards: ShardFiles | None,
        observer: Observer,
    ) -> None:
        self.held: set[TopicPartition] = set()
        self.unsettled = False
        self.leaving = False  # the last checkpoint is written: what is revoked now is in it
        self._learner = learner
        self._source = source
        self._in_flight = in_flight
        self._shards = shards
        self._observer = observer
        self._pending: dict[TopicPartition, Takeover] = {}
        self._ready = False

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Seek each partition to where its users' state ends, or will end after `settle`."""
        self.held.update(partitions)
        self._in_flight.forget(partitions)  # what an earlier life learned may be old news by now
        starts = self._source.start_offsets(partitions)
        ends = self._source.end_offsets(partitions)
        commits = self._source.committed(partitions)
        shards = {} if self._shards is None else self._shards.newest()
        targets = {
            source: _furthest(commits.get(source), shards[source].offset if source in shards else None)
            for source in partitions
        }
        behind = {source.partition for source in partitions if self._is_behind(source, targets[source])}
        for source in partitions:
            anew = source.partition in behind
            position = self._position(source, commits.get(source), targets[source], anew)
            if position is not None:
                _check_range(source, position, starts[source], ends[source])
            self._source.seek(source, position)
        self._observer.rebalanced()
        self._observer.holds(len(self.held))
        self.joined()

    def joined(self) -> None:
        """Be ready once in the group and settled, even without a partition.

        More workers than partitions is no fault: the idle one takes over at once when another ends.
        """
        if not self._ready and not self.unsettled and self._source.generation():
            self._ready = True
            self._observer.became("ready")

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish what is in flight, commit, write the partitions' users, and let them go.

        Committed first: shards that are left unfinished then say nothing that the commit doesn't.
        """
        if self.leaving:
            return
        self._rebalancing()
        self._in_flight.drain()
        self._in_flight.commit(self.held)
        if self._shards is not None:
            offsets, pending = self._learner.offsets, self._pending
            whole = [source for source in partitions if source in offsets and source not in pending]
            together = Together(whole, self.held - offsets.keys() - pending.keys())
            for source in whole:
                shard = self._learner.take(source)
                self._shards.save(shard, self._source.generation(), self._learner.seq, together)
        self._let_go(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Let partitions go that are another worker's already: nothing of them is written or committed."""
        logger.warning("the group gave %s to another worker", ", ".join(f"{t}-{p}" for t, p in partitions))
        self._rebalancing()
        self._let_go(partitions)

    def settle(self, decoder: Decoder, clock: Clock, stopping: Callable[[], bool]) -> None:
        """Bring the users of newly assigned partitions in, from their newest shards and the topic.

        Partitions may come and go meanwhile, and a stop leaves the rest undone: then those are not held at
        all. All shards come first: a user may have events in several partitions, and the shard that holds the
        user would replace what another partition's events have taught since.
        """
        begun: dict[TopicPartition, Takeover] = {}
        while self._pending:
            groups = by_number(self._pending)
            for group in groups:
                if any(begun.get(source) is not takeover for source, takeover in group.items()):
                    self._put_shards(group)
                    begun |= group
            if self._catch_up(groups[0], decoder, clock, stopping):
                for source in groups[0]:
                    del self._pending[source]
        self.unsettled = False
        self.joined()

    def _put_shards(self, group: Mapping[TopicPartition, Takeover]) -> None:
        """Bring in the users of partitions that have them in common, from the newest shards."""
        shards = {} if self._shards is None else self._shards.load_newest(group)
        for source, takeover in group.items():
            if source in shards:
                self._learner.put(shards[source])
            logger.info(
                "%s-%d: users from %s, then the topic from %d to %d", source.topic, source.partition,
                "a shard" if source in shards else "no shard", self._next(source), takeover.target,
            )  # fmt: skip

    def _catch_up(
        self,
        group: Mapping[TopicPartition, Takeover],
        decoder: Decoder,
        clock: Clock,
        stopping: Callable[[], bool],
    ) -> bool:
        """Let partitions' users learn up to the targets, or drop them for a stop.

        Return False when the group's coordinator has meant otherwise meanwhile: the rest is to be done anew.
        """
        spans = [Span(*source, self._next(source), takeover.target) for source, takeover in group.items()]
        for polled in in_time_order(self._source.read, spans):
            if stopping():
                for source in group:
                    self._release(source)
                return True
            for part in decoder.parts(polled, CHUNK):
                self._learner.catch_up(decoder.decode(self._learner.seq, clock.now_ms(), part))
            self._source.keep_alive()
            if any(self._pending.get(source) is not takeover for source, takeover in group.items()):
                return False
        return True

    def _next(self, source: TopicPartition) -> int:
        """Return the offset at which the users of a partition go on."""
        if source in self._learner.offsets:
            return self._learner.offsets[source]
        return self._source.start_offsets([source])[source]

    def release_strangers(self) -> None:
        """Drop users of partitions that an earlier life of this worker owned and the group gave away."""
        if self.held:
            for source in sorted(self._learner.offsets.keys() & set(self._source.partitions()) - self.held):
                self._release(source)

    def _is_behind(self, source: TopicPartition, target: int | None) -> bool:
        """Say whether the group has got further with a partition than its users here."""
        return target is not None and self._learner.offsets.get(source, -1) < target

    def _position(
        self, source: TopicPartition, commit: int | None, target: int | None, behind: bool
    ) -> int | None:
        """Decide where a partition's users come from; return where its events go on, None: earliest.

        `behind`: the users here lack events, of this partition or of another topic's of its number.
        """
        local = self._learner.offsets.get(source)
        if local is not None and (target is None or local >= target):
            if local != commit:
                self._in_flight.acknowledged[source] = local  # published by an earlier life, not committed
            if not behind:
                return local
            target = local
        elif local is not None:
            logger.warning(
                "%s-%d: learned here up to %d, by the group up to %s; its users come from the newest "
                "shard and the topic", source.topic, source.partition, local, target,
            )  # fmt: skip
        if local is not None:
            self._release(source)
            self.unsettled = True
        if target is not None and self._shards is not None:
            self._pending[source] = Takeover(target)
            self.unsettled = True
        return target

    def _rebalancing(self) -> None:
        self._ready = False
        self._observer.became("rebalancing")

    def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        self._in_flight.forget(partitions)
        for source in partitions:
            self._pending.pop(source, None)
            self.held.discard(source)
            if self._release(source):
                self.unsettled = True
        self._observer.holds(len(self.held))

    def _release(self, source: TopicPartition) -> bool:
        if source not in self._learner.offsets:
            return False
        self._learner.release(source)
        return True


def by_number(pending: Mapping[TopicPartition, Takeover]) -> list[dict[TopicPartition, Takeover]]:
    """Group partitions by their number: those of one number have the same users."""
    ordered = sorted(pending.items(), key=lambda item: (item[0].partition, item[0].topic))
    return [dict(group) for _, group in groupby(ordered, key=lambda item: item[0].partition)]


def _furthest(*offsets: int | None) -> int | None:
    return max((offset for offset in offsets if offset is not None), default=None)


def _check_range(source: TopicPartition, position: int, start: int, end: int) -> None:
    if not start <= position <= end:
        raise OffsetsGone(
            f"{source.topic}-{source.partition}: offset {position} comes next, but the topic holds {start} "
            f"to {end}; expected it among them. The topic was made anew or its retention is too short: "
            "choose another kafka.group_id and checkpoint.path to start anew, or restore the topic"
        )

"""Which partitions this worker owns, and how their users come and go.

The group calls `assigned`, `revoked` and `lost` from inside `poll` or `keep_alive`. There only what can't
wait is done: positions are sought, revoked users written. What takes long, reading shards and topics, is left
to `settle`, which the loop calls before it learns again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import OffsetsGone
from pipeline.event.batch import Span, TopicPartition
from pipeline.event.decode import Decoder
from pipeline.outcome import Learner
from pipeline.run.in_flight import InFlight
from pipeline.run.observe import Observer
from pipeline.run.ports import Clock, Source
from pipeline.run.shard_files import ShardFiles

logger = logging.getLogger(__name__)

CHUNK = 10_000  # offsets that a new owner reads at once to catch up


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
        for source in partitions:
            shard = shards.get(source)
            position = self._position(source, commits.get(source), None if shard is None else shard.offset)
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
        """Finish what is in flight, write the partitions' users, commit, and let them go."""
        if self.leaving:
            return
        self._rebalancing()
        self._in_flight.drain()
        for source in partitions:
            if self._shards is not None and source in self._learner.offsets and source not in self._pending:
                shard = self._learner.take(source)
                self._shards.save(shard, self._source.generation(), self._learner.seq)
        self._in_flight.commit(self.held)
        self._let_go(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Let partitions go that are another worker's already: nothing of them is written or committed."""
        logger.warning("the group gave %s to another worker", ", ".join(f"{t}-{p}" for t, p in partitions))
        self._rebalancing()
        self._let_go(partitions)

    def settle(self, decoder: Decoder, clock: Clock, stopping: Callable[[], bool]) -> None:
        """Bring the users of newly assigned partitions in, from their newest shards and the topic.

        Partitions may come and go meanwhile, and a stop leaves the rest undone: then those are not held at
        all. All shards come first: a user may have events in several partitions (of several topics, say), and
        the shard that holds the user would replace what another partition's events have taught since.
        """
        begun: dict[TopicPartition, tuple[Takeover, int]] = {}
        while self._pending:
            for source, takeover in sorted(self._pending.items()):
                if source not in begun or begun[source][0] is not takeover:
                    begun[source] = takeover, self._put_shard(source, takeover.target)
            source, takeover = min(self._pending.items(), key=lambda item: item[0])
            position = begun[source][1]
            while position < takeover.target and self._pending.get(source) is takeover:
                if stopping():
                    self._release(source)
                    break
                stop = min(position + CHUNK, takeover.target)
                polled = self._source.read((Span(*source, position, stop),), None)
                self._learner.catch_up(decoder.decode(self._learner.seq, clock.now_ms(), polled))
                position = stop
                self._source.keep_alive()
            if self._pending.get(source) is takeover:
                del self._pending[source]
        self.unsettled = False
        self.joined()

    def _put_shard(self, source: TopicPartition, target: int) -> int:
        """Bring the users of a partition's newest shard in; return the offset at which the topic goes on."""
        shard = None if self._shards is None else self._shards.load_newest(source)
        if shard is not None:
            self._learner.put(shard)
        position = self._source.start_offsets([source])[source] if shard is None else shard.offset
        logger.info(
            "%s-%d: users from %s, then the topic from %d to %d", source.topic, source.partition,
            "no shard" if shard is None else "a shard", position, target,
        )  # fmt: skip
        return position

    def release_strangers(self) -> None:
        """Drop users of partitions that an earlier life of this worker owned and the group gave away."""
        if self.held:
            for source in sorted(self._learner.offsets.keys() & set(self._source.partitions()) - self.held):
                self._release(source)

    def _position(self, source: TopicPartition, commit: int | None, shard: int | None) -> int | None:
        """Decide where a partition's users come from; return where its events go on, None: earliest."""
        local = self._learner.offsets.get(source)
        target = max((offset for offset in (commit, shard) if offset is not None), default=None)
        if local is not None and (target is None or local >= target):
            if local != commit:
                self._in_flight.acknowledged[source] = local  # published by an earlier life, not committed
            return local
        if local is not None:
            logger.warning(
                "%s-%d: learned here up to %d, by the group up to %s; its users come from the newest "
                "shard and the topic", source.topic, source.partition, local, target,
            )  # fmt: skip
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


def _check_range(source: TopicPartition, position: int, start: int, end: int) -> None:
    if not start <= position <= end:
        raise OffsetsGone(
            f"{source.topic}-{source.partition}: offset {position} comes next, but the topic holds {start} "
            f"to {end}; expected it among them. The topic was made anew or its retention is too short: "
            "choose another kafka.group_id and checkpoint.path to start anew, or restore the topic"
        )

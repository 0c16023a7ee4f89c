"""Which partitions this worker owns, and how their users come and go.

The group calls `assigned`, `revoked` and `lost` from inside `poll` or `keep_alive`. There only what can't
wait is done: positions are sought, revoked users written. What takes long, reading shards and topics, is left
to `settle`, which the loop calls before it learns again.

With several topics a user's events lie in the same partition number of each, and the user's state goes with
the newest of them. So the partitions of a number are taken over together, or none of them.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.errors import OffsetsGone
from pipeline.events.batch import Span, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.outcome import Learner
from pipeline.persistence.shard_files import ShardFiles
from pipeline.service.catch_up import CHUNK, in_time_order
from pipeline.service.in_flight import InFlight
from pipeline.service.observe import Observer
from pipeline.service.ports import Clock, Source

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
        shards = {} if self._shards is None else self._shards.newest(partitions)
        targets = {source: _furthest(commits.get(source), shards.get(source)) for source in partitions}
        behind = {source.partition for source in partitions if self._is_behind(source, targets[source])}
        stale: list[TopicPartition] = []
        for source in partitions:
            anew = source.partition in behind
            position = self._position(source, commits.get(source), targets[source], anew, stale)
            if position is None:
                position = starts[source]  # the earliest, at a partition's first start
            else:
                _check_range(source, position, starts[source], ends[source])
            self._source.seek(source, position)
        self._release(stale)
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
            if whole:
                shard, generation = self._learner.take(whole), self._source.generation()
                empty = self.held - offsets.keys() - pending.keys()
                self._shards.save(shard, generation, self._learner.seq, whole, empty)
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
                if not self._catch_up(some, starts, decoder, clock, stopping):
                    break
                for source in some:
                    del self._pending[source]
        self.unsettled = False
        self.joined()

    def _put_shards(self, sources: Collection[TopicPartition]) -> None:
        """Bring in the users of partitions from the newest shards."""
        shards = [] if self._shards is None else self._shards.load_newest(sources)
        for shard, some in shards:
            self._learner.put(shard, some)
        found = sum(len(some) for _, some in shards)
        logger.info(
            "taking %d partitions over: users of %d from %d shards, then what the topics hold beyond",
            len(sources), found, len(shards),
        )  # fmt: skip

    def _catch_up(
        self,
        group: Mapping[TopicPartition, Takeover],
        starts: Mapping[TopicPartition, int],
        decoder: Decoder,
        clock: Clock,
        stopping: Callable[[], bool],
    ) -> bool:
        """Let partitions' users learn from `starts` up to the targets, or drop them for a stop.

        Return False when a rebalance happened during a call: the rest is to be looked at again.
        """
        spans = [Span(*source, starts[source], takeover.target) for source, takeover in group.items()]
        for polled in in_time_order(self._source.read, spans):
            if not self._is_pending(group):
                return False
            if stopping():
                self._release(group)
                return True
            for part in decoder.parts(polled, CHUNK):
                self._learner.catch_up(decoder.decode(self._learner.seq, clock.now_ms(), part))
            self._source.keep_alive()
        return self._is_pending(group)

    def _is_pending(self, group: Mapping[TopicPartition, Takeover]) -> bool:
        return all(self._pending.get(source) is takeover for source, takeover in group.items())

    def _starts(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset at which the users of each partition go on."""
        offsets = self._learner.offsets
        known = {source: offsets[source] for source in sources if source in offsets}
        unknown = sorted(set(sources) - known.keys())
        return known | (self._source.start_offsets(unknown) if unknown else {})

    def release_strangers(self) -> None:
        """Drop users of partitions that an earlier life of this worker owned and the group gave away."""
        if self.held:
            self._release(self._learner.offsets.keys() & set(self._source.partitions()) - self.held)

    def _is_behind(self, source: TopicPartition, target: int | None) -> bool:
        """Say whether the group has got further with a partition than its users here."""
        return target is not None and self._learner.offsets.get(source, -1) < target

    def _position(
        self,
        source: TopicPartition,
        commit: int | None,
        target: int | None,
        behind: bool,
        stale: list[TopicPartition],
    ) -> int | None:
        """Decide where a partition's users come from; return where its events go on, None: earliest.

        `behind`: the users here lack events, of this partition or of another topic's of its number. Those
        that are not to stay are noted in `stale`.
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
            stale.append(source)
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
        if self._release(partitions):
            self.unsettled = True
        self._observer.holds(len(self.held))

    def _release(self, sources: Iterable[TopicPartition]) -> bool:
        """Drop the users of partitions, and return whether there were any."""
        known = sorted(self._learner.offsets.keys() & set(sources))
        if known:
            self._learner.release(known)
        return bool(known)


def by_number(pending: Mapping[TopicPartition, Takeover]) -> list[dict[TopicPartition, Takeover]]:
    """Group partitions by their number: those of one number have the same users."""
    ordered = sorted(pending.items(), key=lambda item: (item[0].partition, item[0].topic))
    return [dict(group) for _, group in groupby(ordered, key=lambda item: item[0].partition)]


def bundles(
    groups: Sequence[Mapping[TopicPartition, Takeover]], starts: Mapping[TopicPartition, int]
) -> Iterator[dict[TopicPartition, Takeover]]:
    """Put groups together while they have at most `CHUNK` offsets to read: these are read at once."""
    bundle: dict[TopicPartition, Takeover] = {}
    offsets = 0
    for group in groups:
        more = sum(max(0, takeover.target - starts[source]) for source, takeover in group.items())
        if bundle and offsets + more > CHUNK:
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
            f"to {end}; expected it among them. The topic was made anew or its retention is too short: "
            "choose another kafka.group_id and checkpoint.path to start anew, or restore the topic"
        )

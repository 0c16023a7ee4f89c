"""The interfaces of the loop's adapters; consumers/ and producers/ implement sources and sinks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from pipeline.events.batch import CatalogUpdate, IntArray, Polled, RawBatch, Reject, Span, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.outcome import Learner, Outcome

NOTHING: Mapping[TopicPartition, int] = MappingProxyType({})  # no offsets
State = Literal["starting", "resuming", "rebalancing", "ready", "stopping"]  # of the worker


class Clock(Protocol):
    """Wall-clock time for records, monotonic time for durations."""

    def now_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...


class Listener(Protocol):
    """Called by the source, inside `poll`, `keep_alive` or `close`, when the assignment changes.

    `assigned` must `seek` each partition. Partitions that are `revoked` are still owned: the listener can
    finish and commit. Those that are `lost` are another worker's: nothing may be committed.
    """

    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


class Source(Protocol):
    """A consumer of the events topics; merges partitions by record timestamp, then topic and partition."""

    def start(self, listener: Listener) -> None:
        """Join the group; from now on `poll` may call the listener."""

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records; empty if none arrives within `max_wait_s`."""

    def put_back(self, polled: Polled) -> None:
        """Return the last records of the last poll: the next poll starts with them."""

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read exactly these records outside of the group, in this order or, without, span by span.

        Raise `OffsetsGone` when records are missing.
        """

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Continue at `offset`; None: at the earliest record."""

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the group's committed offsets, of partitions that have one."""

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets for the group."""

    def keep_alive(self) -> None:
        """Stay in the group during a long step: poll while paused, and keep the records for later."""

    def lag(self) -> dict[TopicPartition, int]:
        """Return the records between the position and the end of each assigned partition, as last seen."""

    def partitions(self) -> list[TopicPartition]:
        """Return every partition of the subscribed topics, assigned here or not."""

    def topic_ids(self) -> dict[str, str]:
        """Return the id of each subscribed topic, if the broker has ids; a recreated topic has another."""

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset of the oldest record of each partition."""

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset after the last record of each partition."""

    def generation(self) -> int:
        """Return the group's generation, 0 outside of a group; of two shards the higher one's is newer."""

    def close(self) -> None:
        """Leave the group."""


class ItemSource(Protocol):
    """A reader of all partitions of the items topic, outside of any group."""

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Continue at these offsets, a partition without one at its earliest record."""

    def poll(self) -> tuple[CatalogUpdate, bool]:
        """Return new records without waiting, and whether the topic is read to its end."""

    def close(self) -> None:
        """Close the connection."""


class Publication(NamedTuple):
    """What is published of one batch; the lists of `removed_users` are removed (tombstones)."""

    rankings: Sequence[Ranking] = ()
    rejects: Sequence[Reject] = ()
    alarms: Sequence[DriftAlarm] = ()
    removed_users: Sequence[str] = ()


class Receipt(Protocol):
    """The acknowledgement of a batch in flight.

    With a sink that commits offsets, its methods may raise `CommitRefused`: publish the batch again.
    """

    def done(self) -> bool:
        """Return whether everything is acknowledged; raise `PublishFailed` when something failed."""

    def wait(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged; raise `PublishFailed` otherwise."""

    def acknowledged_ms(self) -> int | None:
        """Return the wall-clock time of the last acknowledgement of a batch that is `done`, if known."""


class Sink(Protocol):
    """A producer of rankings, dead letters and drift alarms."""

    @property
    def commits_offsets(self) -> bool:
        """Whether the sink commits a batch's offsets with the batch, in one transaction."""

    def publish(self, publication: Publication, offsets: Mapping[TopicPartition, int] = NOTHING) -> Receipt:
        """Send without waiting; `offsets` are the next offset of each partition after the batch."""

    def close(self) -> None:
        """Flush and close."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A batch that was delivered: how many rankings, which dead letters, when its events were appended."""

    rankings: int
    dead_letters: Mapping[str, int]  # by reason
    append_ms_B: IntArray  # 0 where not plausible


class Observer:
    """What the loop reports. Methods must be quick and must not fail; here they do nothing."""

    def became(self, state: State) -> None: ...
    def ticked(self) -> None: ...  # the loop has made one turn
    def busy(self, reason: str, limit_s: float) -> None: ...  # the next tick may take this long
    def begin(self) -> None: ...  # a batch has arrived: the time of its first stage starts now
    def mark(self, stage: str) -> None: ...  # a stage has ended, and the next one begins
    def learned(self, raw: RawBatch, outcome: Outcome, learner: Learner) -> None: ...  # also a replayed one
    def delivered(self, batch: Delivered, at_ms: int) -> None: ...  # all records are acknowledged
    def undelivered(self, records: int) -> None: ...  # the broker did not acknowledge a batch
    def committed(self, at_ms: int, lag: Mapping[TopicPartition, int]) -> None: ...
    def rebalanced(self) -> None: ...
    def holds(self, partitions: int) -> None: ...  # the worker owns this many partitions now
    def checkpointed(self, seconds: float, at_ms: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Adapters:
    """The outside world of the loop."""

    source: Source
    decoder: Decoder
    sink: Sink
    clock: Clock
    observer: Observer
    items: ItemSource | None = None

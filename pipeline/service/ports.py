"""What the loop needs from the world: a source, a sink and a clock. The real edges are in consumers/ and
producers/."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from pipeline.events.batch import CatalogUpdate, IntArray, Polled, Reject, Span, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking

NOTHING: Mapping[TopicPartition, int] = MappingProxyType({})  # no offsets


class Clock(Protocol):
    """Wall time for records, monotonic time for durations."""

    def now_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...


class Listener(Protocol):
    """Told by the source, inside `poll` or `close`, when partitions come and go.

    `revoked`: the partitions are still ours: finish, write shards, commit. `lost`: they are not: drop, never
    commit. `assigned`: must `seek` each partition.
    """

    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


class Source(Protocol):
    """Where events come from, partitions merged by record timestamp (equal: lower topic and
    partition first)."""

    def start(self, listener: Listener) -> None:
        """Join; from now on `poll` may call the listener."""

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records; empty when none came within `max_wait_s`."""

    def put_back(self, polled: Polled) -> None:
        """Take the last records of the last poll back: the next one returns them first."""

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read exactly these records again, in this order, in no group.

        Without an order (another worker has it): every record of the spans, one span after the other. Raise
        `OffsetsGone` when they are gone.
        """

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Go on from `offset`; None: from the earliest record."""

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed offsets; partitions that have none are left out."""

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit explicit offsets for the group."""

    def keep_alive(self) -> None:
        """Stay in the group during a long step: poll with everything paused; records are kept for later."""

    def lag(self) -> dict[TopicPartition, int]:
        """Records between each assigned partition's position and its end, as last seen."""

    def partitions(self) -> list[TopicPartition]:
        """Every partition of the subscribed topics, assigned here or not."""

    def topic_ids(self) -> dict[str, str]:
        """What tells each subscribed topic from another of its name; topics that have no id are left out."""

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the oldest record that each partition still holds."""

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition."""

    def generation(self) -> int:
        """The group's generation, 0 outside a group; the higher of two shards of a partition is the newer."""

    def close(self) -> None:
        """Leave the group."""


class ItemSource(Protocol):
    """Where the items topic is read from: all of its partitions, in no group."""

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; a partition that has none starts at its earliest record."""

    def poll(self) -> tuple[CatalogUpdate, bool]:
        """Return what has come, at once, and whether the topic is read to its end."""

    def close(self) -> None:
        """Close the connection."""


class Receipt(Protocol):
    """A batch on its way out.

    A sink that commits offsets may raise `CommitRefused`: nothing of the batch is out, publish it again.
    """

    def done(self) -> bool:
        """Say whether everything is acknowledged; raise `PublishFailed` when something can't be."""

    def wait(self, timeout_s: float) -> None:
        """Return when everything is acknowledged; raise `PublishFailed` otherwise."""

    def acknowledged_ms(self) -> int | None:
        """Wall-clock time of the last acknowledgement of a batch that is `done`; None: not known."""


class Sink(Protocol):
    """Where rankings, dead letters and drift alarms go."""

    @property
    def commits_offsets(self) -> bool:
        """Whether a batch and its offsets go out together or not at all: then nobody else commits them."""

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int],
    ) -> Receipt:
        """Send without waiting. `gone` are users whose list is to be removed (tombstones); `offsets` are
        those after the batch's last record of each partition."""

    def close(self) -> None:
        """Flush and close."""

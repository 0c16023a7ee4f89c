"""The values between the stages: records as they were polled, and the columns that they become.

Axes: B = events of a batch, in learning order. Suffixes name them (`user_B`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


class TopicPartition(NamedTuple):
    """One partition of a topic. Equal by value to the type of that name in Kafka clients."""

    topic: str
    partition: int


class Span(NamedTuple):
    """The offsets `start <= offset < stop` of one partition. Offsets may have gaps: they count no records."""

    topic: str
    partition: int
    start: int
    stop: int

    @property
    def source(self) -> TopicPartition:
        """The partition that the span lies in."""
        return TopicPartition(self.topic, self.partition)


class Record(Protocol):
    """One record of a topic; `kafka.consumer.fetcher.ConsumerRecord` fits."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...  # milliseconds; when the record was appended or sent
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Polled:
    """Records of one batch in learning order, and their spans.

    `order_R[i]` is the index in `spans` of the partition of `records[i]`.
    """

    spans: tuple[Span, ...]
    records: list[Record]
    order_R: npt.NDArray[np.int32]

    def __bool__(self) -> bool:
        return bool(self.spans)

    def split(self, count: int) -> tuple["Polled", "Polled"]:
        """Return the first `count` records, and the others; spans with records of both are cut."""
        cuts = [span.start for span in self.spans]
        for index, record in zip(self.order_R[:count].tolist(), self.records, strict=False):
            cuts[index] = record.offset + 1
        later = set(self.order_R[count:].tolist())
        cuts = [at if i in later else self.spans[i].stop for i, at in enumerate(cuts)]
        first = [span._replace(stop=at) for span, at in zip(self.spans, cuts, strict=True)]
        rest = [span._replace(start=at) for span, at in zip(self.spans, cuts, strict=True)]
        return (
            _polled(first, self.records[:count], self.order_R[:count]),
            _polled(rest, self.records[count:], self.order_R[count:]),
        )


def _polled(spans: list[Span], records: list[Record], order_R: npt.NDArray[np.int32]) -> Polled:
    """Return records with their spans, the empty ones left out."""
    held = [span.start < span.stop for span in spans]
    kept = tuple(span for span, has_records in zip(spans, held, strict=True) if has_records)
    return Polled(kept, records, (np.cumsum(held) - 1)[order_R].astype(np.int32))


NOTHING_POLLED = Polled((), [], np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that cannot be learned; it goes to the dead letters byte for byte, with its reason.

    `reason` is a short fixed word (a metric label), `detail` the sentence for a human.
    """

    record: Record
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Events:
    """Decoded events as columns, in learning order; ids are text.

    `source_B[b]` is the index in the batch's `spans`. `append_ms_B` is the record's timestamp, 0 where it
    isn't plausible. `event_ids` holds None, `value_B` NaN where the event had none.
    """

    user_ids: list[str]
    item_ids: list[str]
    types: list[str]
    event_ids: list[str | None]
    time_ms_B: npt.NDArray[np.int64]
    append_ms_B: npt.NDArray[np.int64]
    value_B: npt.NDArray[np.float64]
    source_B: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user_ids)


class BadItem(msgspec.Struct, frozen=True, gc=False):
    """A record of the items topic that cannot be read, and why. It is a `Record` too."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    reason: str
    detail: str


class ItemChange(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A change of an item's availability."""

    item_id: str
    available: bool


class CatalogUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """The records of the items topic of one poll, kept in the journal since compaction may remove them.

    `offsets` are the next ones: topic, partition, offset.
    """

    changes: tuple[ItemChange, ...] = ()
    bad: tuple[BadItem, ...] = ()
    offsets: tuple[tuple[str, int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.bad)


NO_UPDATE = CatalogUpdate()


@dataclass(frozen=True, slots=True)
class RawBatch:
    """One decoded batch: good events as columns beside the bad records.

    `seq` numbers the batches of one worker from 0; `now_ms` is the time at which the batch was closed, the
    only clock of learning.
    """

    seq: int
    now_ms: int
    spans: tuple[Span, ...]
    events: Events
    rejects: list[Reject]
    catalog: CatalogUpdate = NO_UPDATE  # from the items topic, since the last batch
    ignored: Mapping[str, int] = field(default_factory=dict)  # records, or elements, by event type


class Batch(NamedTuple):
    """One batch in rows, the input of every stage after admission. All columns [B], in learning order.

    `item_B` is -1 where the item isn't admitted yet. `previous_B[b]` is the place of the same user's event
    before b in this batch, -1 for none. `moment_ms_B` is the event's time, at most `now_ms`.
    """

    seq: int
    now_ms: int
    first_event: int  # events learned before this batch
    user_B: npt.NDArray[np.int32]
    item_B: npt.NDArray[np.int32]
    known_B: npt.NDArray[np.bool_]  # the item had a row when the batch began
    role_B: npt.NDArray[np.int8]  # see pipeline.settings
    value_B: npt.NDArray[np.float64]  # NaN where the event had none
    weight_B: npt.NDArray[np.float32]
    type_B: npt.NDArray[np.uint16]  # a stable hash of the type's name
    consumes_B: npt.NDArray[np.bool_]  # the event excludes its item from this user's lists
    time_ms_B: npt.NDArray[np.int64]
    moment_ms_B: npt.NDArray[np.int64]
    append_ms_B: npt.NDArray[np.int64]
    source_B: npt.NDArray[np.int32]
    previous_B: npt.NDArray[np.int32]
    types: dict[str, int]  # events by type
    duplicates: int
    moved: int  # events from another partition of their topic than the user's event before
    new_users: npt.NDArray[np.int32]  # rows admitted with this batch
    new_items: npt.NDArray[np.int32]

"""What crosses the stages: records as they were polled, and the columns that they become.

Axes: B = events of a batch, in learning order. Suffixes name them (`user_B`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


class TopicPartition(NamedTuple):
    """One partition of a topic. Equal by value to what Kafka clients call the same."""

    topic: str
    partition: int


class Span(NamedTuple):
    """The offsets `start <= offset < stop` of one partition. Offsets may have gaps: never count with them."""

    topic: str
    partition: int
    start: int
    stop: int

    @property
    def source(self) -> TopicPartition:
        """The partition that the span lies in."""
        return TopicPartition(self.topic, self.partition)


class Record(Protocol):
    """One record of a topic, as the Kafka client hands it over (`kafka.consumer.fetcher.ConsumerRecord`
    fits).
    """

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
    """Records of one batch in learning order, and where they came from.

    `order_R[i]` is the index in `spans` of the partition that gave `records[i]`: with the spans it makes the
    batch repeatable, record by record, from the topic alone.
    """

    spans: tuple[Span, ...]
    records: list[Record]
    order_R: npt.NDArray[np.int32]

    def __bool__(self) -> bool:
        return bool(self.spans)

    def split(self, count: int) -> tuple["Polled", "Polled"]:
        """Return the first `count` records, and the others; spans that have records of both are cut."""
        borders = [span.start for span in self.spans]
        for index, record in zip(self.order_R[:count].tolist(), self.records, strict=False):
            borders[index] = record.offset + 1
        later = set(self.order_R[count:].tolist())
        borders = [at if i in later else self.spans[i].stop for i, at in enumerate(borders)]
        first = [span._replace(stop=at) for span, at in zip(self.spans, borders, strict=True)]
        rest = [span._replace(start=at) for span, at in zip(self.spans, borders, strict=True)]
        return (
            _polled(first, self.records[:count], self.order_R[:count]),
            _polled(rest, self.records[count:], self.order_R[count:]),
        )


def _polled(spans: list[Span], records: list[Record], order_R: npt.NDArray[np.int32]) -> Polled:
    """Return records without those of the spans that are empty."""
    held = [span.start < span.stop for span in spans]
    place = np.cumsum(held) - 1
    return Polled(
        tuple(span for span in spans if span.start < span.stop), records, place[order_R].astype(np.int32)
    )


NOTHING_POLLED = Polled((), [], np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that can't be learned: it goes to the dead letters byte for byte, with its reason.

    `reason` is a short fixed word (a metric label), `detail` the sentence for a human.
    """

    record: Record
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Events:
    """Decoded events as columns, in learning order; ids are still text.

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
    """A record of the items topic that can't be read, as it came, and why. A record like any other."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    reason: str
    detail: str


class ItemChange(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An item may be shown from now on, or may not."""

    item_id: str
    available: bool


class CatalogUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was read from the items topic at one moment, as the journal keeps it.

    It is kept whole, since compaction may take a record away before it is to be read again. `offsets` are the
    next ones: topic, partition, offset.
    """

    changes: tuple[ItemChange, ...] = ()
    bad: tuple[BadItem, ...] = ()
    offsets: tuple[tuple[str, int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.bad)


NO_UPDATE = CatalogUpdate()


@dataclass(frozen=True, slots=True)
class RawBatch:
    """One batch before the state has seen it: good events as columns beside the bad records.

    `seq` numbers the batches of one worker from 0; `now_ms` is wall-clock time when the batch was closed, the
    only clock that learning may look at, so that the journal can repeat it.
    """

    seq: int
    now_ms: int
    spans: tuple[Span, ...]
    events: Events
    rejects: list[Reject]
    catalog: CatalogUpdate = NO_UPDATE  # what the items topic said since the last batch
    ignored: Mapping[str, int] = field(default_factory=dict)  # records, or elements, by event type
    # of each event the place of its record among those polled; None: one event for each record that was
    # neither rejected nor ignored
    record_B: npt.NDArray[np.int32] | None = None

    def records_of(self, records: Sequence[Record]) -> list[Record]:
        """Return the record of each event, out of those that were decoded."""
        if self.record_B is not None:
            return [records[place] for place in self.record_B.tolist()]
        bad = {id(reject.record) for reject in self.rejects}
        return [record for record in records if record.value is not None and id(record) not in bad]


class Batch(NamedTuple):
    """One batch in rows: what every stage after the state's admission works on. All columns [B], in learning
    order.

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
    consumes_B: npt.NDArray[np.bool_]  # the event bars its item from this user's lists
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

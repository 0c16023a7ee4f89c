"""Read known records of a topic again, in no group: what the journal names, after a crash or a takeover."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError, RetriableError

from consumers.kafka.client import Patience, translated
from consumers.kafka.member import EVERYTHING
from pipeline.errors import OffsetsGone
from pipeline.events.batch import Record, Span, TopicPartition

WAIT_S = 0.5  # between looks at whether the broker still answers


class Reader:
    """Read spans, exactly. Spans that follow each other are read ahead, so a replay costs one pass.

    `make` makes a consumer without a group that has no reset policy; it is made at the first use.
    """

    def __init__(self, make: Callable[[], KafkaConsumer], patience: Patience) -> None:
        self._make = make
        self._patience = patience
        self._consumer: KafkaConsumer | None = None
        self._lanes: dict[TopicPartition, _Lane] = {}

    def read(self, spans: Sequence[Span]) -> list[list[Record]]:
        """Return the records of each span, in the order of their offsets.

        Raise `OffsetsGone` when the topic no longer reaches so far back, or ends before; `BrokerLost`.
        """
        consumer = self._open([span.source for span in spans])
        for span in spans:
            self._lanes[span.source].stop = span.stop
        self._check_ends(consumer, spans)
        began = time.monotonic()
        while open_lanes := self._turn(consumer, spans):
            if self._fetch(consumer):
                began = time.monotonic()
                self._patience.answered()
            elif time.monotonic() - began > WAIT_S:
                began = time.monotonic()
                self._ends(consumer, open_lanes)  # raises BrokerLost when nobody answers
        return [self._lanes[span.source].take(span.stop) for span in spans]

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            self._consumer = None

    def _open(self, sources: Sequence[TopicPartition]) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = self._make()
        new = [source for source in sources if source not in self._lanes]
        if new:
            for source in new:
                self._lanes[source] = _Lane()
            self._consumer.assign([KafkaPartition(*source) for source in self._lanes])
            for source in new:  # a position before the first poll: there is no policy to find one
                self._consumer.seek(KafkaPartition(*source), 0)
                self._consumer.pause(KafkaPartition(*source))
        return self._consumer

    def _ends(self, consumer: KafkaConsumer, sources: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        theirs = [KafkaPartition(*source) for source in sources]
        ends: dict[TopicPartition, int] = self._patience.insist(
            lambda timeout_ms: consumer.end_offsets(theirs, timeout_ms=timeout_ms),
            "asking for end offsets",
        )
        return ends

    def _check_ends(self, consumer: KafkaConsumer, spans: Sequence[Span]) -> None:
        beyond = [span for span in spans if span.stop > self._lanes[span.source].end]
        ends = self._ends(consumer, [span.source for span in beyond]) if beyond else {}
        for span in beyond:
            end = self._lanes[span.source].end = ends[span.source]
            if span.stop > end:
                raise gone(span.source, f"offsets {span.start} to {span.stop}", f"the topic ends at {end}")

    def _turn(self, consumer: KafkaConsumer, spans: Sequence[Span]) -> list[TopicPartition]:
        """Fetch those spans that are not complete, and no other partition; return them."""
        reading = []
        for span in spans:
            lane, theirs = self._lanes[span.source], KafkaPartition(*span.source)
            if lane.position != span.start:
                consumer.seek(theirs, span.start)
                lane.restart(span.start)
            if not lane.complete(span.stop):
                lane.fetched = max(lane.fetched, consumer.position(theirs, timeout_ms=0) or 0)
            if not lane.complete(span.stop):
                reading.append(span.source)
        wanted = {KafkaPartition(*source) for source in reading}
        paused = consumer.paused()
        consumer.pause(*(consumer.assignment() - wanted - paused))
        consumer.resume(*(wanted & paused))
        return reading

    def _fetch(self, consumer: KafkaConsumer) -> bool:
        try:
            fetched = consumer.poll(timeout_ms=WAIT_S * 1000, max_records=EVERYTHING)
        except RetriableError:
            return False
        except KafkaError as error:
            if lost := missed(error):
                raise gone(*lost, "the topic no longer holds them") from error
            raise translated(error, "reading records again") from error
        for source, records in fetched.items():
            self._lanes[source].add(records)
        return bool(fetched)


class _Lane:
    """One partition: records read ahead; `position` is where a span must start to need no seek."""

    def __init__(self) -> None:
        self.buffer: deque[Record] = deque()
        self.position = -1
        self.fetched = 0
        self.stop = 0
        self.end = -1  # of the topic, as last seen

    def restart(self, position: int) -> None:
        self.buffer.clear()
        self.position = self.fetched = position

    def add(self, records: Sequence[Record]) -> None:
        self.buffer.extend(records)
        self.fetched = records[-1].offset + 1

    def complete(self, stop: int) -> bool:
        return self.fetched >= stop

    def take(self, stop: int) -> list[Record]:
        taken = []
        while self.buffer and self.buffer[0].offset < stop:
            taken.append(self.buffer.popleft())
        self.position = stop
        return taken


def gone(source: TopicPartition, wanted: str, found: str) -> OffsetsGone:
    """Make the error for records that can't be read: what, what was found, what to do."""
    return OffsetsGone(
        f"{source.topic}-{source.partition}: wanted {wanted}, but {found}. The topic was made anew or has "
        "dropped records that the checkpoint needs: let it keep them longer than the oldest checkpoint, or "
        "start from an empty checkpoint folder"
    )


def missed(error: KafkaError) -> tuple[TopicPartition, str] | None:
    """Say what can't be read where, when the client says that records are gone; None for other errors."""
    if isinstance(error, OffsetOutOfRangeError):
        (source, offset), *_ = error.args[0].items()
        return TopicPartition(*source), f"offset {offset}"
    if isinstance(error, LogTruncationError):
        return TopicPartition(*next(iter(error.divergent_offsets))), "records that were read before"
    return None

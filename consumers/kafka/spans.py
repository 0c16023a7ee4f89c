"""Read known records of a topic again, in no group: what the journal names, after a crash or a takeover."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kafka import TopicPartition as KafkaPartition

from consumers.kafka.reader import Offsets, PartitionReader
from pipeline.events.batch import Record, Span, TopicPartition

WAIT_S = 0.5  # for one fetch


@dataclass(slots=True)
class _Lane:
    """One partition: records read ahead; a span that starts at `position` needs no seek."""

    buffer: deque[Record] = field(default_factory=deque)
    position: int = -1
    fetched: int = 0  # offset that is fetched next

    def take(self, stop: int) -> list[Record]:
        taken = []
        while self.buffer and self.buffer[0].offset < stop:
            taken.append(self.buffer.popleft())
        self.position = stop
        return taken


class SpanReader:
    """Read spans exactly. Spans that follow each other are read ahead, so that a replay costs one pass.

    `make` opens a reader in no group; it is called at the first use.
    """

    def __init__(self, make: Callable[[], PartitionReader]) -> None:
        self._make = make
        self._reader: PartitionReader | None = None
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._ends: Offsets = {}  # of the topics, as last seen

    def read(self, spans: Sequence[Span]) -> list[list[Record]]:
        """Return the records of each span, in the order of their offsets.

        Raise `OffsetsGone` when the topic starts later or ends before; `BrokerLost`.
        """
        reader = self._open([span.source for span in spans])
        self._check_ends(reader, spans)
        while self._select(reader, spans):
            for source, records in reader.poll(WAIT_S).items():
                lane = self._lanes[source]
                lane.buffer.extend(records)
                lane.fetched = records[-1].offset + 1
        return [self._lanes[span.source].take(span.stop) for span in spans]

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self, sources: Sequence[TopicPartition]) -> PartitionReader:
        if self._reader is None:
            self._reader = self._make()
        if new := [source for source in sources if source not in self._lanes]:
            self._lanes |= {source: _Lane() for source in new}
            self._reader.assign(self._lanes)
            for source in new:  # a position before the first poll: there is no policy to find one
                self._reader.seek(source, 0)
                self._reader.consumer.pause(KafkaPartition(*source))
        return self._reader

    def _check_ends(self, reader: PartitionReader, spans: Sequence[Span]) -> None:
        beyond = [span for span in spans if span.stop > self._ends.get(span.source, -1)]
        self._ends |= reader.ends([span.source for span in beyond])
        for span in beyond:
            if span.stop > self._ends[span.source]:
                reader.raise_gone(span.source, f"offsets {span.start} to {span.stop}")

    def _select(self, reader: PartitionReader, spans: Sequence[Span]) -> bool:
        """Let the client fetch the partitions of incomplete spans alone; return whether there are any."""
        wanted = set()
        for span in spans:
            lane = self._lanes[span.source]
            if lane.position != span.start:
                reader.seek(span.source, span.start)
                lane.buffer.clear()
                lane.position = lane.fetched = span.start
            if lane.fetched < span.stop:
                lane.fetched = max(lane.fetched, reader.position(span.source))
            if lane.fetched < span.stop:
                wanted.add(KafkaPartition(*span.source))
        consumer = reader.consumer
        paused = consumer.paused()
        consumer.pause(*(consumer.assignment() - wanted - paused))
        consumer.resume(*(wanted & paused))
        return bool(wanted)

"""Batches on their way out: what is sent, acknowledged and committed, in that order.

At most one batch is in flight: it is acknowledged while the next one is learned. Only acknowledged batches
are committed, and only up to the first one that is not.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.errors import CommitRefused, PublishFailed
from pipeline.event.batch import RawBatch, Span, TopicPartition
from pipeline.outcome import Outcome
from pipeline.run.observe import Delivered, Observer, reasons
from pipeline.run.ports import Clock, Receipt, Sink, Source

logger = logging.getLogger(__name__)

DEPTH = 1
COMMIT_EVERY_S = 1.0
SLICE_S = 0.5


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch that is on its way."""

    spans: tuple[Span, ...]
    receipt: Receipt
    content: Delivered
    records: int


class InFlight:
    """Publishes batches and commits what is acknowledged.

    `acknowledged` holds the next offset of every partition that may be committed and is not yet.
    """

    def __init__(
        self, source: Source, sink: Sink, clock: Clock, observer: Observer, timeout_s: Callable[[], float]
    ) -> None:
        """`timeout_s` says how long an acknowledgement may take from now on, in seconds."""
        self.acknowledged: dict[TopicPartition, int] = {}
        self._source = source
        self._sink = sink
        self._clock = clock
        self._observer = observer
        self._timeout_s = timeout_s
        self._sent: deque[Sent] = deque()
        self._committed_s = clock.monotonic_s()

    def publish(self, raw: RawBatch, outcome: Outcome) -> None:
        """Send a batch, once there is room. Raise `PublishFailed` when an earlier one was refused."""
        self.settle()
        while len(self._sent) >= DEPTH:
            self._wait_for_oldest()
        receipt = self._sink.publish(outcome.rankings, raw.rejects, outcome.alarms, outcome.gone)
        content = Delivered(len(outcome.rankings), reasons(raw), outcome.append_ms_B)
        records = len(outcome.rankings) + len(raw.rejects) + len(outcome.alarms) + len(outcome.gone)
        self._sent.append(Sent(raw.spans, receipt, content, records))

    def settle(self) -> None:
        """Note what has been acknowledged by now, without waiting."""
        while self._sent and self._asked(self._sent[0].receipt.done):
            self._land()

    def drain(self) -> None:
        """Wait until nothing is in flight. Raise `PublishFailed` when that takes longer than it may."""
        while self._sent:
            self._wait_for_oldest()

    def commit(self, assigned: Collection[TopicPartition]) -> None:
        """Commit what is acknowledged, of assigned partitions; the rest is another worker's now."""
        self._committed_s = self._clock.monotonic_s()
        self.acknowledged = {source: at for source, at in self.acknowledged.items() if source in assigned}
        if self.acknowledged:
            try:
                self._source.commit(self.acknowledged)
            except CommitRefused as refusal:
                logger.info("%s", refusal)  # they stay acknowledged, and are committed with the next ones
                return
            self.acknowledged = {}
        self._observer.committed(self._clock.now_ms(), self._source.lag())

    def commit_due(self) -> bool:
        """Say whether the last commit is long enough ago."""
        return self._clock.monotonic_s() - self._committed_s >= COMMIT_EVERY_S

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Never commit what is in flight or acknowledged of these partitions: they are not ours."""
        for source in partitions:
            self.acknowledged.pop(source, None)
        self._sent = deque(
            Sent(
                tuple(span for span in sent.spans if span.source not in partitions),
                sent.receipt,
                sent.content,
                sent.records,
            )
            for sent in self._sent
        )

    def _wait_for_oldest(self) -> None:
        """Wait in slices, since a signal to stop shortens the time that there is."""
        receipt = self._sent[0].receipt
        waited_s = 0.0
        while not self._asked(receipt.done):
            try:
                receipt.wait(SLICE_S)
            except PublishFailed:
                waited_s += SLICE_S
                if waited_s >= self._timeout_s():
                    self._observer.undelivered(self._sent[0].records)
                    raise
        self._land()

    def _asked(self, done: Callable[[], bool]) -> bool:
        try:
            return done()
        except PublishFailed:
            self._observer.undelivered(self._sent[0].records)
            raise

    def _land(self) -> None:
        sent = self._sent.popleft()
        self._observer.delivered(sent.content, self._clock.now_ms())
        self.acknowledged.update((span.source, span.stop) for span in sent.spans)

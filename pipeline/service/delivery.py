"""Publish batches and commit their offsets, at least once or in transactions.

At most one batch is in flight: it is acknowledged while the next one is learned. `Delivery` commits the
offsets of acknowledged batches, up to the first one that is not acknowledged. `TransactionalDelivery` is for
a sink that commits a batch's offsets together with the batch.
"""

import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import CommitRefused, PublishFailed
from pipeline.events.batch import RawBatch, Span, TopicPartition
from pipeline.outcome import Outcome
from pipeline.persistence.journal import Entry
from pipeline.service.observe import Delivered, Observer, reasons
from pipeline.service.ports import NOTHING, Clock, Publication, Receipt, Sink, Source

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1  # batches
COMMIT_INTERVAL_S = 1.0
WAIT_SLICE_S = 0.5
WARN_AFTER_S = 3.0  # without an acknowledgement


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch in flight."""

    raw: RawBatch
    outcome: Outcome
    spans: tuple[Span, ...]  # of partitions that are still assigned here
    receipt: Receipt

    @property
    def records(self) -> int:
        """The number of records sent."""
        return sum(map(len, publication_of(self.raw, self.outcome)))


class Delivery:
    """Publish each batch at least once; commit offsets about once a second.

    `acknowledged` holds the next offset of every partition with something to commit. An acknowledgement may
    take `timeout_s` seconds.
    """

    def __init__(
        self, source: Source, sink: Sink, clock: Clock, observer: Observer, timeout_s: float
    ) -> None:
        self.acknowledged: dict[TopicPartition, int] = {}
        self.timeout_s = timeout_s
        self._source = source
        self._sink = sink
        self._clock = clock
        self._observer = observer
        self._sent: deque[Sent] = deque()
        self._committed_s = clock.monotonic_s()

    def publish(self, raw: RawBatch, outcome: Outcome) -> None:
        """Send a batch as soon as fewer than `MAX_IN_FLIGHT` are in flight.

        Raise `PublishFailed` when an earlier one failed.
        """
        self.settle()
        while len(self._sent) >= MAX_IN_FLIGHT:
            self._wait_for_oldest()
        self._sent.append(self._send(raw, outcome, raw.spans))

    def settle(self) -> None:
        """Process the acknowledgements that have arrived, without waiting."""
        while self._sent and self._complete_oldest():
            pass

    def drain(self) -> None:
        """Wait until nothing is in flight. Raise `PublishFailed` after `timeout_s`."""
        while self._sent:
            self._wait_for_oldest()

    def commit(self, assigned: Collection[TopicPartition]) -> None:
        """Commit the acknowledged offsets of assigned partitions; drop the others."""
        self._committed_s = self._clock.monotonic_s()
        self.acknowledged = {source: at for source, at in self.acknowledged.items() if source in assigned}
        if self.acknowledged:
            try:
                self._source.commit(self.acknowledged)
            except CommitRefused as error:
                logger.info("%s", error)  # they are committed with the next ones
                return
            self.acknowledged = {}
        self._observer.committed(self._clock.now_ms(), self._source.lag())

    def commit_due(self) -> bool:
        """Return whether the last commit was `COMMIT_INTERVAL_S` ago."""
        return self._clock.monotonic_s() - self._committed_s >= COMMIT_INTERVAL_S

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Never commit what is in flight or acknowledged of partitions that are not assigned any more."""
        for source in partitions:
            self.acknowledged.pop(source, None)
        self._sent = deque(
            replace(sent, spans=tuple(span for span in sent.spans if span.source not in partitions))
            for sent in self._sent
        )

    def replayable(self, entries: Sequence[Entry], published: int) -> Sequence[Entry]:
        """Return the journal's batches to replay; the rest is read from the topic as new batches.

        `published`: so many of the first ones are published.
        """
        return entries

    def _send(self, raw: RawBatch, outcome: Outcome, spans: tuple[Span, ...]) -> Sent:
        offsets = {span.source: span.stop for span in spans}
        return Sent(raw, outcome, spans, self._sink.publish(publication_of(raw, outcome), offsets))

    def _wait_for_oldest(self) -> None:
        """Wait in slices, since a signal to stop shortens the timeout."""
        waited_s = 0.0
        while not self._complete_oldest():
            try:
                self._sent[0].receipt.wait(WAIT_SLICE_S)
            except (PublishFailed, CommitRefused) as error:
                waited_s += WAIT_SLICE_S
                if waited_s == WARN_AFTER_S:
                    logger.warning(
                        "no acknowledgement for %g s; waiting up to %g s", WARN_AFTER_S, self.timeout_s
                    )
                if waited_s >= self.timeout_s:
                    self._observer.undelivered(self._sent[0].records)
                    raise PublishFailed(str(error)) from error

    def _complete_oldest(self) -> bool:
        """Complete the oldest batch if it is acknowledged; return whether it was."""
        sent = self._sent[0]
        try:
            if not sent.receipt.done():
                return False
        except PublishFailed:
            self._observer.undelivered(sent.records)
            raise
        self._sent.popleft()
        at_ms = sent.receipt.acknowledged_ms()
        content = Delivered(len(sent.outcome.rankings), reasons(sent.raw), sent.outcome.append_ms_B)
        self._observer.delivered(content, self._clock.now_ms() if at_ms is None else at_ms)
        self._delivered(sent)
        return True

    def _delivered(self, sent: Sent) -> None:
        """Let the offsets of a delivered batch be committed."""
        self.acknowledged.update((span.source, span.stop) for span in sent.spans)


class TransactionalDelivery(Delivery):
    """Publish each batch and its offsets in one transaction of the sink.

    A batch that is not committed was not delivered. A batch without records moves no offset, so after a crash
    its commit can't be observed: its lists are published again, with the same content.
    """

    def replayable(self, entries: Sequence[Entry], published: int) -> Sequence[Entry]:
        """Return the batches before the first one with records that is not published."""
        undone = (place for place, entry in enumerate(entries) if place >= published and entry.spans)
        return entries[: next(undone, len(entries))]

    def _complete_oldest(self) -> bool:
        """Complete the oldest batch; send it again if its transaction was aborted by a rebalance."""
        try:
            return super()._complete_oldest()
        except CommitRefused as error:
            logger.info("%s", error)
            return self._send_again()

    def _send_again(self) -> bool:
        """Send the part of an aborted batch that is still assigned here; return whether there is none."""
        sent = self._sent.popleft()
        lost = {span.source: span.stop for span in sent.raw.spans if span not in sent.spans}
        rest = sent.spans or not sent.raw.spans  # no other worker sends a batch without records
        if rest:
            self._sent.appendleft(self._send(*drop_committed(sent.raw, sent.outcome, lost), sent.spans))
        return not rest

    def _delivered(self, sent: Sent) -> None:
        """Do nothing: the sink has committed the offsets."""


def publication_of(raw: RawBatch, outcome: Outcome) -> Publication:
    """Return what is published of a batch."""
    return Publication(outcome.rankings, raw.rejects, outcome.alarms, outcome.removed_users)


def delivery_for(source: Source, sink: Sink, clock: Clock, observer: Observer, timeout_s: float) -> Delivery:
    """Return the delivery that fits the sink."""
    kind = TransactionalDelivery if sink.commits_offsets else Delivery
    return kind(source, sink, clock, observer, timeout_s)


def drop_committed(
    raw: RawBatch,
    outcome: Outcome,
    committed: Mapping[TopicPartition, int],
    learned: Mapping[TopicPartition, int] = NOTHING,
) -> tuple[RawBatch, Outcome]:
    """Leave out the rankings and dead letters of partitions that the group has committed beyond the batch.

    Another worker may own them and have published newer lists. `learned` are the offsets contained in the
    batch's state, for the lists of users without an event in the batch.
    """
    places = [index for index, span in enumerate(raw.spans) if committed.get(span.source, 0) >= span.stop]
    users = {
        user
        for user, source in outcome.refreshed.items()
        if committed.get(source, 0) > learned.get(source, 0)
    }
    if not places and not users:
        return raw, outcome
    committed_B = np.isin(raw.events.source_B, places)
    users |= {raw.events.user_ids[b] for b in np.flatnonzero(committed_B).tolist()}
    rejects = [
        reject
        for reject in raw.rejects
        if committed.get(TopicPartition(reject.record.topic, reject.record.partition), 0)
        <= reject.record.offset
    ]
    rankings = [ranking for ranking in outcome.rankings if ranking.user_id not in users]
    return replace(raw, rejects=rejects), replace(outcome, rankings=rankings)


def count_published(entries: Sequence[Entry], committed: Mapping[TopicPartition, int]) -> int:
    """Return how many of a journal's batches are known to be published: all up to the last committed one.

    Batches are acknowledged in order. A batch without records moves no offset, so it counts only when a later
    one is committed.
    """
    done = (
        number
        for number, entry in enumerate(entries, 1)
        if entry.spans and all(span.stop <= committed.get(span.source, 0) for span in entry.spans)
    )
    return max(done, default=0)

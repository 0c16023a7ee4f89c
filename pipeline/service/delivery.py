"""Publish batches and commit their offsets, at least once or in transactions.

One batch is in flight: it is acknowledged while the next one is learned. `Delivery` commits the offsets of
acknowledged batches; `TransactionalDelivery` is for a sink that commits them with the batch.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import CommitRefused, PublishFailed
from pipeline.events.batch import RawBatch, Span, TopicPartition
from pipeline.outcome import Outcome
from pipeline.persistence.journal import Entry
from pipeline.service.observe import reasons
from pipeline.service.ports import NOTHING, Adapters, Delivered, Publication, Receipt

logger = logging.getLogger(__name__)

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

    def __init__(self, adapters: Adapters, timeout_s: float) -> None:
        self.acknowledged: dict[TopicPartition, int] = {}
        self.timeout_s = timeout_s
        self._source, self._sink = adapters.source, adapters.sink
        self._clock, self._observer = adapters.clock, adapters.observer
        self._sent: Sent | None = None
        self._committed_s = self._clock.monotonic_s()

    def publish(self, raw: RawBatch, outcome: Outcome) -> None:
        """Send a batch once the previous one is acknowledged. Raise `PublishFailed` when that failed."""
        self.drain()
        self._send(raw, outcome, raw.spans)

    def drain(self) -> None:
        """Wait until nothing is in flight. Raise `PublishFailed` after `timeout_s`.

        The wait is sliced, since a signal to stop shortens the timeout.
        """
        waited_s = 0.0
        while (sent := self.settle()) is not None:
            try:
                sent.receipt.wait(WAIT_SLICE_S)
            except (PublishFailed, CommitRefused) as error:
                waited_s += WAIT_SLICE_S
                if waited_s == WARN_AFTER_S:
                    logger.warning("no acknowledgement for %g s of %g s", waited_s, self.timeout_s)
                if waited_s >= self.timeout_s:
                    self._observer.undelivered(sent.records)
                    raise PublishFailed(str(error)) from error

    def settle(self) -> Sent | None:
        """Process the acknowledgement if it has arrived, without waiting; return the batch in flight."""
        sent = self._sent
        if sent is None:
            return None
        try:
            if not sent.receipt.done():
                return sent
        except PublishFailed:
            self._observer.undelivered(sent.records)
            raise
        self._sent = None
        at_ms = sent.receipt.acknowledged_ms()
        content = Delivered(len(sent.outcome.rankings), reasons(sent.raw), sent.outcome.append_ms_B)
        self._observer.delivered(content, self._clock.now_ms() if at_ms is None else at_ms)
        if not self._sink.commits_offsets:
            self.acknowledged.update((span.source, span.stop) for span in sent.spans)
        return None

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
        if self._sent is not None:
            spans = tuple(span for span in self._sent.spans if span.source not in partitions)
            self._sent = replace(self._sent, spans=spans)

    def replayable(self, entries: Sequence[Entry], published: int) -> Sequence[Entry]:
        """Return the journal's batches to replay; the rest is read from the topic as new batches.

        `published`: so many of the first ones are published.
        """
        return entries

    def _send(self, raw: RawBatch, outcome: Outcome, spans: tuple[Span, ...]) -> None:
        offsets = {span.source: span.stop for span in spans}
        self._sent = Sent(raw, outcome, spans, self._sink.publish(publication_of(raw, outcome), offsets))


class TransactionalDelivery(Delivery):
    """Publish each batch and its offsets in one transaction of the sink.

    A batch that is not committed was not delivered. A batch without records moves no offset, so after a crash
    its commit can't be observed: its lists are published again, with the same content.
    """

    def replayable(self, entries: Sequence[Entry], published: int) -> Sequence[Entry]:
        """Return the batches before the first one with records that is not published."""
        undone = (place for place, entry in enumerate(entries) if place >= published and entry.spans)
        return entries[: next(undone, len(entries))]

    def settle(self) -> Sent | None:
        """Process the acknowledgement; send the batch again if a rebalance aborted its transaction."""
        sent = self._sent
        try:
            return super().settle()
        except CommitRefused as error:
            logger.info("%s", error)
        assert sent is not None, "a batch in flight was aborted"
        self._sent = None
        if sent.spans or not sent.raw.spans:  # no other worker sends a batch without records
            lost = {span.source: span.stop for span in sent.raw.spans if span not in sent.spans}
            self._send(*drop_committed(sent.raw, sent.outcome, lost), sent.spans)
        return self._sent


def publication_of(raw: RawBatch, outcome: Outcome) -> Publication:
    """Return what is published of a batch."""
    return Publication(outcome.rankings, raw.rejects, outcome.alarms, outcome.removed_users)


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
    committed_B = np.isin(raw.events.source_B, places)
    users = {raw.events.user_ids[b] for b in np.flatnonzero(committed_B).tolist()}
    for user, source in outcome.refreshed.items():
        if committed.get(source, 0) > learned.get(source, 0):
            users.add(user)
    rejects = [
        reject
        for reject in raw.rejects
        if reject.record.offset
        >= committed.get(TopicPartition(reject.record.topic, reject.record.partition), 0)
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

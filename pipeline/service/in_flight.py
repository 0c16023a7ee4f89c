"""Batches on their way out: what is sent, acknowledged and committed, in that order.

At most one batch is in flight: it is acknowledged while the next one is learned. Only acknowledged batches
are committed, and only up to the first one that is not. A sink may commit a batch's offsets with the batch:
then nothing is left to be committed here.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import CommitRefused, PublishFailed
from pipeline.events.batch import RawBatch, Span, TopicPartition
from pipeline.outcome import Outcome
from pipeline.service.observe import Delivered, Observer, reasons
from pipeline.service.ports import NOTHING, Clock, Receipt, Sink, Source

logger = logging.getLogger(__name__)

DEPTH = 1
COMMIT_EVERY_S = 1.0
SLICE_S = 0.5
TELL_S = 3.0  # so long a silence of the broker is told


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch that is on its way."""

    raw: RawBatch
    outcome: Outcome
    spans: tuple[Span, ...]  # those of partitions that are still ours
    receipt: Receipt

    @property
    def records(self) -> int:
        """How many records it is on the topics."""
        outcome = self.outcome
        return len(outcome.rankings) + len(self.raw.rejects) + len(outcome.alarms) + len(outcome.gone)


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
        self._sent.append(self._send(raw, outcome, raw.spans))

    def settle(self) -> None:
        """Note what has been acknowledged by now, without waiting."""
        while self._sent and self._oldest_left():
            pass

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
            replace(sent, spans=tuple(span for span in sent.spans if span.source not in partitions))
            for sent in self._sent
        )

    def _send(self, raw: RawBatch, outcome: Outcome, spans: tuple[Span, ...]) -> Sent:
        offsets = {span.source: span.stop for span in spans}
        receipt = self._sink.publish(outcome.rankings, raw.rejects, outcome.alarms, outcome.gone, offsets)
        return Sent(raw, outcome, spans, receipt)

    def _wait_for_oldest(self) -> None:
        """Wait in slices, since a signal to stop shortens the time that there is."""
        waited_s = 0.0
        while not self._oldest_left():
            try:
                self._sent[0].receipt.wait(SLICE_S)
            except (PublishFailed, CommitRefused) as error:
                waited_s += SLICE_S
                if waited_s == TELL_S:
                    logger.warning(
                        "no acknowledgement for %g s; waiting up to %g s", TELL_S, self._timeout_s()
                    )
                if waited_s >= self._timeout_s():
                    self._observer.undelivered(self._sent[0].records)
                    raise PublishFailed(str(error)) from error

    def _oldest_left(self) -> bool:
        """Let the oldest batch go when it is acknowledged, and say whether it has gone."""
        sent = self._sent[0]
        try:
            if not sent.receipt.done():
                return False
        except CommitRefused as refusal:
            logger.info("%s", refusal)
            return self._send_again()
        except PublishFailed:
            self._observer.undelivered(sent.records)
            raise
        self._sent.popleft()
        at_ms = sent.receipt.acknowledged_ms()
        content = Delivered(len(sent.outcome.rankings), reasons(sent.raw), sent.outcome.append_ms_B)
        self._observer.delivered(content, self._clock.now_ms() if at_ms is None else at_ms)
        if not self._sink.commits_offsets:
            self.acknowledged.update((span.source, span.stop) for span in sent.spans)
        return True

    def _send_again(self) -> bool:
        """Send what is still ours of a batch of which nothing is out; say whether that is nothing."""
        sent = self._sent.popleft()
        lost = {span.source: span.stop for span in sent.raw.spans if span not in sent.spans}
        rest = sent.spans or not sent.raw.spans  # a batch without records is nobody else's to send
        if rest:
            self._sent.appendleft(self._send(*unheard(sent.raw, sent.outcome, lost), sent.spans))
        return not rest


def unheard(
    raw: RawBatch,
    outcome: Outcome,
    committed: Mapping[TopicPartition, int],
    learned: Mapping[TopicPartition, int] = NOTHING,
) -> tuple[RawBatch, Outcome]:
    """Leave out the rankings and dead letters of partitions that the group has committed beyond the batch.

    Another worker may own them by now and have published newer lists. `learned` are the offsets that the
    batch's lists know, for those of users who had no event in it.
    """
    told = [index for index, span in enumerate(raw.spans) if committed.get(span.source, 0) >= span.stop]
    old = {
        user
        for user, source in outcome.refreshed.items()
        if committed.get(source, 0) > learned.get(source, 0)
    }
    if not told and not old:
        return raw, outcome
    told_B = np.isin(raw.events.source_B, told)
    users = old.union(raw.events.user_ids[b] for b in np.flatnonzero(told_B).tolist())
    rejects = [
        reject
        for reject in raw.rejects
        if committed.get(TopicPartition(reject.record.topic, reject.record.partition), 0)
        <= reject.record.offset
    ]
    rankings = [ranking for ranking in outcome.rankings if ranking.user_id not in users]
    return replace(raw, rejects=rejects), replace(outcome, rankings=rankings)

"""Rankings, dead letters and drift alarms to Kafka topics, at least once.

Everything of a batch goes out without waiting; its receipt knows when all of it is acknowledged. Offsets are
the loop's to commit: `producers.kafka.transactions` is the sink that commits them itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from consumers.kafka.client import connect
from pipeline.errors import PublishFailed, UsageError
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.service.ports import NOTHING
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import producer_options
from producers.kafka.outgoing import Outgoing, RecordTooLarge, ReducedCounts, Sent, failed
from producers.kafka.topics import expect_topics

CLOSE_WAIT_S = 5.0


class KafkaReceipt:
    """A batch on its way out: see `pipeline.service.ports.Receipt`.

    The time of the last acknowledgement is noted by the client's own thread, on the last record of each
    partition: whoever asks for it may come late.
    """

    def __init__(self, sent: Sent, now_ms: Callable[[], int], again: Callable[[Sent], None]) -> None:
        """`again` is for a batch with a record that was too large: it sends what is not acknowledged once
        more and waits for that."""
        self._sent = sent
        self._futures = sent.futures
        self._again = again
        self._now_ms = now_ms
        self._acknowledged = 0  # the first so many are; each future is looked at once
        self._times_ms: list[int] = []
        self._expected = len(sent.last)  # times; one for each partition
        for future in sent.last.values():
            future.add_callback(lambda _: self._times_ms.append(now_ms()))

    def done(self) -> bool:
        """Say whether everything is acknowledged; raise `PublishFailed` when something can't be."""
        futures, index = self._futures, self._acknowledged
        while index < len(futures) and futures[index].is_done:
            if futures[index].exception is not None:
                if self._mended():
                    return True
                raise failed(futures[index].exception, len(futures) - index, len(futures))
            index += 1
        self._acknowledged = index
        return index == len(futures)

    def wait(self, timeout_s: float) -> None:
        """Return when everything is acknowledged; raise `PublishFailed` otherwise."""
        until = time.monotonic() + timeout_s
        while not self.done():
            future = self._futures[self._acknowledged]
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except KafkaError as error:
                if self._mended():
                    return
                if isinstance(error, KafkaTimeoutError) and not future.is_done:
                    error = KafkaTimeoutError(f"no acknowledgement within {timeout_s:g} s")
                raise failed(error, len(self._futures) - self._acknowledged, len(self._futures)) from error

    def _mended(self) -> bool:
        """Where a record was too large, send again what is not acknowledged; return whether all is now."""
        if not self._sent.has_too_large():
            return False
        self._again(self._sent)
        self._futures, self._acknowledged = [], 0
        self._times_ms, self._expected = [self._now_ms()], 1
        return True

    def acknowledged_ms(self) -> int | None:
        """Wall-clock time of the last acknowledgement; None while the client is about to note it."""
        times_ms = self._times_ms
        return max(times_ms, default=None) if len(times_ms) == self._expected else None


class KafkaSink:
    """The sink of the service: see `pipeline.service.ports.Sink`.

    Raises `UsageError` when no broker answers at construction or a topic doesn't exist.
    """

    commits_offsets = False

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: TopicsConfig,
        now_ms: Callable[[], int],
        reduced: Callable[[ReducedCounts], None] = lambda counts: None,
    ) -> None:
        """`now_ms` is the wall clock that acknowledgements are noted by; `reduced` gets the counts of records
        that were truncated or dropped as too large."""
        expect_topics(kafka, topics)
        self._kafka = kafka
        self._reduced = reduced
        self._producer: KafkaProducer = connect(KafkaProducer, producer_options(kafka))
        self._outgoing = Outgoing(topics)
        self._now_ms = now_ms

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int] = NOTHING,
    ) -> KafkaReceipt:
        """Send without waiting; `offsets` are left alone. Raise `PublishFailed` when the client takes no
        more."""
        try:
            records = self._outgoing.records(self._producer, rankings, rejects, alarms, gone)
        except KafkaError as error:
            raise failed(error, 1, 1) from error
        sent = self._outgoing.send(self._producer, records)
        if sent.reduced:
            self._reduced(sent.reduced)
        return KafkaReceipt(sent, self._now_ms, self._send_again)

    def close(self) -> None:
        """Send what is left, waiting a few seconds for it, and close."""
        try:
            self._producer.close(timeout=CLOSE_WAIT_S)
        except KafkaTimeoutError as error:
            raise PublishFailed(
                f"records were still unacknowledged {CLOSE_WAIT_S:g} s after close"
            ) from error

    def _send_again(self, sent: Sent) -> None:
        """Send what is not acknowledged of a batch, one record at a time, each in the largest form that its
        topic takes. Raise `PublishFailed` when the broker does not answer."""
        left = None
        while left is None or left:
            with suppress(KafkaError):
                self._producer.close(timeout=0)
            left = sent.left() if left is None else left
            try:
                self._producer = connect(KafkaProducer, producer_options(self._kafka))
                sent, left = self._outgoing.send(self._producer, left, self._kafka.broker_timeout_s), []
            except UsageError as error:
                raise failed(error, len(left), len(left)) from error
            except RecordTooLarge as error:
                sent, left = error.sent, error.left
            if sent.reduced:
                self._reduced(sent.reduced)

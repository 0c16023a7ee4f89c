"""Publish rankings, dead letters and drift alarms to Kafka topics, at least once.

All records of a batch are sent without waiting; the receipt reports when all of them are acknowledged. The
loop commits offsets; `producers.kafka.transactions` is the sink that commits them itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from consumers.kafka.client import connect
from pipeline.errors import UsageError
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import NOTHING, Publication
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import close_producer, producer_options
from producers.kafka.records import Outbound, RecordWriter, ReducedCounts, Sent, publish_failed
from producers.kafka.topics import expect_topics


class KafkaReceipt:
    """A batch that is being published: see `pipeline.service.ports.Receipt`.

    The client's thread notes the time of the last acknowledgement, on the last record of each partition, so
    that the time is exact however late `acknowledged_ms` is called.
    """

    def __init__(self, sent: Sent, now_ms: Callable[[], int], send_again: Callable[[Sent], None]) -> None:
        """`send_again` sends the unacknowledged rest of a batch with a record that was too large, and waits
        for it."""
        self._sent, self._futures = sent, sent.futures
        self._send_again = send_again
        self._now_ms = now_ms
        self._acknowledged = 0  # leading futures; each is checked once
        self._times_ms: list[int] = []
        pairs = zip(sent.records, sent.futures, strict=True)
        last = {(record.topic, record.partition): future for record, future in pairs}
        self._expected = len(last)  # times, one a partition
        for future in last.values():
            future.add_callback(lambda _: self._times_ms.append(now_ms()))

    def done(self) -> bool:
        """Return whether everything is acknowledged. Raise `PublishFailed` when a record failed."""
        futures, index = self._futures, self._acknowledged
        while index < len(futures) and futures[index].is_done and futures[index].exception is None:
            index += 1
        self._acknowledged = index
        failed = index < len(futures) and futures[index].is_done
        if (failed and self._sent.too_large()) or self._sent.not_sent:
            self._send_again(self._sent)
            self._sent, self._futures, self._acknowledged = Sent(), [], 0
            self._times_ms, self._expected = [self._now_ms()], 1
            return True
        if failed:
            raise publish_failed(futures[index].exception, len(futures) - index, len(futures))
        return index == len(futures)

    def wait(self, timeout_s: float) -> None:
        """Return when everything is acknowledged. Raise `PublishFailed` otherwise."""
        until = time.monotonic() + timeout_s
        while not self.done():
            future = self._futures[self._acknowledged]
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except KafkaError as error:
                if not future.is_done:  # else `done` raises or handles the failure
                    late = KafkaTimeoutError(f"no acknowledgement within {timeout_s:g} s")
                    missing = len(self._futures) - self._acknowledged
                    raise publish_failed(late, missing, len(self._futures)) from error

    def acknowledged_ms(self) -> int | None:
        """Return the wall-clock time of the last acknowledgement; None until the client has noted it."""
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
        """`now_ms` is the wall clock of acknowledgements; `reduced` gets the counts of records that were
        truncated or dropped as too large."""
        expect_topics(kafka, topics)
        self._kafka = kafka
        self._reduced = reduced
        self._producer: KafkaProducer = connect(KafkaProducer, producer_options(kafka))
        self._writer = RecordWriter(topics)
        self._now_ms = now_ms

    def publish(
        self, publication: Publication, offsets: Mapping[TopicPartition, int] = NOTHING
    ) -> KafkaReceipt:
        """Send without waiting; `offsets` are ignored. Raise `PublishFailed` when the client fails."""
        try:
            records = self._writer.records(self._producer, publication)
        except KafkaError as error:
            raise publish_failed(error, 1, 1) from error
        return KafkaReceipt(self._send(records), self._now_ms, self._send_again)

    def close(self) -> None:
        """Send what is buffered, waiting a few seconds for it, and close."""
        close_producer(self._producer)

    def _send(self, records: Sequence[Outbound], singly_s: float = 0.0) -> Sent:
        sent = self._writer.send(self._producer, records, singly_s)
        if sent.reduced:
            self._reduced(sent.reduced)
        return sent

    def _send_again(self, sent: Sent) -> None:
        """Send the unacknowledged records of a batch one at a time, each in the largest form that its topic
        takes. Raise `PublishFailed` when the broker does not answer."""
        while True:
            with suppress(KafkaError):
                self._producer.close(timeout=0)  # settles every future
            left = sent.unacknowledged()
            try:
                self._producer = connect(KafkaProducer, producer_options(self._kafka))
            except UsageError as error:
                raise publish_failed(error, len(left), len(left)) from error
            sent = self._send(left, self._kafka.broker_timeout_s)
            if not sent.not_sent:
                return

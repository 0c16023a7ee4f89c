"""Publish rankings, dead letters and drift alarms to Kafka topics, at least once.

`producers.kafka.transactions` is the sink that also commits the offsets.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from consumers.kafka.client import connect
from pipeline.errors import CommitRefused, PublishFailed, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import NOTHING, Publication
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import producer_options
from producers.kafka.records import Outbound, RecordWriter, ReducedCounts, Sent, flush, publish_failed

CLOSE_WAIT_S = 5.0
Commit = Callable[[KafkaProducer], None]


class KafkaReceipt:
    """A batch that is being published: see `pipeline.service.ports.Receipt`."""

    def __init__(self, acknowledged_ms: "Future[int]", records: int) -> None:
        self._acknowledged_ms = acknowledged_ms
        self._records = records

    def done(self) -> bool:
        return self.acknowledged_ms() is not None

    def wait(self, timeout_s: float) -> None:
        try:
            self._acknowledged_ms.result(timeout_s)
        except TimeoutError as error:
            late = KafkaTimeoutError(f"no acknowledgement within {timeout_s:g} s")
            raise publish_failed(late, self._records, self._records) from error

    def acknowledged_ms(self) -> int | None:
        return self._acknowledged_ms.result() if self._acknowledged_ms.done() else None


class KafkaSink:
    """The sink of the service: see `pipeline.service.ports.Sink`.

    Call `publish` after the last receipt is done. Raises `UsageError` when no broker answers at construction.
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
        self._kafka, self._now_ms, self._reduced = kafka, now_ms, reduced
        self._writer = RecordWriter(topics)
        self._producer: KafkaProducer | None = self._connect()
        self._failure: BaseException | None = None

    def publish(
        self, publication: Publication, offsets: Mapping[TopicPartition, int] = NOTHING
    ) -> KafkaReceipt:
        """Send everything; a thread waits for the acknowledgements.

        Raise `PublishFailed` when the client fails, and the error of an earlier batch again, unless that was
        `CommitRefused`.
        """
        if self._failure is not None:
            raise self._failure
        commit = self._commit_of(offsets)
        try:
            producer = self._begin()
            records = self._writer.records(producer, publication)
            sent = self._writer.send(producer, records)
        except (KafkaError, PublishFailed) as error:
            raise self._failed(error, 1) from error.__cause__
        acknowledged_ms: Future[int] = Future()
        threading.Thread(
            target=self._finish,
            args=(acknowledged_ms, producer, records, sent, commit),
            name="afresh-publish",
            daemon=True,
        ).start()
        return KafkaReceipt(acknowledged_ms, len(records))

    def close(self) -> None:
        """Send what is buffered, waiting a few seconds for it, and close."""
        if self._producer is None:
            return
        try:
            self._producer.close(timeout=CLOSE_WAIT_S)
        except KafkaTimeoutError as error:
            raise PublishFailed(f"records were still unacknowledged after {CLOSE_WAIT_S:g} s") from error

    def _connect(self) -> KafkaProducer:
        return connect(KafkaProducer, producer_options(self._kafka))

    def _begin(self) -> KafkaProducer:
        """Return the producer for a batch, a new one where the last one was abandoned."""
        if self._producer is None:
            try:
                self._producer = self._connect()
            except UsageError as error:  # what is a wrong setting at the start is a lost broker here
                raise PublishFailed(f"no new producer after one was closed: {error}") from error
        return self._producer

    def _commit_of(self, offsets: Mapping[TopicPartition, int]) -> Commit:
        """Return what commits the offsets once a batch is acknowledged: nothing here, the loop does it."""
        return lambda producer: None

    def _finish(
        self,
        acknowledged_ms: "Future[int]",
        producer: KafkaProducer,
        records: Sequence[Outbound],
        sent: Sent,
        commit: Commit,
    ) -> None:
        """Wait for the acknowledgements and commit.

        When a record is too large, what is not published is sent again one record at a time: that shows which
        one it is, and the next attempt truncates or drops it.
        """
        try:
            while not self._acknowledged(producer, sent):
                self._abandon()
                records = self._unpublished(records, sent)
                producer = self._begin()
                sent = self._writer.send(producer, records, singly_s=self._kafka.broker_timeout_s)
            commit(producer)
            self._reduced(sent.reduced)
        except BaseException as error:  # the receipt raises it in the caller's thread
            acknowledged_ms.set_exception(self._failed(error, len(records)))
        else:
            acknowledged_ms.set_result(self._now_ms())

    def _acknowledged(self, producer: KafkaProducer, sent: Sent) -> bool:
        """Wait until all records are acknowledged; return False when one is too large."""
        if sent.not_sent:
            return False
        flush(producer)
        try:
            for future in sent.futures:
                future.get(timeout=self._kafka.broker_timeout_s)
        except KafkaError as error:
            if not sent.too_large():
                raise publish_failed(error, len(sent.unacknowledged()), len(sent.records)) from error
            return False
        return True

    def _unpublished(self, records: Sequence[Outbound], sent: Sent) -> Sequence[Outbound]:
        """Return the records to send again after the producer was abandoned."""
        self._reduced(sent.reduced)
        return sent.unacknowledged()

    def _abandon(self) -> None:
        """Never use the producer again: after a record that was too large it fails all others too."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._drop(producer)

    def _drop(self, producer: KafkaProducer) -> None:
        with suppress(KafkaError):
            producer.close(timeout=0)

    def _failed(self, error: BaseException, records: int) -> BaseException:
        """Abandon the producer; return the error to raise, here and from later calls of `publish`."""
        self._abandon()
        reason = self._translated(error, records)
        if not isinstance(reason, CommitRefused):
            self._failure = reason
        return reason

    def _translated(self, error: BaseException, records: int) -> BaseException:
        """Return the `AfreshError` of a client's error; any other error as it is."""
        return publish_failed(error, records, records) if isinstance(error, KafkaError) else error

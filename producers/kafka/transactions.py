"""Publish each batch with its offsets in one Kafka transaction: all or nothing.

A subscriber with `isolation.level=read_committed` receives every batch exactly once: the broker aborts an
unfinished transaction of a killed worker when the worker starts again. (Apache Kafka rejects the offsets of a
worker that has left the group; the embedded broker takes them from any producer.)
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

import kafka.errors
from kafka import KafkaProducer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import MEMBERSHIP, connect, translated
from consumers.kafka.group import is_replaced, replaced
from pipeline.errors import CommitRefused, PublishFailed, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import NOTHING, Publication
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import close_producer, transaction_options
from producers.kafka.records import Outbound, RecordWriter, ReducedCounts, Sent, flush, publish_failed
from producers.kafka.topics import expect_topics

ABORT_WAIT_S = 1.0
FENCED = (kafka.errors.ProducerFencedError, kafka.errors.InvalidProducerEpochError)


class TransactionReceipt:
    """A transaction that is being committed: see `pipeline.service.ports.Receipt`."""

    def __init__(self, committed_ms: "Future[int]", records: int) -> None:
        self._committed_ms = committed_ms
        self._records = records

    def done(self) -> bool:
        """Return whether the transaction is committed. Raise its error when it failed."""
        return self.acknowledged_ms() is not None

    def wait(self, timeout_s: float) -> None:
        """Return when the transaction is committed. Raise its error when it failed, `PublishFailed` after the
        time-out."""
        try:
            self._committed_ms.result(timeout_s)
        except TimeoutError as error:
            late = kafka.errors.KafkaTimeoutError(f"no commit within {timeout_s:g} s")
            raise publish_failed(late, self._records, self._records) from error

    def acknowledged_ms(self) -> int | None:
        """Return the wall-clock time of the commit."""
        return self._committed_ms.result() if self._committed_ms.done() else None


class TransactionSink:
    """The sink of the service with `kafka.transactions`: see `pipeline.service.ports.Sink`.

    One transaction at a time: call `publish` after the last receipt is done. Offsets are sent with the group
    membership at the time of `publish`, so that a worker that was replaced in the group can't commit.

    Raises `UsageError` when no broker answers at construction, a topic doesn't exist, or transactions are
    rejected. A receipt raises `CommitRefused` during a rebalance, `UsageError` when another process has taken
    this worker's place, else `PublishFailed`; no record of the batch is visible then.
    """

    commits_offsets = True

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: TopicsConfig,
        now_ms: Callable[[], int],
        member: Callable[[], ConsumerGroupMetadata],
        reduced: Callable[[ReducedCounts], None] = lambda counts: None,
    ) -> None:
        """`now_ms` is the wall clock of commits; `member` returns this worker's group membership; `reduced`
        gets the counts of records that were truncated or dropped as too large."""
        expect_topics(kafka, topics)
        self._kafka = kafka
        self._writer = RecordWriter(topics)
        self._now_ms = now_ms
        self._member = member
        self._reduced = reduced
        self._producer: KafkaProducer | None = self._connect()
        self._failure: BaseException | None = None
        self._began_s = time.monotonic()  # of the newest transaction

    def publish(
        self, publication: Publication, offsets: Mapping[TopicPartition, int] = NOTHING
    ) -> TransactionReceipt:
        """Send everything and start the commit.

        Raise `PublishFailed` when the client fails, and the error of an earlier receipt again, unless that
        was `CommitRefused`.
        """
        if self._failure is not None:
            raise self._failure
        member = self._member()
        try:
            producer = self._begin()
            records = self._writer.records(producer, publication)
            sent = self._writer.send(producer, records)
        except (KafkaError, PublishFailed) as error:
            self._abandon()
            reason = self._translated(error.__cause__ or error, member, 1)
            if isinstance(reason, UsageError):
                self._failure = reason
                raise reason from error
            raise error if isinstance(error, PublishFailed) else publish_failed(error, 1, 1) from error
        committed_ms: Future[int] = Future()
        threading.Thread(
            target=self._finish,
            args=(committed_ms, records, sent, offsets, member),
            name="afresh-commit",
            daemon=True,
        ).start()
        return TransactionReceipt(committed_ms, len(records))

    def close(self) -> None:
        """Close the producer; an uncommitted transaction is aborted."""
        if self._producer is not None:
            close_producer(self._producer)

    def _connect(self) -> KafkaProducer:
        """Make a producer. The broker aborts an unfinished transaction of the same transactional id."""
        producer = connect(KafkaProducer, transaction_options(self._kafka))
        try:
            producer.init_transactions()
        except KafkaError as error:
            producer.close(timeout=0)
            raise translated(error, "beginning transactions (kafka.transactions = true)") from error
        return producer

    def _begin(self) -> KafkaProducer:
        """Begin a transaction, with a new producer where the last one was abandoned."""
        if self._producer is None:
            self._producer = self._connect()
        self._began_s = time.monotonic()
        self._producer.begin_transaction()
        return self._producer

    def _finish(
        self,
        committed_ms: "Future[int]",
        records: Sequence[Outbound],
        sent: Sent,
        offsets: Mapping[TopicPartition, int],
        member: ConsumerGroupMetadata,
    ) -> None:
        """Commit in a thread of its own, because the client waits for the broker three times."""
        try:
            self._commit(records, sent, offsets, member)
        except BaseException as error:  # the receipt raises it in the caller's thread
            self._abandon()
            reason = self._translated(error, member, len(records))
            if not isinstance(reason, CommitRefused):  # a new transaction would abort another process's
                self._failure = reason
            committed_ms.set_exception(reason)
        else:
            committed_ms.set_result(self._now_ms())

    def _commit(
        self,
        records: Sequence[Outbound],
        sent: Sent,
        offsets: Mapping[TopicPartition, int],
        member: ConsumerGroupMetadata,
    ) -> None:
        """Wait for the acknowledgements and commit.

        When a record is too large, the transaction is aborted and sent again one record at a time: that shows
        which one it is, and the next attempt truncates or drops it.
        """
        while not self._acknowledged(sent):
            self._abandon()
            sent = self._writer.send(self._begin(), records, self._kafka.broker_timeout_s)
        producer = self._producer
        assert producer is not None, "a transaction has a producer"
        if offsets:
            positions = {KafkaPartition(*source): OffsetAndMetadata(at) for source, at in offsets.items()}
            producer.send_offsets_to_transaction(positions, member)
        producer.commit_transaction()
        if sent.reduced:
            self._reduced(sent.reduced)

    def _acknowledged(self, sent: Sent) -> bool:
        """Wait until all records are acknowledged; return False when one is too large."""
        if sent.not_sent:
            return False
        assert self._producer is not None, "a transaction has a producer"
        flush(self._producer)
        try:
            for future in sent.futures:
                future.get(timeout=self._kafka.broker_timeout_s)
        except KafkaError:
            if not sent.too_large():
                raise
            return False
        return True

    def _abandon(self) -> None:
        """Abort the transaction, waiting briefly, and never use its producer again.

        kafka-python 3.0.12 carries the offsets of an aborted transaction over into the next one.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return

        def abort() -> None:
            with suppress(KafkaError):
                producer.abort_transaction()
            with suppress(KafkaError):
                producer.close(timeout=ABORT_WAIT_S)

        thread = threading.Thread(target=abort, name="afresh-abort", daemon=True)
        thread.start()
        thread.join(ABORT_WAIT_S)

    def _translated(self, error: BaseException, member: ConsumerGroupMetadata, records: int) -> BaseException:
        """Return the `AfreshError` of a client's error; any other error as it is."""
        causes = [error, *(cause for cause in error.args if isinstance(cause, BaseException))]
        if any(isinstance(cause, kafka.errors.FencedInstanceIdError) for cause in causes):
            return replaced(self._kafka)
        if any(isinstance(cause, MEMBERSHIP) for cause in causes):
            return CommitRefused(f"a transaction was aborted, the group is being rebalanced: {error}")
        if any(isinstance(cause, FENCED) for cause in causes):
            # the broker fences a transaction for its age, or for a second process with the transactional id,
            # which may not have joined the group yet
            age_ms = (time.monotonic() - self._began_s) * 1000
            limit_ms = transaction_options(self._kafka)["transaction_timeout_ms"]
            if age_ms < limit_ms or is_replaced(self._kafka, lambda: member):
                return replaced(self._kafka)
            return PublishFailed(
                f"a transaction of {records} records was aborted by the broker: it lasted longer than "
                f"kafka.broker_timeout_s = {self._kafka.broker_timeout_s:g}, or another process with "
                f"kafka.worker_id = {self._kafka.worker_id!r} has started; its events will be read again"
            )
        return publish_failed(error, records, records) if isinstance(error, KafkaError) else error

"""Rankings, dead letters, drift alarms and offsets of each batch in one Kafka transaction: all or nothing.

A subscriber that reads with `read_committed` sees every batch exactly once, whatever kills the worker: the
broker gives up what a dead worker has begun as soon as it starts again, and what is not committed never
happened to anybody. (A worker of another name that the group has replaced is kept from committing by Apache
Kafka; the embedded broker takes offsets of a transaction from anybody.)
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
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.service.ports import NOTHING
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import transaction_options
from producers.kafka.outgoing import Outbound, Outgoing, RecordTooLarge, ReducedCounts, Sent, failed, flush
from producers.kafka.topics import expect_topics

CLOSE_WAIT_S = 5.0
ABORT_WAIT_S = 1.0
FENCED = (kafka.errors.ProducerFencedError, kafka.errors.InvalidProducerEpochError)
Member = Callable[[], ConsumerGroupMetadata]


class TransactionReceipt:
    """A transaction that is being committed: see `pipeline.service.ports.Receipt`."""

    def __init__(self, outcome: "Future[int]", records: int) -> None:
        self._outcome = outcome
        self._records = records

    def done(self) -> bool:
        """Say whether the transaction is committed; raise why it can't be."""
        if self._outcome.done():
            self._outcome.result()
            return True
        return False

    def wait(self, timeout_s: float) -> None:
        """Return when the transaction is committed; raise why it isn't, `PublishFailed` when it takes
        longer."""
        try:
            self._outcome.result(timeout_s)
        except TimeoutError as error:
            late = kafka.errors.KafkaTimeoutError(f"no commit within {timeout_s:g} s")
            raise failed(late, self._records, self._records) from error

    def acknowledged_ms(self) -> int | None:
        """Wall-clock time of the commit."""
        return self._outcome.result() if self._outcome.done() else None


class TransactionSink:
    """The sink of the service with `kafka.transactions`: see `pipeline.service.ports.Sink`.

    One transaction at a time: `publish` after the last receipt is done. Offsets go with the group membership
    of the moment of `publish`, so that a worker that the group has replaced can't commit.

    Raises `UsageError` when no broker answers at construction, a topic doesn't exist, or transactions are
    refused. A receipt raises `CommitRefused` when the group is being rebalanced, `UsageError` when another
    process has our place, else `PublishFailed`; nothing of the batch is out then.
    """

    commits_offsets = True

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: TopicsConfig,
        now_ms: Callable[[], int],
        member: Member,
        reduced: Callable[[ReducedCounts], None] = lambda counts: None,
    ) -> None:
        """`now_ms` is the wall clock that commits are noted by; `member` who we are in the group; `reduced`
        gets the counts of records that were truncated or dropped as too large."""
        expect_topics(kafka, topics)
        self._kafka = kafka
        self._outgoing = Outgoing(topics)
        self._now_ms = now_ms
        self._member = member
        self._reduced = reduced
        self._producer: KafkaProducer | None = self._connect()
        self._failure: BaseException | None = None
        self._began_s = time.monotonic()  # the newest transaction

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int] = NOTHING,
    ) -> TransactionReceipt:
        """Send everything and begin to commit. Raise `PublishFailed` when the client takes no more, and what
        a receipt has raised before, unless that was `CommitRefused`."""
        if self._failure is not None:
            raise self._failure
        member = self._member()
        if self._producer is None:
            self._producer = self._connect()
        producer = self._producer
        self._began_s = time.monotonic()
        try:
            producer.begin_transaction()
            records = self._outgoing.records(producer, rankings, rejects, alarms, gone)
            sent = self._begun(producer, records)
        except (KafkaError, PublishFailed) as error:
            self._give_up(producer)
            judged = self._judged(error.__cause__ or error, member, 1)
            if isinstance(judged, UsageError):
                self._failure = judged
                raise judged from error
            raise error if isinstance(error, PublishFailed) else failed(error, 1, 1) from error
        outcome: Future[int] = Future()
        threading.Thread(
            target=self._finish,
            args=(records, sent, offsets, member, outcome),
            name="afresh-commit",
            daemon=True,
        ).start()
        return TransactionReceipt(outcome, len(records))

    def close(self) -> None:
        """Close the producer; a transaction that is not committed is given up."""
        if self._producer is not None:
            try:
                self._producer.close(timeout=CLOSE_WAIT_S)
            except kafka.errors.KafkaTimeoutError as error:
                raise PublishFailed(
                    f"records were still unacknowledged {CLOSE_WAIT_S:g} s after close"
                ) from error

    def _connect(self) -> KafkaProducer:
        """Make a producer. What one of our name has begun and not committed is given up by that."""
        producer = connect(KafkaProducer, transaction_options(self._kafka))
        try:
            producer.init_transactions()
        except KafkaError as error:
            producer.close(timeout=0)
            raise translated(error, "beginning transactions (kafka.transactions = true)") from error
        return producer

    def _begun(
        self, producer: KafkaProducer, records: Sequence[Outbound], singly_s: float = 0.0
    ) -> Sent | None:
        """Send a transaction's records; None: one was too large, and the transaction is given up."""
        try:
            return self._outgoing.send(producer, records, singly_s)
        except RecordTooLarge:
            self._give_up(producer)
            return None

    def _finish(
        self,
        records: Sequence[Outbound],
        sent: Sent | None,
        offsets: Mapping[TopicPartition, int],
        member: ConsumerGroupMetadata,
        outcome: "Future[int]",
    ) -> None:
        """Commit, in a thread of its own: the client waits for three answers of the broker.

        Where a record is too large the whole transaction begins again, now record by record: that tells which
        one it is, and the next attempt sends it smaller or leaves it out.
        """
        try:
            while sent is None or not self._committed(sent, offsets, member):
                producer = self._producer = self._connect()
                self._began_s = time.monotonic()
                producer.begin_transaction()
                sent = self._begun(producer, records, self._kafka.broker_timeout_s)
            if sent.reduced:
                self._reduced(sent.reduced)
        except BaseException as error:  # handed to whoever asks the receipt, whatever it is
            if self._producer is not None:
                self._give_up(self._producer)
            judged = self._judged(error, member, len(records))
            if not isinstance(
                judged, CommitRefused
            ):  # to begin anew would end what another process has begun
                self._failure = judged
            outcome.set_exception(judged)
        else:
            outcome.set_result(self._now_ms())

    def _committed(
        self, sent: Sent, offsets: Mapping[TopicPartition, int], member: ConsumerGroupMetadata
    ) -> bool:
        """Commit what is sent; return False when a record was too large, and the transaction is given up."""
        producer = self._producer
        assert producer is not None, "a transaction was sent by a producer"
        flush(producer)
        try:
            for future in sent.futures:
                future.get(timeout=self._kafka.broker_timeout_s)
        except KafkaError:
            if not sent.has_too_large():
                raise
            self._give_up(producer)
            return False
        theirs = {KafkaPartition(*source): OffsetAndMetadata(offset) for source, offset in offsets.items()}
        if theirs:
            producer.send_offsets_to_transaction(theirs, member)
        producer.commit_transaction()
        return True

    def _give_up(self, producer: KafkaProducer) -> None:
        """Abort a transaction, waiting a little for it, and never use its producer again.

        kafka-python 3.0.12 carries offsets of an aborted transaction over into the next one.
        """
        self._producer = None
        ending = threading.Thread(target=_abort, args=(producer,), name="afresh-abort", daemon=True)
        ending.start()
        ending.join(ABORT_WAIT_S)

    def _judged(self, error: BaseException, member: ConsumerGroupMetadata, records: int) -> BaseException:
        """Put an error of the client into one of ours."""
        causes = [error, *(cause for cause in error.args if isinstance(cause, BaseException))]
        if any(isinstance(cause, kafka.errors.FencedInstanceIdError) for cause in causes):
            return replaced(self._kafka)
        if any(isinstance(cause, MEMBERSHIP) for cause in causes):
            return CommitRefused(f"a transaction was given up, the group is being rebalanced: {error}")
        if any(isinstance(cause, FENCED) for cause in causes):
            # the broker ends a transaction for its age, or for a second process of our transactional id; that
            # may not be in the group yet
            age_ms = (time.monotonic() - self._began_s) * 1000
            limit_ms = transaction_options(self._kafka)["transaction_timeout_ms"]
            if age_ms < limit_ms or is_replaced(self._kafka, lambda: member):
                return replaced(self._kafka)
            return PublishFailed(
                f"a transaction of {records} records was ended by the broker: it lasted longer than "
                f"kafka.broker_timeout_s = {self._kafka.broker_timeout_s:g}, or another process with "
                f"kafka.worker_id = {self._kafka.worker_id!r} has started; its events will be read again"
            )
        return failed(error, records, records) if isinstance(error, KafkaError) else error


def _abort(producer: KafkaProducer) -> None:
    with suppress(KafkaError):
        producer.abort_transaction()
    with suppress(KafkaError):
        producer.close(timeout=ABORT_WAIT_S)

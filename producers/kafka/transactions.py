"""Publish each batch with its offsets in one Kafka transaction: all or nothing.

A subscriber with `isolation.level=read_committed` receives every batch exactly once: the broker aborts an
unfinished transaction of a killed worker when the worker starts again. (Apache Kafka rejects the offsets of a
worker that has left the group; the embedded broker takes them from any producer.)
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import kafka.errors
from kafka import KafkaProducer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import MEMBERSHIP, connect, translated
from consumers.kafka.group import is_replaced, replaced
from pipeline.errors import CommitRefused, PublishFailed
from pipeline.events.batch import TopicPartition
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import transaction_options
from producers.kafka.records import Outbound, ReducedCounts, Sent
from producers.kafka.sink import Commit, KafkaSink

ABORT_WAIT_S = 1.0
FENCED = (kafka.errors.ProducerFencedError, kafka.errors.InvalidProducerEpochError)


class TransactionSink(KafkaSink):
    """The sink of the service with `kafka.transactions`.

    Offsets are sent with the group membership at the time of `publish`, so that a worker that was replaced in
    the group can't commit. Raises `UsageError` at construction also when transactions are rejected. A receipt
    raises `CommitRefused` during a rebalance, `UsageError` when another process has taken this worker's
    place, else `PublishFailed`; no record of the batch is visible then.
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
        """`member` returns this worker's group membership; see `KafkaSink` for the others."""
        super().__init__(kafka, topics, now_ms, reduced)
        self._member = member
        self._began_s = time.monotonic()  # of the newest transaction

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
        if self._producer is None and is_replaced(self._kafka, self._member):
            raise replaced(self._kafka)  # a new producer would fence that of the process in our place
        producer = super()._begin()
        self._began_s = time.monotonic()
        producer.begin_transaction()
        return producer

    def _commit_of(self, offsets: Mapping[TopicPartition, int]) -> Commit:
        member = self._member()
        positions = {KafkaPartition(*source): OffsetAndMetadata(at) for source, at in offsets.items()}

        def commit(producer: KafkaProducer) -> None:
            if positions:
                producer.send_offsets_to_transaction(positions, member)
            producer.commit_transaction()

        return commit

    def _unpublished(self, records: Sequence[Outbound], sent: Sent) -> Sequence[Outbound]:
        return records

    def _drop(self, producer: KafkaProducer) -> None:
        """Abort the transaction, waiting briefly.

        kafka-python 3.0.12 carries the offsets of an aborted transaction over into the next one.
        """

        def abort() -> None:
            with suppress(KafkaError):
                producer.abort_transaction()
            with suppress(KafkaError):
                producer.close(timeout=ABORT_WAIT_S)

        thread = threading.Thread(target=abort, name="afresh-abort", daemon=True)
        thread.start()
        thread.join(ABORT_WAIT_S)

    def _translated(self, error: BaseException, records: int) -> BaseException:
        cause = error.__cause__ or error
        causes = (cause, *cause.args)
        if any(isinstance(each, kafka.errors.FencedInstanceIdError) for each in causes):
            return replaced(self._kafka)
        if any(isinstance(each, MEMBERSHIP) for each in causes):
            return CommitRefused(f"a transaction was aborted, the group is being rebalanced: {cause}")
        if any(isinstance(each, FENCED) for each in causes):
            # the broker fences a transaction for its age, or for a second process with the transactional id,
            # which may not have joined the group yet
            age_ms = (time.monotonic() - self._began_s) * 1000
            limit_ms = transaction_options(self._kafka)["transaction_timeout_ms"]
            if age_ms < limit_ms or is_replaced(self._kafka, self._member):
                return replaced(self._kafka)
            return PublishFailed(
                f"a transaction of {records} records was aborted by the broker: it lasted longer than "
                f"kafka.broker_timeout_s = {self._kafka.broker_timeout_s:g}, or another process with "
                f"kafka.worker_id = {self._kafka.worker_id!r} has started; its events will be read again"
            )
        return super()._translated(error, records)

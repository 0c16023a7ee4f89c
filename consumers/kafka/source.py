"""Events from Kafka topics, as one member of a consumer group: partitions merged by record timestamp.

Positions are those of records that were handed out, not of those that were fetched: what is in the buffers
when a partition is revoked is dropped, and read again by its next owner.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import kafka.errors
from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import MEMBERSHIP, brief, open_admin, translated
from consumers.kafka.fetch import Fetcher
from consumers.kafka.group import UnreadPartitions, leave_group, replaced
from consumers.kafka.merge import arrange
from consumers.kafka.reader import PartitionReader
from consumers.kafka.spans import SpanReader
from pipeline.errors import CommitRefused, UsageError
from pipeline.events.batch import IntArray, Polled, Span, TopicPartition
from pipeline.service.ports import Listener
from pipeline.settings import BatchConfig, KafkaConfig

BACKLOG_WAIT_S = 2.0  # the longest wait for a partition that is known to hold more
LEAST_WAIT_S = 0.005  # for records to come together, as the client hands them out piece by piece
GATHER = 2.0
LOOK_S = 0.05  # between looks at the ends of partitions that are waited for
COMMIT_WAIT_S = 5.0
CLOSE_WAIT_S = 5.0
NO_ID = (None, str(UUID(int=0)))


class KafkaSource:
    """The source of the service: see `pipeline.service.ports.Source`.

    Raises `UsageError` when no broker answers at construction, or a topic does not exist; `BrokerLost` from
    every call when the broker has not answered for `kafka.broker_timeout_s`; `CommitRefused` from `commit`;
    `OffsetsGone` from `poll` and `read` when the topic no longer holds the records.
    """

    def __init__(self, kafka: KafkaConfig, topics: Sequence[str], batch: BatchConfig) -> None:
        self._kafka, self._topics = kafka, list(topics)
        self._reader = PartitionReader(kafka, "events", in_group=True)
        self._consumer = self._reader.consumer
        self._counts = dict.fromkeys(topics, 0)  # of partitions
        try:
            self._reader.probe_with(self.partitions())
        except BaseException:
            self._reader.close()
            raise
        self._fetcher = Fetcher(self._reader, kafka, 4 * batch.max_events)
        self._spans = SpanReader(lambda: PartitionReader(kafka, "events", patience=self._reader.patience))
        self._unread = UnreadPartitions(self._consumer.config["metadata_max_age_ms"] / 2000)
        self._started = self._closed = False
        self._polled_at = time.monotonic()  # when the last poll returned

    def start(self, listener: Listener) -> None:
        """Join the group at the next `poll`; from then on `poll` and `close` may call the listener."""
        self._started = True
        self._fetcher.member.subscribe(self._topics, _Forgetting(listener, self._fetcher))

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return when `max_events` records are there, or some time after the first came: `GATHER` times as
        long as the caller was busy with the batch before, at most `max_wait_s`. So a lone event hardly waits,
        and single events do not keep a worker busy all the time.

        A partition that is known to hold more is waited for up to `BACKLOG_WAIT_S`, so that the batches of a
        backlog have the same borders at every run.
        """
        fetcher, merge = self._fetcher, self._fetcher.merge
        began = time.monotonic()
        gather_s = max(LEAST_WAIT_S, GATHER * (began - self._polled_at))
        fetcher.fetch(0.0)  # heartbeats and rebalances; and the client fetches on while this batch is learned
        patience_s = max(BACKLOG_WAIT_S, max_wait_s)
        give_up_at = began + patience_s
        while True:
            behind = fetcher.behind()
            blocking = fetcher.blocking(behind)
            now = time.monotonic()
            due = began + max_wait_s
            if len(merge):
                due = fetcher.waiting_since + (max_wait_s if behind else min(max_wait_s, gather_s))
            if not blocking:
                if len(merge) < max_events and now < due:
                    fetcher.fetch(due - now)
                elif merge.fill(max_events, behind) >= max_events or not fetcher.blocking(behind):
                    self._polled_at = time.monotonic()
                    return merge.take()
            elif now >= give_up_at:
                fetcher.give_up(blocking)
            elif fetcher.fetch(min(give_up_at - now, max(due - now, LOOK_S))):
                give_up_at = time.monotonic() + patience_s
            elif now >= due:
                fetcher.ask_for_ends(blocking)

    def put_back(self, polled: Polled) -> None:
        self._fetcher.merge.put_back(polled)

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        return arrange(spans, self._spans.read(spans), order_R)

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        position = self.start_offsets([partition])[partition] if offset is None else offset
        self._fetcher.seek(partition, position)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        theirs = [KafkaPartition(*source) for source in partitions]
        coordinator = self._consumer._coordinator  # the public call asks for one partition at a time
        found: dict[KafkaPartition, OffsetAndMetadata] = self._reader.patience.insist(
            lambda timeout_ms: coordinator.fetch_committed_offsets(theirs, timeout_ms=timeout_ms),
            "asking for committed offsets",
        )
        return {TopicPartition(*source): at.offset for source, at in found.items()}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit explicit offsets.

        Raise `CommitRefused` when the group is being rebalanced, this member is not in it any more, or the
        broker did not answer within `COMMIT_WAIT_S`: poll, and commit again what is still assigned.
        """
        if self._fetcher.member.joining:  # the broker would take it for a member that was left behind
            raise CommitRefused("offsets were not committed: a join is under way; poll, commit again")
        theirs = {KafkaPartition(*source): OffsetAndMetadata(offset) for source, offset in offsets.items()}
        began = time.monotonic()
        wait_s = min(COMMIT_WAIT_S, self._kafka.broker_timeout_s)
        try:
            self._consumer.commit(theirs, timeout_ms=wait_s * 1000)
        except MEMBERSHIP as error:
            raise CommitRefused(f"offsets were not committed: {brief(error)}; poll, commit again") from error
        except kafka.errors.RetriableError as error:
            self._reader.patience.failed("committing offsets", began, error)
            raise CommitRefused(f"no answer to a commit: {brief(error)}; commit again later") from error
        except kafka.errors.FencedInstanceIdError as error:
            raise replaced(self._kafka) from error
        except KafkaError as error:
            raise translated(error, "committing offsets") from error
        self._reader.answered()

    def keep_alive(self) -> None:
        """Stay in the group; a rebalance waits for `poll`."""
        if self._started:
            self._fetcher.keep_alive()

    def lag(self) -> dict[TopicPartition, int]:
        """Return the lag, also of partitions that no worker reads yet: the worker with partition 0 of the
        first topic asks for them twice every `metadata_max_age_ms`."""
        lags = self._fetcher.lag()
        if TopicPartition(self._topics[0], 0) not in lags:
            return lags
        if self._unread.due() and self._unread.look(self, lags.keys()):
            self._fetcher.member.rejoin()
        return self._unread.records | lags

    def partitions(self) -> list[TopicPartition]:
        for topic, known in self._counts.items():
            self._counts[topic] = max(known, self._reader.count(topic))
            if not self._counts[topic]:
                raise UsageError(
                    f"topics.events names {topic!r}, which does not exist on "
                    f"{self._kafka.bootstrap_servers}; create it, or correct the name"
                )
        counts = sorted(self._counts.items())
        return [TopicPartition(topic, number) for topic, count in counts for number in range(count)]

    def topic_ids(self) -> dict[str, str]:
        """Return the broker's ids of the topics; the embedded broker has none."""
        with open_admin(self._kafka, "asking for topics") as admin:
            described = admin.describe_topics(self._topics)
        return {each["name"]: each["topic_id"] for each in described if each["topic_id"] not in NO_ID}

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {source: held.start for source, held in self._reader.ranges(list(partitions)).items()}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return self._reader.ends(list(partitions))

    def generation(self) -> int:
        return max(0, int(self._consumer.group_metadata().generation_id))

    def member(self) -> ConsumerGroupMetadata:
        """Return this member's current identity in the group."""
        return self._consumer.group_metadata()

    def close(self) -> None:
        """Leave the group; the listener is called for what that revokes. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        member = self.member()
        try:
            self._fetcher.member.close(CLOSE_WAIT_S)
        finally:
            if self._started:
                leave_group(self._kafka, member)
            self._spans.close()


class _Forgetting:
    """Pass changes on to the loop's listener, and drop the buffers of partitions that are taken away."""

    def __init__(self, listener: Listener, fetcher: Fetcher) -> None:
        self._listener = listener
        self._fetcher = fetcher

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._listener.assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        try:
            self._listener.revoked(partitions)  # still assigned: it may commit
        finally:
            self._fetcher.forget(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._fetcher.forget(partitions)
        self._listener.lost(partitions)

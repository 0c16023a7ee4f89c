"""Events from Kafka topics, as one member of a consumer group: partitions merged by record timestamp.

Positions are of records that were handed out, never of those that were fetched: what lies in the buffers when
a partition goes is dropped and read again by its next owner.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import kafka.errors
import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import MEMBERSHIP, connect, consumer_options, open_admin, translated
from consumers.kafka.fetch import Fetcher
from consumers.kafka.group import leave_group, replaced
from consumers.kafka.merge import arrange
from consumers.kafka.reader import Reader
from consumers.kafka.unread import Unread
from pipeline.errors import CommitRefused, UsageError
from pipeline.events.batch import IntArray, Polled, Span, TopicPartition
from pipeline.service.ports import Listener
from pipeline.settings import BatchConfig, KafkaConfig

BACKLOG_WAIT_S = 2.0  # so long is a partition waited for that is known to hold more
LOOK_S = 0.05  # between looks at the ends of partitions that are waited for
COMMIT_WAIT_S = 5.0
CLOSE_WAIT_S = 5.0
NO_ID = (None, str(UUID(int=0)))


class KafkaSource:
    """The source of the service: see `pipeline.service.ports.Source`.

    Raises `UsageError` when no broker answers at construction, or a topic doesn't exist; `BrokerLost` from
    every call when the broker hasn't answered for `kafka.broker_timeout_s`; `CommitRefused` from `commit`;
    `OffsetsGone` from `poll` and `read` when the topic no longer holds what was asked for.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: Sequence[str],
        batch: BatchConfig,
        isolation: str = "read_committed",
    ) -> None:
        options = consumer_options(kafka, in_group=True, isolation=isolation)
        alone = consumer_options(kafka, in_group=False, isolation=isolation)
        self._topics = list(topics)
        self._consumer: KafkaConsumer = connect(KafkaConsumer, options)
        try:
            self._partitions = _existing(self._consumer, self._topics, kafka.bootstrap_servers)
        except BaseException:
            self._consumer.close(autocommit=False)
            raise
        self._fetcher = Fetcher(self._consumer, kafka, 4 * batch.max_events)
        self._fetcher.watch(sorted(self._partitions))
        self._reader = Reader(lambda: connect(KafkaConsumer, alone), self._fetcher.patience)
        self._unread = Unread(options["metadata_max_age_ms"] / 2000)
        self._kafka = kafka
        self._commit_wait_s = min(COMMIT_WAIT_S, kafka.broker_timeout_s)
        self._started = self._closed = False

    def start(self, listener: Listener) -> None:
        """Join the group at the next `poll`; from then on `poll` and `close` may call the listener."""
        self._started = True
        self._fetcher.member.subscribe(self._topics, _Watched(listener, self._fetcher))

    def poll(self, max_events: int, max_wait_s: float) -> Polled:
        """Return up to `max_events` records in order of time.

        Returns at once when they are there, or `max_wait_s` after the first came. A partition that is known
        to hold more is waited for up to `BACKLOG_WAIT_S`, so that the batches of a backlog have the same
        borders at every run.
        """
        if not self._started:
            raise RuntimeError("poll before start: call start(listener) first")
        fetcher, merge = self._fetcher, self._fetcher.merge
        began = time.monotonic()
        fetcher.fetch(0.0)  # heartbeats and rebalances; and the client fetches on while this batch is learned
        patience_s = max(BACKLOG_WAIT_S, max_wait_s)
        blind_until = began + patience_s
        while True:
            behind = fetcher.behind()
            blind = fetcher.blind(behind)
            now = time.monotonic()
            due = (fetcher.waiting_since if len(merge) else began) + max_wait_s
            if not blind:
                if len(merge) < max_events and now < due:
                    fetcher.fetch(due - now)
                elif merge.fill(max_events, behind) >= max_events or not fetcher.blind(behind):
                    return merge.take()
            elif now >= blind_until:
                fetcher.give_up(blind)
            elif fetcher.fetch(min(blind_until - now, max(due - now, LOOK_S))):
                blind_until = time.monotonic() + patience_s
            elif now >= due:
                fetcher.look_at_ends(blind)

    def put_back(self, polled: Polled) -> None:
        """Take the last records of the last poll back: the next one returns them first."""
        self._fetcher.merge.put_back(polled)

    def read(self, spans: tuple[Span, ...], order_R: Sequence[int] | IntArray | None) -> Polled:
        """Read exactly these records again, in no group. Raise `OffsetsGone` when they are gone."""
        records = self._reader.read(spans)
        if order_R is None:
            order_R = np.repeat(np.arange(len(spans), dtype=np.int32), [len(lane) for lane in records])
        return arrange(spans, records, order_R)

    def seek(self, partition: TopicPartition, offset: int | None) -> None:
        """Go on from `offset`; None: from the earliest record. What was buffered is dropped."""
        position = self.start_offsets([partition])[partition] if offset is None else offset
        self._fetcher.seek(partition, position)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed offsets, also before joining it; partitions that have none are left out."""
        theirs = [KafkaPartition(*source) for source in partitions]
        coordinator = self._consumer._coordinator  # the public call asks for one partition at a time
        found: dict[KafkaPartition, OffsetAndMetadata] = self._fetcher.patience.insist(
            lambda timeout_ms: coordinator.fetch_committed_offsets(theirs, timeout_ms=timeout_ms),
            "asking for committed offsets",
        )
        return {TopicPartition(*source): at.offset for source, at in found.items()}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit explicit offsets.

        Raise `CommitRefused` when the group is being rebalanced, has thrown us out, or the broker did not
        answer within `COMMIT_WAIT_S`: poll, and commit again what is still held.
        """
        theirs = {KafkaPartition(*source): OffsetAndMetadata(offset) for source, offset in offsets.items()}
        began = time.monotonic()
        try:
            self._consumer.commit(theirs, timeout_ms=self._commit_wait_s * 1000)
        except MEMBERSHIP as error:
            raise CommitRefused(f"offsets were not committed: {_brief(error)}; poll, commit again") from error
        except kafka.errors.RetriableError as error:
            self._fetcher.patience.failed("committing offsets", began, error)
            raise CommitRefused(f"no answer to a commit: {_brief(error)}; commit again later") from error
        except kafka.errors.FencedInstanceIdError as error:
            raise replaced(self._kafka) from error
        except KafkaError as error:
            raise translated(error, "committing offsets") from error
        self._fetcher.heard()

    def keep_alive(self) -> None:
        """Stay in the group during a long step. The listener isn't called: a rebalance waits for `poll`."""
        if self._started:
            self._fetcher.touch()

    def lag(self) -> dict[TopicPartition, int]:
        """Offsets between each assigned partition's position and its end, as last seen.

        The worker with partition 0 of the first topic adds the records of partitions that no worker reads
        yet; it asks the broker for them twice every `metadata_max_age_ms`.
        """
        lags = self._fetcher.lag()
        if TopicPartition(self._topics[0], 0) not in lags:
            return lags
        if self._unread.due() and self._unread.look(self, lags.keys()):
            self._fetcher.member.rejoin()
        return self._unread.records | lags

    def partitions(self) -> list[TopicPartition]:
        """Every partition of the topics, assigned here or not, in order."""
        for topic in self._topics:
            known = self._consumer.partitions_for_topic(topic)
            self._partitions |= {TopicPartition(topic, partition) for partition in known}
        return sorted(self._partitions)

    def topic_ids(self) -> dict[str, str]:
        """The ids that the broker gave the topics; none where it has none, as the embedded one."""
        admin = open_admin(self._kafka)
        try:
            described = admin.describe_topics(self._topics)
        except KafkaError as error:
            raise translated(error, "asking for topics") from error
        finally:
            admin.close()
        return {each["name"]: each["topic_id"] for each in described if each["topic_id"] not in NO_ID}

    def start_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the oldest record that each partition still holds."""
        return self._fetcher.starts(list(partitions))

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition, before any open transaction."""
        return self._fetcher.ends(list(partitions))

    def generation(self) -> int:
        """The group's generation, 0 outside a group."""
        return max(0, int(self._consumer.group_metadata().generation_id))

    def member(self) -> ConsumerGroupMetadata:
        """Who we are in the group at this moment."""
        return self._consumer.group_metadata()

    def close(self) -> None:
        """Leave the group; the listener is told that everything is revoked. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        member = self.member()
        try:
            self._fetcher.member.close(CLOSE_WAIT_S)
        finally:
            if self._started:
                leave_group(self._kafka, member)
            self._reader.close()


class _Watched:
    """The loop's listener, and the source's own part of each change."""

    def __init__(self, listener: Listener, fetcher: Fetcher) -> None:
        self._listener = listener
        self._fetcher = fetcher

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._listener.assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        try:
            self._listener.revoked(partitions)  # still ours: it may commit
        finally:
            self._fetcher.forget(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._fetcher.forget(partitions)
        self._listener.lost(partitions)


def _existing(consumer: KafkaConsumer, topics: Sequence[str], servers: str) -> set[TopicPartition]:
    """Every partition of the topics. Raise `UsageError` for a topic that doesn't exist."""
    found: set[TopicPartition] = set()
    for topic in topics:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise UsageError(
                f"topics.events names {topic!r}, which does not exist on {servers}: expected a topic of that "
                "broker; create it, or correct the name"
            )
        found |= {TopicPartition(topic, number) for number in numbers}
    return found


def _brief(error: Exception) -> str:
    """The error's name and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

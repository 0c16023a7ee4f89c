"""The items topic from Kafka: every worker reads all of it, in no group.

A worker that lost the broker hears of it from its events; here a silent broker is no news.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError, RetriableError, TopicAuthorizationFailedError

from consumers.kafka.client import (
    Patience,
    connect,
    consumer_options,
    open_admin,
    partition_count,
    translated,
)
from pipeline.errors import AfreshError, UsageError
from pipeline.events.batch import NO_UPDATE, CatalogUpdate, TopicPartition
from pipeline.events.items import OUR_NAMES, item_news
from pipeline.settings import ItemsConfig, KafkaConfig

logger = logging.getLogger(__name__)

AGAIN_S = 10.0  # between looks for a topic that doesn't exist
LOOK_WAIT_S = 3.0  # for the broker at such a look, in which no event is learned
AT_A_TIME = 5_000  # records a poll may bring
FETCH_WAIT_MS = 200


class KafkaItems:
    """The item source of the service: see `pipeline.service.ports.ItemSource`.

    A topic that doesn't exist withdraws nothing, and is looked for again from time to time. One that was made
    anew, or has lost what comes next, is read from its earliest record: what it says is true whatever was
    read before. Raises `UsageError` where the broker refuses to let us read it.
    """

    def __init__(self, kafka: KafkaConfig, topic: str, config: ItemsConfig = OUR_NAMES) -> None:
        self._kafka, self._topic, self._config = kafka, topic, config
        options = consumer_options(kafka, in_group=False)
        self._consumer: KafkaConsumer = connect(KafkaConsumer, options)
        self._patience = Patience(kafka)
        self._ends: dict[KafkaPartition, int] = {}  # of the topic, as last seen
        self._offsets: dict[TopicPartition, int] = {}
        self._partitions: list[KafkaPartition] = []
        self._looked_s = float("-inf")
        self._told = self._ended = False

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; a partition that has none starts at its earliest record."""
        self._offsets = dict(offsets)
        self._judge(self._described(self._kafka.start_timeout_s))

    def poll(self) -> tuple[CatalogUpdate, bool]:
        """Return what has come, at once, and whether the topic is read to its end."""
        if time.monotonic() - self._looked_s >= AGAIN_S:
            self._look_again()
        if not self._partitions:
            return NO_UPDATE, True
        began = time.monotonic()
        # before the topic was read to its end there is nothing else to do than to wait for it
        wait_ms = 0 if self._ended else FETCH_WAIT_MS
        try:
            fetched = self._consumer.poll(timeout_ms=wait_ms, max_records=AT_A_TIME)
            self._ended = self._ended or self._is_at_end()
            self._patience.answered()  # else failures that lie far apart would count as one long one
        except RetriableError as error:
            self._patience.failed(f"reading the topic {self._topic!r}", began, error)
            return NO_UPDATE, False
        except OffsetOutOfRangeError:
            self._take_on(self._partitions)
            return NO_UPDATE, False
        except KafkaError as error:
            raise translated(error, f"reading the topic {self._topic!r}") from error
        if not (fetched or self._ended):
            # raises BrokerLost when the broker does not answer
            self._ends = self._edges(self._consumer.end_offsets, self._partitions)
        records = (record for lane in fetched.values() for record in lane)
        return item_news(records, self._config), self._ended

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)

    def _look_again(self) -> None:
        """Look for a topic that did not exist, or for partitions that were added to one that does."""
        if self._partitions:
            self._look_for_more()
            return
        try:
            described = self._described(min(LOOK_WAIT_S, self._kafka.start_timeout_s))
        except AfreshError as error:
            logger.debug("not looked for topic %r: %s", self._topic, error)  # the next look may do better
        else:
            self._judge(described)

    def _look_for_more(self) -> None:
        """Take on partitions that were added; the client refreshes what it remembers of the topic."""
        self._looked_s = time.monotonic()
        try:
            count = partition_count(self._consumer, self._topic)
        except AfreshError as error:
            logger.debug("not looked at topic %r: %s", self._topic, error)  # the next look may do better
            return
        there = [KafkaPartition(self._topic, number) for number in range(count)]
        if added := [partition for partition in there if partition not in self._partitions]:
            logger.info("topic %r has %d partitions now", self._topic, count)
            self._partitions += added
            self._take_on(added)

    def _described(self, wait_s: float) -> dict[str, Any]:
        """Ask for the topic.

        With a new client each time: the consumer holds a question about an unknown topic back for 0.1 s, in
        which no event would be learned, and a client that is kept answers from memory.
        """
        self._looked_s = time.monotonic()
        admin = open_admin(msgspec.structs.replace(self._kafka, start_timeout_s=wait_s))
        try:
            (described,) = admin.describe_topics([self._topic])
        except KafkaError as error:
            raise translated(error, f"asking for the topic {self._topic!r}") from error
        finally:
            admin.close()
        return dict(described)

    def _judge(self, described: Mapping[str, Any]) -> None:
        """Take all partitions of the topic on, if there are any.

        Raise `UsageError` when the topic is not shown to us: what it withdraws would go on being shown.
        """
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise UsageError(
                f"topics.items = {self._topic!r}: the broker refuses to let us read it; expected the right "
                "READ on this topic, or the name of another: `afresh check` prints the command that grants it"
            )
        numbers = sorted(each["partition_index"] for each in described["partitions"])
        if numbers:
            self._partitions = [KafkaPartition(self._topic, number) for number in numbers]
            self._take_on(self._partitions)
        elif not self._told:
            logger.info("topic %r does not exist: nothing is withdrawn", self._topic)
            self._told = True

    def _take_on(self, partitions: list[KafkaPartition]) -> None:
        """Seek partitions to what comes next, or to their earliest record where that is not there."""
        self._consumer.assign(self._partitions)
        starts = self._edges(self._consumer.beginning_offsets, partitions)
        self._ends |= self._edges(self._consumer.end_offsets, partitions)
        for partition in partitions:
            earliest = starts[partition]
            wanted = self._offsets.pop(TopicPartition(*partition), earliest)
            there = earliest <= wanted <= self._ends[partition]
            self._consumer.seek(partition, wanted if there else earliest)

    def _edges(
        self, ask: Callable[..., dict[KafkaPartition, int]], partitions: list[KafkaPartition]
    ) -> dict[KafkaPartition, int]:
        return self._patience.insist(
            lambda timeout_ms: ask(partitions, timeout_ms=timeout_ms), f"asking for {self._topic!r}"
        )

    def _is_at_end(self) -> bool:
        """Say whether every record is read that was there when we looked; offsets may end in a gap."""
        return all(
            (self._consumer.position(partition, timeout_ms=0) or 0) >= end
            for partition, end in self._ends.items()
        )

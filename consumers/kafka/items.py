"""The items topic from Kafka: every worker reads all of it, in no group.

A worker that lost the broker notices it by its events; here a silent broker changes nothing.
"""

import logging
import time
from collections.abc import Mapping

import msgspec
from kafka.errors import TopicAuthorizationFailedError

from consumers.kafka.client import open_admin
from consumers.kafka.topic import TopicReader
from pipeline.errors import AfreshError, UsageError
from pipeline.events.batch import NO_UPDATE, CatalogUpdate, TopicPartition
from pipeline.events.items import OUR_NAMES, item_news
from pipeline.settings import ItemsConfig, KafkaConfig

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0  # for a topic that does not exist
LOOK_WAIT_S = 3.0  # for the broker at such a look, in which no event is learned
MAX_RECORDS = 5_000  # a poll
FETCH_WAIT_S = 0.2


class KafkaItems:
    """The item source of the service: see `pipeline.service.ports.ItemSource`.

    A topic that does not exist withdraws nothing, and is looked for from time to time. One that was created
    again is read from its earliest record. Raises `UsageError` where the broker denies access.
    """

    def __init__(self, kafka: KafkaConfig, topic: str, config: ItemsConfig = OUR_NAMES) -> None:
        self._kafka, self._topic, self._config = kafka, topic, config
        self._reader: TopicReader | None = None
        self._offsets: Mapping[TopicPartition, int] = {}
        self._looked_s = float("-inf")
        self._is_logged = self._ended = False

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._offsets = dict(offsets)
        self._open(self._kafka.start_timeout_s)

    def poll(self) -> tuple[CatalogUpdate, bool]:
        if self._reader is None and time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            try:
                self._open(min(LOOK_WAIT_S, self._kafka.start_timeout_s))
            except AfreshError as error:
                if isinstance(error.__cause__, TopicAuthorizationFailedError):
                    raise
                logger.debug("did not look for topic %r: %s", self._topic, error)  # the next may do better
        if self._reader is None:
            return NO_UPDATE, True
        # before the topic is read to its end there is nothing else to do than to wait for it
        wait_s = 0.0 if self._ended else FETCH_WAIT_S
        records = self._reader.poll(wait_s, MAX_RECORDS, probe=not self._ended)
        self._ended = self._ended or self._reader.is_at_end()
        return item_news(records, self._config), self._ended

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _open(self, wait_s: float) -> None:
        """Open the topic if it exists.

        It is asked for with a new client each time: a consumer delays a question about an unknown topic by
        0.1 s, in which no event is learned, and a client that is kept answers from memory. Raise `UsageError`
        where access is denied: what the topic withdraws would go on being shown.
        """
        self._looked_s = time.monotonic()
        impatient = msgspec.structs.replace(self._kafka, start_timeout_s=wait_s)
        with open_admin(impatient, f"asking for the topic {self._topic!r}") as admin:
            (described,) = admin.describe_topics([self._topic])
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise UsageError(
                f"topics.items = {self._topic!r}: the broker refuses to let us read it; expected the right "
                "READ on this topic, or the name of another: `afresh check` prints the command that grants it"
            ) from TopicAuthorizationFailedError()
        if described["partitions"]:
            self._reader = TopicReader(self._kafka, self._topic, self._offsets)
        elif not self._is_logged:
            logger.info("topic %r does not exist: nothing is withdrawn", self._topic)
            self._is_logged = True

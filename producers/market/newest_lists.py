"""The newest list of each user, as the recommendations topic has it."""

import threading
import time

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, RetriableError

from consumers.kafka_client import Patience, connect, consumer_options, translated
from pipeline.errors import AfreshError, UsageError
from pipeline.event.records import DEFAULT_USER
from pipeline.settings import KafkaConfig
from producers.market.closed_loop import Listed

RETRY_S = 0.05  # the client has that long to connect again
POLL_MS = 100  # that a poll waits for lists; a close waits as long


class _Item(msgspec.Struct, frozen=True):
    item_id: str


class _List(msgspec.Struct, frozen=True):
    items: list[_Item]
    event_timestamp_ms: int


class NewestLists:
    """Follow the topic from its beginning, in no group; see `producers.market.closed_loop.Lists`.

    A thread reads all the time: who only read when lists are wanted would, between two looks, get no more
    than the client fetches ahead, and fall behind for good at some rate. Records are kept as they came and
    decoded when someone looks. A context manager. Raise `UsageError` when no broker answers or the topic
    doesn't exist.
    """

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        self._patience = Patience(kafka)
        options = consumer_options(kafka, in_group=False) | {"auto_offset_reset": "earliest"}
        self._consumer: KafkaConsumer = connect(KafkaConsumer, options)
        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            self._consumer.close(autocommit=False)
            raise UsageError(
                f"topic {topic!r} does not exist on {kafka.bootstrap_servers}: expected the topic of "
                "rankings; start `afresh run`, or correct topics.recommendations"
            )
        self._consumer.assign([TopicPartition(topic, number) for number in sorted(numbers)])
        self._consumer.seek_to_beginning()
        self._values: dict[bytes, bytes] = {}
        self._decode = msgspec.json.Decoder(_List).decode
        self._closed = threading.Event()
        self._error: AfreshError | None = None
        self._thread = threading.Thread(target=self._follow, name="newest-lists", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Raise what has ended the reading: `BrokerLost` when nobody answered for long."""
        if self._error is not None:
            raise self._error

    def of(self, user_id: str) -> Listed | None:
        """Return the user's newest list, or else the one for people without events; None: neither."""
        value = self._values.get(user_id.encode()) or self._values.get(DEFAULT_USER.encode())
        if value is None:
            return None
        found = self._decode(value)
        return Listed([item.item_id for item in found.items], found.event_timestamp_ms)

    def close(self) -> None:
        """Stop reading and close the consumer."""
        self._closed.set()
        self._thread.join()
        self._consumer.close(autocommit=False)

    def __enter__(self) -> "NewestLists":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self) -> None:
        """Take in what comes until closed, or until an error that `refresh` raises."""
        while self._error is None and not self._closed.is_set():
            try:
                self._poll()
            except AfreshError as error:
                self._error = error

    def _poll(self) -> None:
        began = time.monotonic()
        try:
            polled = self._consumer.poll(timeout_ms=POLL_MS)
            self._patience.answered()
        except RetriableError as error:
            self._patience.failed("reading rankings", began, error)
            self._closed.wait(RETRY_S)
            return
        except KafkaError as error:
            raise translated(error, "reading rankings") from error
        for record in (record for records in polled.values() for record in records):
            if record.value is None:
                self._values.pop(record.key, None)
            else:
                self._values[record.key] = record.value

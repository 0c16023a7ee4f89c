"""The newest list of each user, as the recommendations topic has it."""

import time

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, RetriableError

from consumers.kafka_client import Patience, connect, consumer_options, translated
from pipeline.errors import UsageError
from pipeline.event.records import DEFAULT_USER
from pipeline.settings import KafkaConfig
from producers.closed_loop import Listed

POLL_MS = 5  # a fetch that is on its way comes back in that time, where the broker is near
LOOK_S = 0.05  # for one refresh at most: events must go out meanwhile


class _Item(msgspec.Struct, frozen=True):
    item_id: str


class _List(msgspec.Struct, frozen=True):
    items: list[_Item]
    event_timestamp_ms: int


class NewestLists:
    """Follow the topic from its beginning, in no group; see `producers.closed_loop.Lists`.

    Records are kept as they came and decoded when someone looks. Raise `UsageError` when no broker answers or
    the topic doesn't exist. A context manager.
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

    def refresh(self) -> None:
        """Take in what has come, for a moment at most. Raise `BrokerLost` when nobody answers for long."""
        began = time.monotonic()
        try:
            while time.monotonic() - began < LOOK_S:
                polled = self._consumer.poll(timeout_ms=POLL_MS)
                if not polled:
                    break
                for record in (record for records in polled.values() for record in records):
                    if record.value is None:
                        self._values.pop(record.key, None)
                    else:
                        self._values[record.key] = record.value
            self._patience.answered()
        except RetriableError as error:
            self._patience.failed("reading rankings", began, error)
        except KafkaError as error:
            raise translated(error, "reading rankings") from error

    def of(self, user_id: str) -> Listed | None:
        """Return the user's newest list, or else the one for people without events; None: neither."""
        value = self._values.get(user_id.encode()) or self._values.get(DEFAULT_USER.encode())
        if value is None:
            return None
        found = self._decode(value)
        return Listed([item.item_id for item in found.items], found.event_timestamp_ms)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close(autocommit=False)

    def __enter__(self) -> "NewestLists":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

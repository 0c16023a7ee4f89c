"""The newest list of each user, as the recommendations topic has it."""

import threading

import msgspec

from consumers.kafka.topic import TopicReader
from pipeline.events.records import DEFAULT_USER
from pipeline.settings import KafkaConfig
from producers.simulator.closed_loop import Listed

# Between two fetches: one costs the client as much as a hundred lists, and the embedded broker answers each
# with the few that have just come, or with none, whatever the fetch waits for.
GATHER_S = 0.1


class _Item(msgspec.Struct, frozen=True):
    item_id: str


class _List(msgspec.Struct, frozen=True):
    items: list[_Item]
    event_timestamp_ms: int


class NewestLists:
    """Follow the topic from its beginning, in no group; see `producers.simulator.closed_loop.Lists`.

    A thread reads ten times a second: a reader that waits until lists are wanted would, between two looks,
    get no more than the client fetches ahead, and fall behind at some rate. Records are kept as they came
    and decoded when someone looks. A context manager. Raise `UsageError` when no broker answers or the topic
    doesn't exist.
    """

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        self._tail = TopicReader(kafka, topic, "earliest")
        self._values: dict[bytes | None, bytes] = {}
        self._decode = msgspec.json.Decoder(_List).decode
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="newest-lists", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Raise what has ended the reading, such as `BrokerLost` when nobody answered for long."""
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
        self._tail.close()

    def __enter__(self) -> "NewestLists":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self) -> None:
        """Take in what comes until closed, or until an error that `refresh` raises."""
        try:
            while not self._closed.wait(GATHER_S):
                for record in self._tail.poll(0.0):
                    if record.value is None:
                        self._values.pop(record.key, None)
                    else:
                        self._values[record.key] = record.value
        except Exception as error:  # whatever it is: a thread that ends in silence would freeze all lists
            self._error = error

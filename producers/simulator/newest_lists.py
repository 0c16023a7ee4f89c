"""The newest ranking of each user, read from the recommendations topic."""

import threading

import msgspec

from consumers.kafka.topic import TopicReader
from pipeline.events.records import DEFAULT_USER
from pipeline.settings import KafkaConfig
from producers.simulator.closed_loop import Listed

# Between two fetches: one costs the client as much as a hundred rankings, and the embedded broker answers
# each at once with the few that have just arrived, or with none.
FETCH_INTERVAL_S = 0.1


class _Item(msgspec.Struct, frozen=True):
    item_id: str


class _Ranking(msgspec.Struct, frozen=True):
    items: list[_Item]
    event_timestamp_ms: int


class NewestLists:
    """The `Lists` of the topic from its beginning, read in no group by a thread; a context manager.

    Records are decoded when they are looked up. Raises `UsageError` when no broker answers or the topic
    doesn't exist.
    """

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        self._tail = TopicReader(kafka, topic, "earliest")
        self._values: dict[bytes | None, bytes] = {}
        self._decode = msgspec.json.Decoder(_Ranking).decode
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="newest-lists", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Raise the error that ended the thread, such as `BrokerLost`."""
        if self._error is not None:
            raise self._error

    def of(self, user_id: str) -> Listed | None:
        """Return the newest ranking of a user, else the default ranking; None: there is neither."""
        value = self._values.get(user_id.encode()) or self._values.get(DEFAULT_USER.encode())
        if value is None:
            return None
        found = self._decode(value)
        return Listed([item.item_id for item in found.items], found.event_timestamp_ms)

    def __enter__(self) -> "NewestLists":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._tail.close()

    def _follow(self) -> None:
        try:
            while not self._closed.wait(FETCH_INTERVAL_S):
                for record in self._tail.poll(0.0):
                    if record.value is None:
                        self._values.pop(record.key, None)
                    else:
                        self._values[record.key] = record.value
        except Exception as error:  # any error: without it the rankings would silently stop
            self._error = error

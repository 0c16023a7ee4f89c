"""The items topic: what its records say, and a source that reads all of them on every kind of broker."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NoReturn

import msgspec
import pytest
from brokers.clients import config, make_topic
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from consumers import kafka_items
from consumers.kafka_items import KafkaItems
from consumers.list_items import ListItems
from consumers.list_source import ListLog, ListRecord
from pipeline.errors import BrokerLost, UsageError
from pipeline.event.batch import ItemChange, ItemNews, TopicPartition
from pipeline.event.items import item_news
from pipeline.run.ports import ItemSource
from pipeline.settings import KafkaConfig

AVAILABLE, GONE = True, False


def news_of(key: bytes | None, value: bytes | None) -> ItemNews:
    return item_news([ListRecord("items", 0, 7, 0, key, value)])


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        (b"lamp", b'{"item_id": "lamp", "available": false}', ("lamp", GONE)),
        (b"lamp", b'{"item_id": "lamp"}', ("lamp", AVAILABLE)),
        (b"lamp", b"{}", ("lamp", AVAILABLE)),  # the key is the item's id
        (b"lamp", b'{"available": false, "price": [1, 2]}', ("lamp", GONE)),
        (None, b'{"item_id": "lamp", "available": true}', ("lamp", AVAILABLE)),
        (None, b'{"item_id": 42, "available": false}', ("42", GONE)),
        (b"lamp", None, ("lamp", GONE)),
        ("Größe 44".encode(), None, ("Größe 44", GONE)),
    ],
)
def test_a_record_says_whether_an_item_may_be_shown(
    key: bytes | None, value: bytes | None, change: tuple[str, bool]
) -> None:
    assert news_of(key, value).changes == (ItemChange(*change),)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"lamp", b"{", "not_json"),
        (b"lamp", b"[]", "wrong_type"),
        (b"lamp", b'{"available": "no"}', "wrong_type"),
        (b"lamp", b'{"item_id": 7.5}', "wrong_type"),
        (b"lamp", b'{"item_id": true}', "wrong_type"),
        (None, b"{}", "empty_id"),
        (None, None, "empty_id"),
        (b"\xff", None, "not_utf8"),
        (b"lamp", b'{"item_id": "' + b"x" * 257 + b'"}', "long_id"),
    ],
)
def test_a_record_that_says_nothing_is_kept_as_it_came_with_the_reason(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    (bad,) = news_of(key, value).bad
    assert (bad.key, bad.value, bad.reason) == (key, value, reason)
    assert "expected" in bad.detail
    assert (bad.topic, bad.partition, bad.offset) == ("items", 0, 7)


def test_the_last_word_on_an_item_counts() -> None:
    log = ListLog({"items": 1})
    for item, value in (("a", None), ("b", None), ("a", b"{}")):
        log.append(value, topic="items", key=item.encode(), skip=2)
    news = item_news(log.read(TopicPartition("items", 0), 0))
    assert news.changes == (ItemChange("b", GONE), ItemChange("a", AVAILABLE))
    assert news.offsets == (("items", 0, 9),)


def test_the_journal_gives_news_back_byte_for_byte() -> None:
    news = item_news(
        [ListRecord("items", 1, 4, 99, b"\x00\xff", b"\xfe"), ListRecord("items", 0, 2, 5, b"lamp", None)]
    )
    assert msgspec.json.decode(msgspec.json.encode(news), type=ItemNews) == news


# Sources


class ListShelf:
    """An items topic in memory."""

    topic = "items"

    def __init__(self, request: pytest.FixtureRequest, name: str) -> None:
        self._log = ListLog({self.topic: 2})

    def put(self, partition: int, key: str, value: bytes | None) -> None:
        self._log.append(value, topic=self.topic, partition=partition, key=key.encode())

    def source(self) -> ItemSource:
        return ListItems(self._log)

    def close(self) -> None:
        pass


class KafkaShelf:
    """An items topic of its own on a broker."""

    broker = ""

    def __init__(self, request: pytest.FixtureRequest, name: str) -> None:
        self._address = request.getfixturevalue(self.broker)
        self.topic = name
        make_topic(self._address, name, 2, {"cleanup.policy": "compact"})
        self._producer = KafkaProducer(bootstrap_servers=self._address)

    def put(self, partition: int, key: str, value: bytes | None) -> None:
        self._producer.send(self.topic, value=value, key=key.encode(), partition=partition).get(timeout=20)

    def source(self) -> ItemSource:
        return KafkaItems(config(self._address), self.topic)

    def close(self) -> None:
        self._producer.close(timeout=5)


class EmbeddedShelf(KafkaShelf):
    broker = "embedded_broker"


class ApacheShelf(KafkaShelf):
    broker = "apache_broker"


@pytest.fixture(
    params=[
        ListShelf,
        pytest.param(EmbeddedShelf, marks=pytest.mark.kafka),
        pytest.param(ApacheShelf, marks=pytest.mark.kafka),
    ]
)
def shelf(
    request: pytest.FixtureRequest, topic_name: Callable[[str], str]
) -> Iterator[ListShelf | KafkaShelf]:
    made: ListShelf | KafkaShelf = request.param(request, topic_name("items"))
    yield made
    made.close()


def read_to_the_end(source: ItemSource) -> tuple[dict[str, bool], dict[TopicPartition, int]]:
    """Return the last words on all items, and the next offsets."""
    said: dict[str, bool] = {}
    offsets: dict[TopicPartition, int] = {}
    ended = False
    while not ended:
        news, ended = source.poll()
        said |= {change.item_id: change.available for change in news.changes}
        offsets |= {TopicPartition(*at): offset for *at, offset in news.offsets}
    return said, offsets


def test_a_source_reads_all_partitions_to_their_end_and_goes_on_from_there(
    shelf: ListShelf | KafkaShelf,
) -> None:
    for number in range(6):
        shelf.put(number % 2, f"i{number}", None if number < 3 else b"{}")
    first = shelf.source()
    first.start({})
    said, offsets = read_to_the_end(first)
    first.close()
    assert said == {"i0": GONE, "i1": GONE, "i2": GONE, "i3": AVAILABLE, "i4": AVAILABLE, "i5": AVAILABLE}
    assert offsets == {TopicPartition(shelf.topic, 0): 3, TopicPartition(shelf.topic, 1): 3}
    shelf.put(1, "i9", None)
    second = shelf.source()
    second.start(offsets)
    assert read_to_the_end(second)[0] == {"i9": GONE}
    second.close()


def test_offsets_that_the_topic_does_not_hold_send_a_source_to_the_earliest_record(
    shelf: ListShelf | KafkaShelf,
) -> None:
    shelf.put(0, "lamp", None)
    source = shelf.source()
    source.start({TopicPartition(shelf.topic, 0): 70})
    said, _ = read_to_the_end(source)
    source.close()
    assert said == {"lamp": GONE}


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_no_news(broker: str, topic_name: Callable[[str], str]) -> None:
    source = KafkaItems(config(broker), topic_name("none"))
    source.start({})
    assert source.poll() == (ItemNews(), True)
    source.close()


@pytest.mark.kafka
def test_a_broker_that_is_away_is_no_news_where_the_topic_was_not_there(
    broker: str, topic_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic_name("none")
    source = KafkaItems(config(broker), name)
    source.start({})
    monkeypatch.setattr(kafka_items, "AGAIN_S", 0.0)
    with monkeypatch.context() as away:
        away.setattr(kafka_items, "open_admin", _nobody_answers)
        assert source.poll() == (ItemNews(), True)
    make_topic(broker, name, 1)
    with closing(KafkaProducer(bootstrap_servers=broker)) as producer:
        producer.send(name, key=b"lamp").get(timeout=20)
    news = ItemNews()
    while not news:
        news, _ = source.poll()
    assert news.changes == (ItemChange("lamp", GONE),)
    source.close()


def _nobody_answers(kafka: KafkaConfig) -> NoReturn:
    raise UsageError("no broker answered")


def test_failures_that_lie_far_apart_are_not_taken_for_one_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, clock = _Failing(), [0.0]
    monkeypatch.setattr(kafka_items, "connect", lambda make, options: consumer)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    source = KafkaItems(KafkaConfig(broker_timeout_s=30.0), "items")
    source._partitions = [TopicPartition("items", 0)]
    assert source.poll() == (ItemNews(), False)
    consumer.fails = False
    assert source.poll() == (ItemNews(), True)
    consumer.fails, clock[0] = True, 3_600.0
    assert source.poll() == (ItemNews(), False)
    clock[0] += 31.0
    with pytest.raises(BrokerLost, match=r"31 s while reading the topic 'items'"):
        source.poll()


class _Failing:
    """A consumer that reads nothing, or has no answer."""

    fails = True

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def poll(self, timeout_ms: float, max_records: int) -> dict[TopicPartition, list[ListRecord]]:
        if self.fails:
            raise KafkaTimeoutError
        return {}

"""The items topic: what its records say, and a source that reads all of them on every kind of broker."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple, NoReturn
from unittest.mock import Mock

import msgspec
import pytest
from harness.clients import config, make_topic
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from consumers.kafka import items as kafka_items
from consumers.kafka import reader as kafka_reader
from consumers.kafka.items import KafkaItems
from consumers.kafka.topic import TopicReader
from consumers.memory import MemoryItems, MemoryLog, MemoryRecord
from pipeline.errors import BrokerLost, UsageError
from pipeline.events.batch import CatalogUpdate, ItemChange, TopicPartition
from pipeline.events.items import item_news
from pipeline.service.ports import ItemSource
from pipeline.settings import ItemsConfig, KafkaConfig
from producers.simulator.simulation import withdrawal

AVAILABLE, GONE = True, False
HERE, NAMES = b'{"on": true}', ItemsConfig(fields={"available": "on"})
STOCK: dict[str, str | list[str]] = {"item_id": "sku", "available": "in_stock"}
ID: dict[str, str | list[str]] = {"item_id": "id"}
NOTHING: dict[str, str | list[str]] = {}
OUTSIDE: dict[str, str | list[str]] = {"item_id": ["payload.after.id", "payload.before.id"]}
FRAME = bytes([0, 0, 0, 0, 7])  # a schema registry's
YES = (b"true", b"1", b"12", b"0.5", b'"true"', b'"Yes"', b'"1"', b'"3.0"')
NO = (b"false", b"0", b"-2", b"0.0", b'"FALSE"', b'"no"', b'"0"', b'" off "', b"null")
UNCLEAR = (b'"perhaps"', b'""', b"[]", b"{}", b'"1e5"', b'"nan"')
BEFORE, AFTER = {"id": 4, "on": True}, {"id": 4, "on": False}


def news_of(key: bytes | None, value: bytes | None, **fields: str | list[str]) -> CatalogUpdate:
    return item_news([MemoryRecord("items", 0, 7, 0, key, value)], ItemsConfig(fields=fields))


def change_record(op: str | None, before: object, after: object, schema: bool = False) -> bytes:
    """A record as Debezium writes it, with its envelope of schema and payload or without."""
    payload = {"before": before, "after": after, "source": {"table": "item"}, "ts_ms": 1}
    payload |= {"op": op} if op else {}
    return json.dumps({"schema": {"type": "struct"}, "payload": payload} if schema else payload).encode()


@pytest.mark.parametrize(
    ("key", "value", "fields", "said"),
    [
        # the default names
        (b"lamp", b'{"item_id": "lamp", "available": false}', NOTHING, ("lamp", GONE)),
        (b"lamp", b'{"item_id": "lamp"}', NOTHING, ("lamp", AVAILABLE)),
        (b"lamp", b'{"available": true}', NOTHING, ("lamp", AVAILABLE)),  # the key is the item's id
        (b"lamp", b'{"available": false, "price": [1, 2]}', NOTHING, ("lamp", GONE)),
        (None, b'{"item_id": 42, "available": false}', NOTHING, ("42", GONE)),
        (b"lamp", None, NOTHING, ("lamp", GONE)),
        ("Größe 44".encode(), None, NOTHING, ("Größe 44", GONE)),
        (b"lamp", b"{", NOTHING, "not_json"),
        (b"lamp", b"[]", NOTHING, "not_object"),
        (b"lamp", b"{}", NOTHING, "missing_field"),  # states none of our fields
        (b"lamp", b'{"item_id": 7.5}', NOTHING, "wrong_type"),
        (None, b'{"available": false}', NOTHING, "missing_field"),
        (None, None, NOTHING, "missing_field"),
        (b"", None, NOTHING, "empty_id"),
        (b"\xff", None, NOTHING, "not_utf8"),
        (b"lamp", b'{"item_id": "' + b"x" * 257 + b'"}', NOTHING, "long_id"),
        # shapes of withdrawals
        (b'{"id":4}', None, NOTHING, ("4", GONE)),
        (b'"5"', None, NOTHING, ("5", GONE)),
        # names that are not mapped
        (b"0", b'{"sku":"0","in_stock":false}', NOTHING, "missing_field"),
        (b"0", change_record("u", BEFORE, AFTER), NOTHING, "missing_field"),
        # mapped names, second choices, the key
        (b"k", b'{"sku":"0","in_stock":true}', STOCK, ("0", AVAILABLE)),
        (b"k", b'{"in_stock":0}', STOCK, ("k", GONE)),
        (b"k", b'{"sku":null,"id":"0"}', {"item_id": ["sku", "id"]}, ("0", AVAILABLE)),
        (b"k", b'{"a":{"id":"0"},"n":{"left":0}}', {"item_id": "a.id", "available": "n.left"}, ("0", GONE)),
        (b"k", b'{"n":{"left":null}}', {"available": ["stock", "n.left"]}, ("k", GONE)),
        (b"k", b'{"title":"Lamp"}', {"item_id": "$key"}, ("k", AVAILABLE)),
        (b"k", b'{"item_id":"other","on":false}', {"item_id": "$key", "available": "on"}, ("k", GONE)),
        (b"k", b'{"title":"Lamp"}', {"item_id": "$key", "available": "on"}, "missing_field"),
        (None, b'{"sku":"0"}', {"item_id": ["$key", "sku"]}, ("0", AVAILABLE)),
        # availability
        *[(b"k", b'{"available":%s}' % each, NOTHING, ("k", AVAILABLE)) for each in YES],
        *[(b"k", b'{"available":%s}' % each, NOTHING, ("k", GONE)) for each in NO],
        *[(b"k", b'{"available":%s}' % each, NOTHING, "wrong_type") for each in UNCLEAR],
        (b"k", b'{"sku":7,"__deleted":"true"}', STOCK, ("7", GONE)),  # Debezium's row without its envelope
        (b"k", b'{"sku":7,"__deleted":"false"}', STOCK, ("7", AVAILABLE)),
        # keys
        (b"007", None, NOTHING, ("007", GONE)),
        (b"[new] lamp", None, NOTHING, ("[new] lamp", GONE)),
        (b'{"shop":1,"sku":"4"}', None, STOCK, ("4", GONE)),
        (b'{"id":4,"shop":1}', None, {"item_id": "after.id"}, ("4", GONE)),
        (b'{"_id":{"$oid":"65a"}}', None, NOTHING, ("65a", GONE)),
        (b'{"schema":{"type":"struct"},"payload":{"id":4}}', None, NOTHING, ("4", GONE)),
        (b'{"schema":{"type":"string"},"payload":"lamp"}', None, NOTHING, ("lamp", GONE)),
        (FRAME + b'{"id":4}', None, NOTHING, ("4", GONE)),
        (FRAME + b"5", None, NOTHING, ("5", GONE)),
        (FRAME + b"\x08", None, NOTHING, "schema_framed"),
        (b"\0\0\0\5", None, NOTHING, "wrong_type"),  # a binary number
        (b'{"shop":1,"nr":2}', None, NOTHING, "missing_field"),
        (b'["4"]', None, NOTHING, "wrong_type"),
        # values that are none, and a schema registry's frame
        (b"k", b"", NOTHING, ("k", GONE)),
        (b"k", b"null", NOTHING, ("k", GONE)),
        (b"k", b'{"schema":null,"payload":null}', NOTHING, ("k", GONE)),
        (b"k", FRAME + b'{"available":false}', NOTHING, ("k", GONE)),
        (b"k", FRAME + b"\x02\x08lamp", NOTHING, "schema_framed"),
        (b"k", b'{"schema":{},"payload":{"sku":"0","in_stock":"no"}}', STOCK, ("0", GONE)),
        (b"k", b"[" * 500, NOTHING, "too_deep"),
        (b"k", b'{"available":NaN}', NOTHING, "not_finite"),
        # change records
        (None, change_record("c", None, AFTER), ID, ("4", AVAILABLE)),
        (None, change_record("r", None, AFTER, schema=True), ID, ("4", AVAILABLE)),
        (None, change_record("u", BEFORE, AFTER), ID | {"available": "on"}, ("4", GONE)),
        (None, change_record("u", BEFORE, AFTER, schema=True), OUTSIDE, ("4", AVAILABLE)),
        (None, change_record("d", BEFORE, None, schema=True), OUTSIDE, ("4", GONE)),
        (None, change_record(None, BEFORE, None), {"item_id": ["after.id", "before.id"]}, ("4", GONE)),
        (b'{"id":4}', change_record("d", None, None), ID, ("4", GONE)),
        (b'{"id":4}', change_record("t", None, None), ID, "wrong_type"),
        (None, change_record("d", BEFORE, None), NOTHING, "missing_field"),
    ],
)  # fmt: skip
def test_each_shape_of_a_record_withdraws_announces_or_is_a_dead_letter_with_its_reason(
    key: bytes | None, value: bytes | None, fields: dict[str, str | list[str]], said: tuple[str, bool] | str
) -> None:
    news = news_of(key, value, **fields)
    if isinstance(said, tuple):
        assert (news.changes, news.bad) == ((ItemChange(*said),), ())
        return
    assert news.changes == ()
    (bad,) = news.bad
    assert (bad.reason, bad.key, bad.value) == (said, key, value)
    assert (bad.topic, bad.partition, bad.offset) == ("items", 0, 7)
    assert re.search("expected|map it", bad.detail)


def test_a_record_without_a_field_of_ours_says_which_it_has() -> None:
    (bad,) = news_of(b"0", b'{"sku":"0","in_stock":false}').bad
    assert "no `item_id` or `available` in the record, which has 'sku', 'in_stock'" in bad.detail
    assert "items.fields" in bad.detail


@pytest.mark.parametrize("fields", [NOTHING, STOCK, OUTSIDE, {"item_id": "$key", "available": "n.left"}])
def test_the_simulator_withdraws_under_configured_names(fields: dict[str, str | list[str]]) -> None:
    value = withdrawal("tea-1", ItemsConfig(fields=fields))
    assert news_of(b"tea-1", value, **fields).changes == (ItemChange("tea-1", GONE),)


names = st.sampled_from(["item_id", "available", "schema", "payload", "before", "after", "op", "__deleted"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=8,
)


@given(st.none() | st.binary() | json_values, st.none() | st.binary() | json_values)
def test_any_record_is_read_or_a_dead_letter(key: object, value: object) -> None:
    news = news_of(*(x if isinstance(x, bytes | None) else json.dumps(x).encode() for x in (key, value)))
    assert len(news.changes) + len(news.bad) == 1


def test_the_last_word_on_an_item_counts() -> None:
    log = MemoryLog({"items": 1})
    for item, value in (("a", None), ("b", None), ("a", HERE)):
        log.append(value, topic="items", key=item.encode(), skip=2)
    news = item_news(log.read(TopicPartition("items", 0), 0), NAMES)
    assert news.changes == (ItemChange("b", GONE), ItemChange("a", AVAILABLE))
    assert news.offsets == (("items", 0, 9),)


def test_the_journal_gives_news_back_byte_for_byte() -> None:
    news = item_news(
        [MemoryRecord("items", 1, 4, 99, b"\x00\xff", b"\xfe"), MemoryRecord("items", 0, 2, 5, b"lamp", None)]
    )
    assert msgspec.json.decode(msgspec.json.encode(news), type=CatalogUpdate) == news


# Sources


class Topic(NamedTuple):
    """An items topic of two partitions: how to append a record, and to make a source."""

    name: str
    put: Callable[[int, str, bytes | None], object]
    source: Callable[[], ItemSource]


@pytest.fixture(
    params=[
        "memory",
        pytest.param("embedded_broker", marks=pytest.mark.kafka),
        pytest.param("apache_broker", marks=pytest.mark.kafka),
    ]
)
def topic(request: pytest.FixtureRequest, topic_name: Callable[[str], str]) -> Iterator[Topic]:
    if request.param == "memory":
        log = MemoryLog({"items": 2})
        yield Topic(
            "items",
            lambda at, key, value: log.append(value, topic="items", partition=at, key=key.encode()),
            lambda: MemoryItems(log, config=NAMES),
        )
        return
    address, name = request.getfixturevalue(request.param), topic_name("items")
    make_topic(address, name, 2, {"cleanup.policy": "compact"})
    with closing(KafkaProducer(bootstrap_servers=address)) as producer:
        yield Topic(
            name,
            lambda at, key, value: producer.send(name, value, key.encode(), partition=at).get(timeout=20),
            lambda: KafkaItems(config(address), name, NAMES),
        )


def read_to_the_end(
    source: ItemSource, start: dict[TopicPartition, int]
) -> tuple[dict[str, bool], dict[TopicPartition, int]]:
    """Return the last words on all items, and the next offsets; close the source."""
    source.start(start)
    said: dict[str, bool] = {}
    offsets: dict[TopicPartition, int] = {}
    ended = False
    while not ended:
        news, ended = source.poll()
        said |= {change.item_id: change.available for change in news.changes}
        offsets |= {TopicPartition(*at): offset for *at, offset in news.offsets}
    source.close()
    return said, offsets


def test_a_source_reads_all_partitions_to_their_end_and_goes_on_from_there(topic: Topic) -> None:
    for number in range(6):
        topic.put(number % 2, f"i{number}", None if number < 3 else HERE)
    said, offsets = read_to_the_end(topic.source(), {})
    assert said == {"i0": GONE, "i1": GONE, "i2": GONE, "i3": AVAILABLE, "i4": AVAILABLE, "i5": AVAILABLE}
    assert offsets == {TopicPartition(topic.name, 0): 3, TopicPartition(topic.name, 1): 3}
    topic.put(1, "i9", None)
    assert read_to_the_end(topic.source(), offsets)[0] == {"i9": GONE}


def test_offsets_that_the_topic_does_not_hold_send_a_source_to_the_earliest_record(topic: Topic) -> None:
    topic.put(0, "lamp", None)
    assert read_to_the_end(topic.source(), {TopicPartition(topic.name, 0): 70})[0] == {"lamp": GONE}


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_no_news_nor_is_a_broker_that_is_away_meanwhile(
    broker: str, topic_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_answers(*_: object) -> NoReturn:
        raise UsageError("no broker answered")

    name = topic_name("none")
    source = KafkaItems(config(broker), name)
    source.start({})
    assert source.poll() == (CatalogUpdate(), True)
    monkeypatch.setattr(kafka_items, "LOOK_EVERY_S", 0.0)
    with monkeypatch.context() as away:
        away.setattr(kafka_items, "open_admin", nobody_answers)
        assert source.poll() == (CatalogUpdate(), True)
    make_topic(broker, name, 1)
    with closing(KafkaProducer(bootstrap_servers=broker)) as producer:
        producer.send(name, key=b"lamp").get(timeout=20)
    news = CatalogUpdate()
    while not news:
        news, _ = source.poll()
    assert news.changes == (ItemChange("lamp", GONE),)
    source.close()


def test_failures_that_lie_far_apart_are_not_taken_for_one_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Mock(**{"partitions_for_topic.return_value": {0}, "position.return_value": 0})
    client.beginning_offsets.return_value = client.end_offsets.return_value = {TopicPartition("items", 0): 0}
    clock, kafka = [0.0], KafkaConfig(broker_timeout_s=30.0)
    monkeypatch.setattr(kafka_reader, "connect", lambda make, options: client)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    source = KafkaItems(kafka, "items")
    source._reader = TopicReader(kafka, "items", "earliest")
    for clock[0], fails in ((0.0, True), (1.0, True), (2.0, False), (3_600.0, True)):
        client.poll = Mock(side_effect=KafkaTimeoutError if fails else None, return_value={})
        assert source.poll() == (CatalogUpdate(), True)
    clock[0] += 31.0
    with pytest.raises(BrokerLost, match=r"31 s while reading the topic 'items'"):
        source.poll()

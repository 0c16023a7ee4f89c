"""Worlds for the contract of sinks: topics that outlive the sinks that publish to them.

`rankings` returns a user's in order (None: a tombstone), `committed` the offset of `source`. A factory takes
pytest's request, for fixtures such as a broker.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import pytest
from harness.clients import config, lying_on, make_topic
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.structs import ConsumerGroupMetadata

from consumers.memory import MemoryRecord
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, RankedItem, Ranking
from pipeline.service.clock import SystemClock
from pipeline.settings import TopicsConfig
from producers.kafka.sink import KafkaSink
from producers.kafka.topics import create_topics
from producers.kafka.transactions import TransactionSink
from producers.memory import MemorySink, Outbox

now_ms = SystemClock().now_ms
Letter = tuple[bytes | None, bytes | None, str]  # key, value, reason


def ranking(user_id: str, ranking_id: str = "r1") -> Ranking:
    return Ranking(user_id, ranking_id, [RankedItem("i1", 1.5, ["i0"])], 1_000, 900, "attention", 7)


def reject(value: bytes | None, key: bytes | None) -> Reject:
    record = MemoryRecord("events", 0, 41, 1_700_000_000_000, key, value)
    return Reject(record, "not_json", "expected JSON, got \u00ff")


class MemoryWorld:
    source = TopicPartition("events", 0)

    def __init__(self, commits: bool) -> None:
        self._outbox = Outbox()
        self._offsets: dict[TopicPartition, int] = {}
        self._commits = commits

    def sink(self) -> MemorySink:
        return MemorySink(self._outbox, commit=self._offsets.update if self._commits else None)

    def rankings(self, user_id: str) -> list[Ranking | None]:
        found: list[Ranking | None] = [each for each in self._outbox.rankings if each.user_id == user_id]
        return found + [None] * (user_id in self._outbox.removed_users)

    def letters(self) -> list[Letter]:
        return [(each.record.key, each.record.value, each.reason) for each in self._outbox.rejects]

    def alarms(self) -> list[DriftAlarm]:
        return self._outbox.alarms

    def committed(self) -> int | None:
        return self._offsets.get(self.source)

    def close(self) -> None:
        pass


class KafkaWorld:
    """The world of the two Kafka sinks; with `max_bytes` the output topics reject larger records."""

    def __init__(self, address: str, topics: TopicsConfig, transactions: bool, max_bytes: int = 0) -> None:
        self.address, self.topics, self.transactions = address, topics, transactions
        self.kafka = config(address, topics.recommendations)
        if max_bytes:
            for name in (topics.recommendations, topics.dead_letters, topics.drift):
                make_topic(address, name, configs={"max.message.bytes": str(max_bytes)})
        create_topics(self.kafka, topics, partitions=3, replication=1)
        self.source, self.other = (TopicPartition(next(iter(topics.event_topics())), n) for n in range(2))
        self.member = ConsumerGroupMetadata(self.kafka.group_id)
        self.reduced: Counter[tuple[str, str]] = Counter()
        self._open: list[KafkaSink | TransactionSink] = []

    def sink(self, clock: Callable[[], int] = now_ms) -> KafkaSink | TransactionSink:
        reduced = self.reduced.update
        made: KafkaSink | TransactionSink
        if self.transactions:
            made = TransactionSink(self.kafka, self.topics, clock, lambda: self.member, reduced)
        else:
            made = KafkaSink(self.kafka, self.topics, clock, reduced)
        self._open.append(made)
        return made

    def records(self) -> list[ConsumerRecord]:
        return lying_on(self.address, self.topics.recommendations)

    def users(self) -> list[str]:
        return sorted(record.key.decode() for record in self.records())

    def rankings(self, user_id: str) -> list[Ranking | None]:
        found = [record.value for record in self.records() if record.key == user_id.encode()]
        return [None if value is None else msgspec.json.decode(value, type=Ranking) for value in found]

    def dead_letters(self) -> list[ConsumerRecord]:
        return lying_on(self.address, self.topics.dead_letters)

    def letters(self) -> list[Letter]:
        return [(r.key, r.value, dict(r.headers)["reason"].decode()) for r in self.dead_letters()]

    def alarms(self) -> list[DriftAlarm]:
        records = lying_on(self.address, self.topics.drift)
        return [msgspec.json.decode(record.value, type=DriftAlarm) for record in records]

    def committed(self) -> int | None:
        return self.offsets()[self.source]

    def offsets(self) -> Mapping[TopicPartition, int | None]:
        options = {"group_id": self.kafka.group_id, "isolation_level": "read_committed"}
        consumer = KafkaConsumer(bootstrap_servers=self.address, **options)
        offsets = {each: consumer.committed(KafkaPartition(*each)) for each in (self.source, self.other)}
        consumer.close(autocommit=False)
        return offsets

    def close(self) -> None:
        for sink in self._open:
            sink.close()


World = MemoryWorld | KafkaWorld


def topics_named(topic_name: Callable[[str], str]) -> TopicsConfig:
    return TopicsConfig(
        events=[topic_name("events")],
        items=topic_name("items"),
        recommendations=topic_name("recommendations"),
        dead_letters=topic_name("dead-letter"),
        drift=topic_name("drift"),
    )


def kafka_world(broker: str, transactions: bool) -> Callable[[pytest.FixtureRequest], World]:

    def make(request: pytest.FixtureRequest) -> World:
        topics = topics_named(request.getfixturevalue("topic_name"))
        return KafkaWorld(request.getfixturevalue(broker), topics, transactions)

    return make


FACTORIES: list[object] = [
    pytest.param(lambda request: MemoryWorld(commits=False), id="memory"),
    pytest.param(lambda request: MemoryWorld(commits=True), id="memory-commits"),
    *(
        pytest.param(
            kafka_world(f"{broker}_broker", transactions),
            id=f"{'transactions' if transactions else 'kafka'}-{broker}",
            marks=pytest.mark.kafka,
        )
        for transactions in (False, True)
        for broker in ("embedded", "apache")
    ),
]
SINKS = {MemorySink, KafkaSink, TransactionSink}

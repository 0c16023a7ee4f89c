"""Worlds for the contract of sources: a stream with partitions, and members of one group that read it.

A member buffers at most 8 records a partition if it can. A factory takes pytest's request,
for fixtures such as a broker, and the number of partitions.
"""

from collections.abc import Callable

import pytest
from harness.clients import config, make_topic
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition

from consumers.kafka.source import KafkaSource
from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import Source
from pipeline.settings import BatchConfig


class MemoryWorld:
    topic = "events"

    def __init__(self, request: pytest.FixtureRequest, partitions: int) -> None:
        self._log = MemoryLog({self.topic: partitions})

    def publish(self, partition: int, timestamp: int, value: bytes | None, key: bytes | None = None) -> None:
        self._log.append(value, topic=self.topic, partition=partition, timestamp=timestamp, key=key)

    def source(self) -> Source:
        return MemorySource(self._log)

    def trim(self, partition: int, offset: int) -> None:
        self._log.trim(TopicPartition(self.topic, partition), offset)

    def close(self) -> None:
        pass


class KafkaWorld:
    def __init__(self, broker: str, topic: str, partitions: int) -> None:
        self.topic, self._broker = topic, broker
        make_topic(broker, topic, partitions)
        self._producer = KafkaProducer(bootstrap_servers=broker)

    def publish(self, partition: int, timestamp: int, value: bytes | None, key: bytes | None = None) -> None:
        at = {"partition": partition, "timestamp_ms": timestamp}
        self._producer.send(self.topic, value=value, key=key, **at).get(timeout=20)

    def source(self) -> Source:
        return KafkaSource(config(self._broker, self.topic), [self.topic], BatchConfig())

    def trim(self, partition: int, offset: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self._broker)
        admin.delete_records({KafkaPartition(self.topic, partition): offset})
        admin.close()

    def close(self) -> None:
        self._producer.close(timeout=5)


World = MemoryWorld | KafkaWorld
Factory = Callable[[pytest.FixtureRequest, int], World]


def kafka_world(broker: str) -> Factory:
    def make(request: pytest.FixtureRequest, partitions: int) -> World:
        topic = request.getfixturevalue("topic_name")("contract")
        return KafkaWorld(request.getfixturevalue(broker), topic, partitions)

    return make


FACTORIES: list[object] = [
    pytest.param(MemoryWorld, id="memory"),
    pytest.param(kafka_world("embedded_broker"), id="embedded", marks=pytest.mark.kafka),
    pytest.param(kafka_world("apache_broker"), id="apache", marks=pytest.mark.kafka),
]
SOURCES = {MemorySource, KafkaSource}

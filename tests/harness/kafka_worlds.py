"""Worlds of the Kafka source for the contract of sources: one over each kind of broker."""

import itertools
import os

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition

from consumers.kafka.source import KafkaSource
from harness.clients import config, make_topic
from pipeline.settings import BatchConfig

_numbers = itertools.count()


class KafkaWorld:
    """A topic of its own, read by members of one group."""

    def __init__(self, address: str, partitions: int) -> None:
        self.topic = f"contract-{os.getpid()}-{next(_numbers)}"
        self._address = address
        make_topic(address, self.topic, partitions)
        self._producer = KafkaProducer(bootstrap_servers=address)

    def publish(self, partition: int, timestamp: int, value: bytes | None, key: bytes | None = None) -> None:
        self._producer.send(
            self.topic, value=value, key=key, partition=partition, timestamp_ms=timestamp
        ).get(timeout=20)

    def source(self) -> KafkaSource:
        return KafkaSource(config(self._address, self.topic), [self.topic], BatchConfig())

    def trim(self, partition: int, offset: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self._address)
        admin.delete_records({KafkaPartition(self.topic, partition): offset})
        admin.close()

    def close(self) -> None:
        self._producer.close(timeout=5)


def embedded_world(request: pytest.FixtureRequest, partitions: int) -> KafkaWorld:
    """Make a world on the embedded broker."""
    return KafkaWorld(request.getfixturevalue("embedded_broker"), partitions)


def apache_world(request: pytest.FixtureRequest, partitions: int) -> KafkaWorld:
    """Make a world on Apache Kafka, where KAFKA_HOME names it."""
    return KafkaWorld(request.getfixturevalue("apache_broker"), partitions)

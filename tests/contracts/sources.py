"""Worlds for the contract of sources: a stream with partitions, and members of one group that read it.

A factory takes pytest's request (for fixtures such as a broker) and the number of partitions, and returns a
world.
"""

from collections.abc import Callable
from typing import Protocol

import pytest
from brokers.worlds import apache_world, embedded_world

from consumers.memory import MemoryLog, MemorySource
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import Source

TOPIC = "events"


class World(Protocol):
    """What a kind of source must offer to be held to the contract."""

    topic: str

    def publish(self, partition: int, timestamp: int, value: bytes | None, key: bytes | None = None) -> None:
        """Append a record, so that a source which polls from now on finds it."""

    def source(self) -> Source:
        """Make a new member of the group, not started; its buffers hold at most 8 records a partition if it
        can."""

    def trim(self, partition: int, offset: int) -> None:
        """Drop the partition's records before `offset`."""

    def close(self) -> None:
        """Release what the world holds; sources are closed by the test."""


class ListWorld:
    """The world of `MemorySource`."""

    topic = TOPIC

    def __init__(self, partitions: int) -> None:
        self._log = MemoryLog({TOPIC: partitions})

    def publish(self, partition: int, timestamp: int, value: bytes | None, key: bytes | None = None) -> None:
        self._log.append(value, topic=TOPIC, partition=partition, timestamp=timestamp, key=key)

    def source(self) -> Source:
        return MemorySource(self._log, capacity=8)

    def trim(self, partition: int, offset: int) -> None:
        self._log.trim(TopicPartition(TOPIC, partition), offset)

    def close(self) -> None:
        pass


def list_world(request: pytest.FixtureRequest, partitions: int) -> World:
    """Make the world of `MemorySource`."""
    return ListWorld(partitions)


Factory = Callable[[pytest.FixtureRequest, int], World]
FACTORIES: list[object] = [
    pytest.param(list_world, id="list"),
    pytest.param(embedded_world, id="embedded", marks=pytest.mark.kafka),
    pytest.param(apache_world, id="apache", marks=pytest.mark.kafka),
]

"""The items topic out of a list in memory: a source like any other, for tests and runs without a broker."""

from collections.abc import Mapping
from itertools import islice

from consumers.memory import ListLog
from pipeline.events.batch import CatalogUpdate, TopicPartition
from pipeline.events.items import OUR_NAMES, item_news
from pipeline.settings import ItemsConfig


class ListItems:
    """An item source over the topic `topic` of a `ListLog`; at most `at_a_time` records a poll."""

    def __init__(
        self,
        log: ListLog,
        topic: str = "items",
        at_a_time: int = 5_000,
        config: ItemsConfig = OUR_NAMES,
    ) -> None:
        self._log, self._at_a_time, self._config = log, at_a_time, config
        self._sources = [source for source in log.partitions() if source.topic == topic]
        self._next: dict[TopicPartition, int] = {}

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; a partition that has none starts at its earliest record."""
        log = self._log
        for source in self._sources:
            wanted, earliest = offsets.get(source, -1), log.start(source)
            self._next[source] = wanted if earliest <= wanted <= log.end(source) else earliest

    def poll(self) -> tuple[CatalogUpdate, bool]:
        """Return what has come, at once, and whether the topic is read to its end."""
        records = list(
            islice((each for at in self._next.items() for each in self._log.read(*at)), self._at_a_time)
        )
        for record in records:
            self._next[TopicPartition(record.topic, record.partition)] = record.offset + 1
        ended = all(offset >= self._log.end(source) for source, offset in self._next.items())
        return item_news(records, self._config), ended

    def close(self) -> None:
        """Do nothing."""

"""Topics of one test, and the sources of a group that reads them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from harness.clients import Recorder, Row, config, make_topic, open_source, write
from kafka import KafkaAdminClient

from consumers.kafka.source import KafkaSource
from pipeline.events.batch import Polled

START_MS = 1_700_000_000_000


def numbered(count: int, partition: int = 0, start: int = 0) -> list[Row]:
    """Return records with their number as value, a millisecond apart."""
    return [Row(partition, START_MS + n, b"%d" % n) for n in range(start, start + count)]


class Group(ExitStack):
    """Topics and sources on a broker, closed at the end; a topic's name is that of its group too."""

    def __init__(self, broker: str, topic_name: Callable[[str], str]) -> None:
        super().__init__()
        self.broker, self.topic_name = broker, topic_name
        self.admin = KafkaAdminClient(bootstrap_servers=broker)
        self.callback(self.admin.close)

    def topic(self, partitions: int = 1, rows: Sequence[Row] = ()) -> str:
        """Create a topic with these records."""
        topic = self.topic_name("events")
        make_topic(self.broker, topic, partitions)
        write(self.broker, topic, rows)
        return topic

    def open(self, topic: str, **kafka: object) -> tuple[KafkaSource, Recorder]:
        """Open a source, which joins the group with its first poll."""
        source, recorder = open_source(config(self.broker, topic, **kafka), topic)
        self.callback(source.close)
        return source, recorder

    def hold(self, topic: str, count: int = 1, **kafka: object) -> tuple[KafkaSource, Recorder]:
        """Open a source, and poll until it holds so many partitions."""
        source, recorder = self.open(topic, **kafka)
        self.poll_until_held(source, recorder, count)
        return source, recorder

    @staticmethod
    def poll_until_held(source: KafkaSource, recorder: Recorder, count: int) -> None:
        """Poll until so many partitions are assigned; the test's time limit ends it otherwise."""
        while len(recorder.held) < count:
            source.poll(10, 0.05)

    def members(self, topic: str) -> list[str]:
        """Return the ids of the group's members."""
        return [each["member_id"] for each in self.admin.describe_groups([topic])[topic]["members"]]

    @contextmanager
    def another(self, topic: str) -> Iterator[tuple[Recorder, list[Polled]]]:
        """Run another member in a thread of its own, as another process would."""
        source, recorder = self.open(topic, worker_id="another")
        taken: list[Polled] = []
        over = threading.Event()

        def poll() -> None:
            while not over.is_set():
                taken.append(source.poll(20, 0.02))

        with ThreadPoolExecutor(1) as pool:
            polling = pool.submit(poll)
            try:
                yield recorder, taken
            finally:
                over.set()
                polling.result()
                source.close()

"""Rankings, dead letters and drift alarms to Kafka topics, at least once.

Everything of a batch goes out without waiting; its receipt knows when all of it is acknowledged. Offsets are
the loop's to commit: `producers.kafka_transactions` is the sink that commits them itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from consumers.kafka_client import connect
from pipeline.errors import PublishFailed
from pipeline.event.batch import Reject, TopicPartition
from pipeline.event.records import DriftAlarm, Ranking
from pipeline.run.ports import NOTHING
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka_client import producer_options
from producers.outgoing import Outgoing, Sent, failed
from producers.topics import expect_topics

CLOSE_WAIT_S = 5.0


class KafkaReceipt:
    """A batch on its way out: see `pipeline.run.ports.Receipt`.

    The time of the last acknowledgement is noted by the client's own thread, on the last record of each
    partition: whoever asks for it may come late.
    """

    def __init__(self, sent: Sent, now_ms: Callable[[], int]) -> None:
        self._futures = sent.futures
        self._acknowledged = 0  # the first so many are; each future is looked at once
        self._times_ms: list[int] = []
        self._expected = len(sent.last)  # times; one for each partition
        for future in sent.last.values():
            future.add_callback(lambda _: self._times_ms.append(now_ms()))

    def done(self) -> bool:
        """Say whether everything is acknowledged; raise `PublishFailed` when something can't be."""
        futures, index = self._futures, self._acknowledged
        while index < len(futures) and futures[index].is_done:
            if futures[index].exception is not None:
                raise failed(futures[index].exception, len(futures) - index, len(futures))
            index += 1
        self._acknowledged = index
        return index == len(futures)

    def wait(self, timeout_s: float) -> None:
        """Return when everything is acknowledged; raise `PublishFailed` otherwise."""
        until = time.monotonic() + timeout_s
        while not self.done():
            future = self._futures[self._acknowledged]
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except KafkaError as error:
                if isinstance(error, KafkaTimeoutError) and not future.is_done:
                    error = KafkaTimeoutError(f"no acknowledgement within {timeout_s:g} s")
                raise failed(error, len(self._futures) - self._acknowledged, len(self._futures)) from error

    def acknowledged_ms(self) -> int | None:
        """Wall-clock time of the last acknowledgement; None while the client is about to note it."""
        times_ms = self._times_ms
        return max(times_ms, default=None) if len(times_ms) == self._expected else None


class KafkaSink:
    """The sink of the service: see `pipeline.run.ports.Sink`.

    Raises `UsageError` when no broker answers at construction or a topic doesn't exist.
    """

    commits_offsets = False

    def __init__(self, kafka: KafkaConfig, topics: TopicsConfig, now_ms: Callable[[], int]) -> None:
        """`now_ms` is the wall clock that acknowledgements are noted by."""
        expect_topics(kafka, topics)
        self._producer: KafkaProducer = connect(KafkaProducer, producer_options(kafka))
        self._outgoing = Outgoing(topics)
        self._now_ms = now_ms

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int] = NOTHING,
    ) -> KafkaReceipt:
        """Send without waiting; `offsets` are left alone. Raise `PublishFailed` when the client takes no
        more."""
        return KafkaReceipt(
            self._outgoing.send(self._producer, rankings, rejects, alarms, gone), self._now_ms
        )

    def close(self) -> None:
        """Send what is left, waiting a few seconds for it, and close."""
        try:
            self._producer.close(timeout=CLOSE_WAIT_S)
        except KafkaTimeoutError as error:
            raise PublishFailed(
                f"records were still unacknowledged {CLOSE_WAIT_S:g} s after close"
            ) from error

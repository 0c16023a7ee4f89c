"""Build a worker from its settings: the only place where the service meets consumers/ and producers/."""

import gc
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch

from consumers.kafka.items import KafkaItems
from consumers.kafka.source import KafkaSource
from pipeline.errors import AfreshError
from pipeline.events.batch import TopicPartition
from pipeline.events.decode import Decoder
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.health import Health
from pipeline.service.loop import Durability, Loop
from pipeline.service.metrics import Metric, Metrics
from pipeline.service.observe import MetricsObserver, ModelStatus
from pipeline.service.ports import Adapters, Clock, Observer, Sink
from pipeline.settings import Settings
from pipeline.state.tables import LIVE
from pipeline.warm_up import warm_up
from producers.kafka.records import ReducedCounts
from producers.kafka.sink import KafkaSink
from producers.kafka.topics import ensure_topics
from producers.kafka.transactions import TransactionSink

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """A worker, ready to run, with its metrics and health."""

    loop: Loop
    recommender: Recommender
    metrics: Metrics
    health: Health


def build_service(settings: Settings, watch: Observer | None = None) -> Service:
    """Connect to the broker and build everything; nothing is read and no group is joined yet.

    Missing topics are created. `watch` observes the loop too, after the metrics. Raise `UsageError` when no
    broker answers, it denies access to a topic, or a setting is wrong.
    """
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    clock, metrics = SystemClock(), Metrics()
    for name in ensure_topics(settings.kafka, settings.topics):
        logger.info("created the topic %s", name)
    source = KafkaSource(settings.kafka, list(settings.topics.event_topics()), settings.batch)
    if warning := partition_counts_warning(source.partitions()):
        logger.warning(warning)
    durability = build_durability(settings)
    try:
        if durability is not None:
            durability.journal.lock()  # first: a second worker of this name would end our transactions
        sink = build_sink(settings, source, clock, metrics)
        items = KafkaItems(settings.kafka, settings.topics.items, settings.items)
    except AfreshError:
        with suppress(AfreshError):
            source.close()
        if durability is not None:
            durability.journal.close()
        raise
    warm_up(settings)
    recommender = Recommender(settings)
    gc.collect()
    gc.freeze()  # a collection of everything that is loaded now takes a quarter of a second
    gc.set_threshold(50_000, 20, 100)  # a batch makes thousands of short-lived lists and no cycles
    health = Health(clock)
    metrics.set(Metric.BUILD_INFO, 1, version("afresh"), platform.python_version(), torch.__version__)
    metrics.set_live(lambda: not health.stalled())
    observer: Observer = MetricsObserver(metrics, health, clock, lambda: model_status(recommender))
    if watch is not None:
        observer = cast(Observer, _Both(observer, watch))
    adapters = Adapters(source, decoder, sink, clock, observer, items)
    loop = Loop(recommender, adapters, settings, durability)
    return Service(loop, recommender, metrics, health)


class _Both:
    """Forwards every call to two observers."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._observers = first, second

    def __getattr__(self, name: str) -> Callable[..., None]:
        first, second = (getattr(observer, name) for observer in self._observers)

        def forward(*args: object) -> None:
            first(*args)
            second(*args)

        return forward


def build_sink(settings: Settings, source: KafkaSource, clock: Clock, metrics: Metrics) -> Sink:
    """Return the sink that `kafka.transactions` asks for."""

    def reduced(counts: ReducedCounts) -> None:
        for (topic, outcome), count in counts.items():
            metrics.add(Metric.RECORDS_TOO_LARGE, count, topic, outcome)

    for topic in (settings.topics.recommendations, settings.topics.dead_letters, settings.topics.drift):
        metrics.add(Metric.RECORDS_TOO_LARGE, 0, topic, "dropped")
    metrics.add(Metric.RECORDS_TOO_LARGE, 0, settings.topics.dead_letters, "truncated")
    if settings.kafka.transactions:
        return TransactionSink(settings.kafka, settings.topics, clock.now_ms, source.member, reduced)
    return KafkaSink(settings.kafka, settings.topics, clock.now_ms, reduced)


def build_durability(settings: Settings) -> Durability | None:
    """Return checkpoints and journal; None when `checkpoint.path` is empty."""
    path = settings.checkpoint.path
    if not path:
        return None
    folder = Path(settings.checkpoint.journal or path) / settings.kafka.worker_id
    return Durability(Checkpoints(UrlFolder(path), settings), Journal(folder))


def model_status(recommender: Recommender) -> ModelStatus:
    """Return the quality of the models over the last tests, and how many events they have learned."""
    live_rows = np.flatnonzero(recommender.state.items.status.data == LIVE)
    coverage = recommender.exposure.coverage(live_rows)
    return ModelStatus(recommender.quality.ratios(), coverage, recommender.events_learned, recommender.seq)


def partition_counts_warning(topics: Iterable[TopicPartition]) -> str:
    """Return a warning where the events topics have different numbers of partitions; else ""."""
    counts = Counter(source.topic for source in topics)
    if len(set(counts.values())) < 2:
        return ""
    shown = ", ".join(f"{topic} {count}" for topic, count in sorted(counts.items()))
    return (
        f"events topics have different numbers of partitions ({shown}): with several workers a user's events "
        "may go to two, and each knows a part. Give all topics as many partitions, or run one worker"
    )

"""Put a worker together out of its settings: the service's only importer of consumers/ and producers/."""

import gc
import logging
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from consumers.kafka.items import KafkaItems
from consumers.kafka.source import KafkaSource
from pipeline.app.config_rules import uneven
from pipeline.errors import AfreshError
from pipeline.events.decode import Decoder
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.health import Health
from pipeline.service.loop import Adapters, Durability, Loop
from pipeline.service.metrics import Metric, Metrics
from pipeline.service.observe import MetricsObserver, ModelStatus, Observer
from pipeline.service.ports import Clock, Sink
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
    """A worker, ready to run, and what can be seen of it."""

    loop: Loop
    recommender: Recommender
    metrics: Metrics
    health: Health


def build_service(settings: Settings, watch: Callable[[Observer], Observer] = lambda inner: inner) -> Service:
    """Connect to the broker and build everything; nothing is read and no group is joined yet.

    Topics that are missing are created. `watch` may put an observer around the one that keeps the metrics.
    Raise `UsageError` when no broker answers, it refuses us or a topic, or a setting is wrong.
    """
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    clock, metrics = SystemClock(), Metrics()
    for name in ensure_topics(settings.kafka, settings.topics):
        logger.info("created the topic %s", name)
    source = KafkaSource(settings.kafka, list(settings.topics.event_topics()), settings.batch)
    if warning := uneven(source.partitions()):
        logger.warning(warning)
    survival = build_survival(settings)
    try:
        if survival is not None:
            survival.journal.lock()  # first: a second process of our name would end the first's transactions
        sink = build_sink(settings, source, clock, metrics)
        items = KafkaItems(settings.kafka, settings.topics.items, settings.items)
    except AfreshError:
        with suppress(AfreshError):
            source.close()
        if survival is not None:
            survival.journal.close()
        raise
    warm_up(settings)
    recommender = Recommender(settings)
    # what is loaded by now stays: the collector need not walk over it, a quarter of a second each time
    gc.collect()
    gc.freeze()
    # a batch makes thousands of short-lived lists and no cycles: look for those seldom
    gc.set_threshold(50_000, 20, 100)
    health = Health(clock)
    metrics.set(Metric.BUILD_INFO, 1, version("afresh"), platform.python_version(), torch.__version__)
    metrics.set_live(lambda: not health.stalled())
    observer = watch(MetricsObserver(metrics, health, clock, lambda: standing(recommender)))
    edges = Adapters(source, decoder, sink, clock, observer, items)
    loop = Loop(recommender, edges, settings, survival)
    return Service(loop, recommender, metrics, health)


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


def build_survival(settings: Settings) -> Durability | None:
    """Return what outlives the process; None when `checkpoint.path` is empty."""
    path = settings.checkpoint.path
    if not path:
        return None
    folder = Path(settings.checkpoint.journal or path) / settings.kafka.worker_id
    return Durability(Checkpoints(UrlFolder(path), settings), Journal(folder))


def standing(recommender: Recommender) -> ModelStatus:
    """Return how well the models do of late, and how far they have come."""
    live_rows = np.flatnonzero(recommender.state.items.status.data == LIVE)
    coverage = recommender.exposure.coverage(live_rows)
    return ModelStatus(recommender.quality.ratios(), coverage, recommender.events_learned, recommender.seq)

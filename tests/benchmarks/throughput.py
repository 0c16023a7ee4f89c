"""How many events a second one worker takes from append to acknowledged ranking, beside a client that does
nothing.

    python tests/benchmarks/throughput.py [--events 300000] [--bootstrap HOST:PORT] [--set key=value ...]

Preloads the events topic (10,000 items by Zipf, 100,000 users drawn evenly, so that nearly every event of a
batch touches another user), then runs, each over the same records: 1. the client's own loop on the tuned
options: poll 512, produce one 900-byte record each, flush, commit; 2. `afresh run` in its default
configuration, watched through /metrics from outside. Prints both figures with their ratio, and one last JSON
line. Without --bootstrap it starts the embedded broker.
"""

import os
import platform
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench import parser_of, print_result
from harness.service import Process
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumers.kafka.client import consumer_options
from pipeline.settings import KafkaConfig, Settings, TopicsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.kafka.client import producer_options
from producers.kafka.records import key_hash
from producers.kafka.topics import create_topics

ITEMS, USERS, PARTITIONS, BATCH = 10_000, 100_000, 4, 512
EVENTS, BARE = "throughput-events", "throughput-bare"
LOOK_S = 0.2


def preload(kafka: KafkaConfig, events: int) -> None:
    """Append made-up clicks, keyed by user, as fast as the broker takes them."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, ITEMS + 1)
    items = rng.choice(ITEMS, events, p=weight / weight.sum())
    users = rng.integers(0, USERS, events)
    producer = KafkaProducer(**producer_options(kafka))
    for event, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        key = b"user-%d" % user
        value = b'{"user_id":"user-%d","item_id":"item-%d","event_type":"click","timestamp_ms":%d}' % (
            user, item, time.time_ns() // 1_000_000,
        )  # fmt: skip
        producer.send(EVENTS, value=value, key=key, partition=key_hash(key) % PARTITIONS)
        if event % 50_000 == 49_999:
            producer.flush()
    producer.close()


def bare_loop(kafka: KafkaConfig, events: int) -> float:
    """Return events/s of poll, produce, flush, commit over the first `events` records."""
    consumer = KafkaConsumer(
        **consumer_options(kafka, in_group=True) | {"group_id": "bare", "max_poll_records": BATCH}
    )
    consumer.assign([TopicPartition(EVENTS, number) for number in range(PARTITIONS)])
    consumer.seek_to_beginning()
    producer = KafkaProducer(**producer_options(kafka))
    value = b"x" * 900
    polled_events, began = 0, 0.0
    while polled_events < events:
        polled = consumer.poll(timeout_ms=1000, max_records=BATCH)
        began = began or time.monotonic()
        for records in polled.values():
            polled_events += len(records)
            for record in records:
                producer.send(BARE, value=value, key=record.key, partition=record.partition)
        producer.flush()
        consumer.commit()
    seconds = time.monotonic() - began
    consumer.close()
    producer.close()
    return polled_events / seconds


class Look(NamedTuple):
    """What the service has done at a moment."""

    at_s: float
    learned: float
    published: float
    cpu_s: float


def look(service: Process, events: int) -> Look:
    """Return the first look at which so many events are learned."""
    while (metrics := service.metrics()).get("afresh_events_learned", 0) < events:
        if service.code is not None:
            raise SystemExit(f"afresh run ended with {service.code}")
        time.sleep(LOOK_S)
    published, cpu_s = metrics["afresh_rankings_published_total"], metrics["process_cpu_seconds_total"]
    return Look(time.monotonic(), metrics["afresh_events_learned"], published, cpu_s)


def service_loop(kafka: KafkaConfig, warm_up: int, events: int, sets: list[str]) -> dict[str, float]:
    """Run `afresh run` over the topic; return its figures from the end of the warm-up on."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            f"kafka.bootstrap_servers={kafka.bootstrap_servers}", f"topics.events=['{EVENTS}']",
            f"checkpoint.path={folder}/state", "metrics.address=127.0.0.1:0", *sets,
        ]  # fmt: skip
        words = [word for pair in pairs for word in ("--set", pair)]
        with Process("run", *words, folder=Path(folder), name="run") as service:
            first = look(service, warm_up)
            last = look(service, warm_up + events)
            service.end()
    learned = last.learned - first.learned
    return {
        "events_per_s": learned / (last.at_s - first.at_s),
        "rankings_per_event": (last.published - first.published) / learned,
        "cpu_us_per_event": (last.cpu_s - first.cpu_s) * 1e6 / learned,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--warm-up", type=int, default=60_000)
    parser.add_argument("--bootstrap", help="a broker that runs already; default: the embedded one")
    parser.add_argument("--set", action="append", default=[], help="configuration of the service")
    options = parser.parse_args()
    with ExitStack() as stack:
        servers = options.bootstrap or stack.enter_context(EmbeddedBroker()).bootstrap_servers
        kafka = KafkaConfig(bootstrap_servers=servers)
        create_topics(kafka, TopicsConfig(events=[EVENTS, BARE]), PARTITIONS, 1)
        preload(kafka, options.warm_up + options.events)
        bare = bare_loop(kafka, min(options.events, 100_000))
        figures = service_loop(kafka, options.warm_up, options.events, options.set)
    ratio = figures["events_per_s"] / bare
    print(f"{platform.machine()}, {os.cpu_count()} cores, model {Settings().model.name}")
    print(f"client loop doing nothing  {bare:10,.0f} events/s")
    print(f"afresh run                 {figures['events_per_s']:10,.0f} events/s  ({ratio:.2f} of it)")
    print(f"rankings per event {figures['rankings_per_event']:.3f}")
    print(f"cpu per event      {figures['cpu_us_per_event']:.0f} us")
    print_result(bare_events_per_s=bare, ratio=ratio, **figures)


if __name__ == "__main__":
    main()

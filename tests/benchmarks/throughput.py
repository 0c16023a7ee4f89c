"""How many events a second one worker takes from append to acknowledged ranking, beside a client that does
nothing.

    python tests/benchmarks/throughput.py [--events 300000] [--bootstrap HOST:PORT] [--set key=value ...]

Preloads the events topic (10,000 items by Zipf, 100,000 users drawn evenly, so that nearly every event of a
batch touches another user), then runs, each over the same records: 1. the client's own loop on the tuned
options: poll 512, produce one 900-byte record each, flush, commit; 2. `afresh run` in its default
configuration, watched through /metrics from outside. Prints both figures with their ratio, and one last JSON
line. Without --bootstrap it starts the embedded broker.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumers.kafka.client import consumer_options
from pipeline.settings import KafkaConfig, Settings, TopicsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.kafka.client import producer_options
from producers.kafka.records import key_hash
from producers.kafka.topics import create_topics

ITEMS, USERS, PARTITIONS, BATCH = 10_000, 100_000, 4, 512
LOAD_WAIT_S = 600


def preload(kafka: KafkaConfig, topic: str, events: int, seed: int) -> None:
    """Append made-up clicks, keyed by user, as fast as the broker takes them."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, ITEMS + 1)
    items = rng.choice(ITEMS, events, p=weight / weight.sum())
    users = rng.integers(0, USERS, events)
    places = [key_hash(b"user-%d" % user) % PARTITIONS for user in range(USERS)]
    producer = KafkaProducer(**producer_options(kafka))
    for event, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        value = b'{"user_id":"user-%d","item_id":"item-%d","event_type":"click","timestamp_ms":%d}' % (
            user, item, time.time_ns() // 1_000_000,
        )  # fmt: skip
        producer.send(topic, value=value, key=b"user-%d" % user, partition=places[user])
        if event % 50_000 == 49_999:
            producer.flush()
    producer.close()


def bare_loop(kafka: KafkaConfig, topic: str, out: str, events: int) -> float:
    """Return events/s of poll, produce, flush, commit over the first `events` records."""
    consumer = KafkaConsumer(
        **consumer_options(kafka, in_group=True) | {"group_id": "bare", "max_poll_records": BATCH}
    )
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    producer = KafkaProducer(**producer_options(kafka))
    value = b"x" * 900
    taken, began = 0, 0.0
    while taken < events:
        polled = consumer.poll(timeout_ms=1000, max_records=BATCH)
        began = began or time.monotonic()
        for records in polled.values():
            for record in records:
                producer.send(out, value=value, key=record.key, partition=record.partition)
                taken += 1
        producer.flush()
        consumer.commit()
    seconds = time.monotonic() - began
    consumer.close()
    producer.close()
    return taken / seconds


def metric(address: str, name: str) -> float:
    """Return the sum of a metric's series, 0 while the service does not answer."""
    with suppress(OSError):
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
        return sum(
            float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        )
    return 0.0


def service(kafka: KafkaConfig, topic: str, warm_up: int, events: int, sets: list[str]) -> dict[str, float]:
    """Run `afresh run` over the topic; return its figures from the end of the warm-up on."""
    address = "127.0.0.1:19464"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline.app.cli", "run"]
        for pair in (
            f"kafka.bootstrap_servers={kafka.bootstrap_servers}",
            f"topics.events=['{topic}']",
            f"checkpoint.path={folder}",
            f"metrics.address={address}",
            *sets,
        ):
            command += ["--set", pair]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            started = _reach(process, address, warm_up)
            published = metric(address, "afresh_rankings_published_total")
            cpu = _cpu_s(process.pid)
            ended = _reach(process, address, warm_up + events)
            cpu = _cpu_s(process.pid) - cpu
            published = metric(address, "afresh_rankings_published_total") - published
        finally:
            process.terminate()
            process.wait(30)
    return {
        "events_per_s": (ended[1] - started[1]) / (ended[0] - started[0]),
        "rankings_per_event": published / (ended[1] - started[1]),
        "cpu_us_per_event": cpu * 1e6 / (ended[1] - started[1]),
    }


def _reach(process: subprocess.Popen[bytes], address: str, events: int) -> tuple[float, float]:
    """Wait until so many events are learned; return when, and how many it were."""
    deadline = time.monotonic() + LOAD_WAIT_S
    while time.monotonic() < deadline:
        learned = metric(address, "afresh_events_learned")
        if learned >= events:
            return time.monotonic(), learned
        if process.poll() is not None:
            raise SystemExit(f"afresh run ended with {process.returncode}")
        time.sleep(0.2)
    raise SystemExit(f"only {learned:,.0f} of {events:,} events after {LOAD_WAIT_S} s")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--warm-up", type=int, default=60_000)
    parser.add_argument("--bootstrap", help="a broker that runs already; default: the embedded one")
    parser.add_argument("--set", action="append", default=[], help="configuration of the service")
    args = parser.parse_args()
    with ExitStack() as stack:
        servers = args.bootstrap or stack.enter_context(EmbeddedBroker()).bootstrap_servers
        kafka = KafkaConfig(bootstrap_servers=servers)
        topic, out = "throughput-events", "throughput-bare"
        create_topics(kafka, TopicsConfig(events=[topic]), PARTITIONS, 1)
        create_topics(kafka, TopicsConfig(events=[out]), PARTITIONS, 1)
        preload(kafka, topic, args.warm_up + args.events, seed=0)
        bare = bare_loop(kafka, topic, out, min(args.events, 100_000))
        figures = service(kafka, topic, args.warm_up, args.events, args.set)
    ratio = figures["events_per_s"] / bare
    print(f"{platform.machine()}, {os.cpu_count()} cores, model {Settings().model.name}")
    print(f"client loop doing nothing  {bare:10,.0f} events/s")
    print(f"afresh run                 {figures['events_per_s']:10,.0f} events/s  ({ratio:.2f} of it)")
    print(f"rankings per event {figures['rankings_per_event']:.3f}")
    print(f"cpu per event      {figures['cpu_us_per_event']:.0f} us")
    print(json.dumps({"bare_events_per_s": bare, "ratio": ratio} | figures))


if __name__ == "__main__":
    main()

"""How long a user waits for the list that knows the newest event, at several rates of events.

    python tests/benchmarks/latency.py [--rates 100,1000,5000] [--seconds 600] [--against COMMIT]
        [--bootstrap HOST:PORT] [--set key=value ...]

A process of its own appends clicks (10,000 items by Zipf, 20,000 users) at each rate; `afresh run` learns and
publishes; this process subscribes to the rankings. Two latencies, in ms: from an event's append to the
acknowledged ranking (the worker's own histogram, interpolated within a bucket), and from the append to the
subscriber's receipt. Checkpoints, garbage collection and a scrape every second are in it. `--against` runs a
second commit in turns. Without --bootstrap it starts the embedded broker, in a process of its own. The last
line is JSON.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import (
    HERE,
    ONE_THREAD,
    checkout,
    free_port,
    integers,
    parser_of,
    print_head,
    print_result,
    print_row,
)
from kafka import KafkaConsumer, KafkaProducer

from pipeline.settings import KafkaConfig, TopicsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.kafka.topics import create_topics

ITEMS, USERS, PARTITIONS = 10_000, 20_000, 4
WARM_UP, SCRAPE_S, TICK_S, DRAIN_S, START_S = 20_000, 1.0, 0.001, 3.0, 90.0
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
BUCKET = re.compile(r'^afresh_end_to_end_latency_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


class Topics(NamedTuple):
    """Where one run publishes and reads."""

    events: str
    rankings: str


def broker(pipe: Any) -> None:
    """Run the embedded broker until the other end of the pipe is closed."""
    with EmbeddedBroker() as embedded:
        pipe.send(embedded.bootstrap_servers)
        pipe.poll(None)


def append(servers: str, topic: str, rate: int, count: int) -> None:
    """Append `count` clicks at `rate` a second, as fast as the broker takes them at rate 0."""
    rng, weight = np.random.default_rng(rate), 1 / np.arange(1, ITEMS + 1)
    items = rng.choice(ITEMS, count, p=weight / weight.sum()).tolist()
    users = rng.integers(0, USERS, count).tolist()
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=0)
    began = time.monotonic()
    for n, (user, item) in enumerate(zip(users, items, strict=True)):
        while rate and n > (time.monotonic() - began) * rate:
            time.sleep(TICK_S)
        event = {"user_id": f"user-{user}", "item_id": f"item-{item}", "event_type": "click"}
        event["timestamp_ms"] = time.time_ns() // 1_000_000  # type: ignore[assignment]
        producer.send(topic, value=json.dumps(event).encode(), key=event["user_id"].encode())
    producer.close()


@contextmanager
def worker(code: Path, servers: str, topics: Topics, sets: list[str]) -> Iterator[str]:
    """Run a checkout's `afresh run`; yield the address of /metrics."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"PYTHONPATH": str(code)}
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            f"kafka.bootstrap_servers={servers}", f"topics.events=['{topics.events}']",
            f"topics.recommendations={topics.rankings}", f"checkpoint.path={folder}",
            f"metrics.address={address}", f"kafka.group_id={topics.events}", *sets,
        ]  # fmt: skip
        words = [word for pair in pairs for word in ("--set", pair)]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.app.cli", "run", *words], cwd=code, env=environment,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield address
            if process.poll() is not None:
                raise SystemExit(f"afresh run ended with {process.returncode}")
        finally:
            process.terminate()
            process.wait(30)


def scrape(address: str) -> str:
    """Return /metrics; empty while the worker does not listen."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def histogram(text: str) -> dict[float, float]:
    """Return the cumulative counts of the latency histogram by upper bound in seconds."""
    return {float(bound): float(count) for bound, count in BUCKET.findall(text)}


def quantile(counts: dict[float, float], q: float) -> float:
    """Return a quantile in ms, linear within its bucket.

    >>> quantile({0.01: 50.0, 0.02: 100.0, float("inf"): 100.0}, 0.75)
    15.0
    """
    wanted, low, below = q * max(counts.values(), default=0.0), 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted and count > below:
            return 1000 * (low + (min(bound, 10.0) - low) * (wanted - below) / (count - below))
        low, below = bound, count
    return float("nan")


def wait_learned(address: str, events: int) -> None:
    """Wait until so many events are learned; the end of the program after START_S."""
    deadline = time.monotonic() + START_S
    while True:
        found = re.search(r"^afresh_events_learned (\S+)$", scrape(address), re.MULTILINE)
        if found and float(found[1]) >= events:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{events} events were not learned within {START_S:g} s")
        time.sleep(0.2)


def measured(address: str, servers: str, topics: Topics, rate: int, seconds: int) -> dict[str, float]:
    """Return the latencies of one rate."""
    consumer = KafkaConsumer(topics.rankings, bootstrap_servers=servers, fetch_max_wait_ms=100)
    while not consumer.assignment():
        consumer.poll(timeout_ms=100)
    consumer.seek_to_end()
    for partition in consumer.assignment():
        consumer.position(partition)
    before, began_ms = histogram(scrape(address)), time.time_ns() // 1_000_000
    sender = multiprocessing.get_context("spawn").Process(
        target=append, args=(servers, topics.events, rate, rate * seconds)
    )
    sender.start()
    received: list[int] = []
    scraped_s, idle_s = time.monotonic(), time.monotonic()
    while sender.is_alive() or time.monotonic() - idle_s < DRAIN_S:
        polled = consumer.poll(timeout_ms=20)
        now_ms = time.time_ns() // 1_000_000
        for records in polled.values():
            idle_s = time.monotonic()
            times = [json.loads(record.value)["event_timestamp_ms"] for record in records if record.value]
            received += [now_ms - time_ms for time_ms in times if time_ms >= began_ms]
        if time.monotonic() - scraped_s >= SCRAPE_S:
            text, scraped_s = scrape(address), time.monotonic()
    consumer.close()
    after = histogram(text)
    counts = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    latencies = {name: quantile(counts, q) for name, q in QUANTILES.items()}
    p50, p99, p999 = np.percentile(received, (50, 99, 99.9)).tolist()
    return {
        **latencies, "subscriber_p50_ms": p50, "subscriber_p99_ms": p99, "subscriber_p999_ms": p999,
        "events": counts[float("inf")], "events_per_s": rate,
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rates", type=integers, default=[100, 1000, 5000])
    parser.add_argument("--seconds", type=int, default=600, help="of each rate")
    parser.add_argument("--against", help="a commit, or the folder of a checkout, with the same settings")
    parser.add_argument("--bootstrap", help="a broker that runs already; default: the embedded one")
    parser.add_argument("--set", action="append", default=[], help="configuration of the service")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        servers = options.bootstrap
        if not servers:
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=broker, args=(theirs,), daemon=True)
            process.start()
            stack.callback(process.kill)
            servers = ours.recv()
        codes = {"now": HERE}
        if options.against:
            codes = {"before": stack.enter_context(checkout(options.against))} | codes
        names = ("commit", "events/s", *QUANTILES, "subscriber_p50_ms", "subscriber_p99_ms")
        print_head(*names)
        for rate in options.rates:
            for name, code in codes.items():
                topics = Topics(f"latency-{name}-{rate}", f"rankings-{name}-{rate}")
                config = TopicsConfig(events=[topics.events], recommendations=topics.rankings)
                create_topics(KafkaConfig(bootstrap_servers=servers), config, PARTITIONS, 1)
                append(servers, topics.events, 0, WARM_UP)
                with worker(code, servers, topics, options.set) as address:
                    wait_learned(address, WARM_UP)
                    found = measured(address, servers, topics, rate, options.seconds)
                results.setdefault(name, {})[str(rate)] = found
                print_row(name, rate, *(f"{found[each]:.1f}" for each in names[2:]))
    print_result(rates=results.pop("now"), **results)


if __name__ == "__main__":
    main()

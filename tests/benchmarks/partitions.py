"""What many partitions cost: how long a checkpoint takes, how long the loop stands still, how late lists are.

    python tests/benchmarks/partitions.py [--partitions 1000] [--rate 100] [--broker embedded|apache]

Fills an events topic of so many partitions with one event of each of `--users`, starts `afresh run` and, once
all is learned, sends events of these users at `--rate` for `--seconds`. A plain consumer reads the lists:
latency is from the event's time, which is when it was sent, to when the list was read; a standstill is a time
in which no list was made. Checkpoints are those of this time. At the end the service is stopped and started
once more, for the seconds until it is ready and the seconds of the stop. `--code`: the service runs on
the code of another checkout. Prints a table and one last JSON line.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import parser_of, print_result
from delivery import LONG_S, add_broker, now_ms, reader_of, running
from harness.clients import make_topic
from harness.service import Process, Site, until
from harness.truth import event_of
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from producers.kafka.client import producer_options
from producers.kafka.records import key_hash

ITEMS = 2_000
STEP_S = 0.02  # between two sends


class Lists(threading.Thread):
    """Read every list as it comes: when it was made, when it was read, and its newest event's time."""

    def __init__(self, broker: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[int, int, int]] = []
        self.over = threading.Event()
        self._consumer = reader_of(broker, topic)
        self._consumer.seek_to_end()
        for partition in self._consumer.assignment():
            self._consumer.position(partition)

    def run(self) -> None:
        while not self.over.is_set():
            for records in self._consumer.poll(timeout_ms=100).values():
                at_ms = now_ms()
                for record in records:
                    value = json.loads(record.value or b"{}")
                    if record.key != b"__default__" and value:
                        self.rows.append((value["generated_at_ms"], at_ms, value["event_timestamp_ms"]))
        self._consumer.close(autocommit=False)


class Totals(NamedTuple):
    """Sums of a service since its start."""

    checkpoints: float
    checkpoint_s: float
    cpu_s: float


def totals(service: Process) -> Totals:
    metrics, name = service.metrics(), "afresh_checkpoint_seconds"
    return Totals(
        metrics.get(f"{name}_count", 0.0), metrics.get(f"{name}_sum", 0.0),
        metrics.get("process_cpu_seconds_total", 0.0),
    )  # fmt: skip


def send(site: Site, options: argparse.Namespace) -> int:
    """Send events evenly, stamped as they leave; return how many."""
    rng = np.random.default_rng(options.seed)
    producer = KafkaProducer(**producer_options(site.configured().kafka) | {"linger_ms": 0})
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < options.seconds:
        while sent < passed * options.rate:
            user, item = f"user-{rng.integers(options.users)}", f"item-{rng.zipf(1.3) % ITEMS}"
            record = event_of(user, item, now_ms())
            place = key_hash(record.key) % site.partitions
            producer.send(site.events, key=record.key, value=record.value, partition=place)
            sent += 1
        time.sleep(STEP_S)
    producer.close()
    return sent


def started(site: Site) -> tuple[Process, float]:
    """Start a worker; return it once it is ready, and the seconds until then."""
    began = time.monotonic()
    service = site.run()
    service.until(lambda: service.state() == "ready", "ready", LONG_S)
    return service, time.monotonic() - began


def measure(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one service."""
    for name in ("recommendations", "dead_letters", "drift"):
        make_topic(site.broker, f"{site.stem}-{name}", 1)
    with suppress(KafkaTimeoutError):  # many partitions take their time
        make_topic(site.broker, site.events, site.partitions)
    until(lambda: site.partitions_there() == site.partitions, "all partitions", LONG_S)
    site.send(event_of(f"user-{user}", f"item-{user % ITEMS}", now_ms()) for user in range(options.users))
    began = time.monotonic()
    service, ready_s = started(site)
    service.wait_learned(options.users, LONG_S)
    learned_s = time.monotonic() - began
    service.until(lambda: totals(service).checkpoints >= 1, "a checkpoint", LONG_S)
    lists = Lists(site.broker, f"{site.stem}-recommendations")
    lists.start()
    before, sent_from_ms = totals(service), now_ms()
    sent = send(site, options)
    cpu_s = totals(service).cpu_s - before.cpu_s
    service.wait_learned(options.users + sent, LONG_S)
    after = totals(service)
    time.sleep(1.0)  # the last lists
    lists.over.set()
    lists.join()
    rows = np.array(lists.rows, np.int64)
    began = time.monotonic()
    service.tell(signal.SIGTERM)
    service.wait(LONG_S)
    stop_s = time.monotonic() - began
    service, again_s = started(site)
    restored = service.learned()
    service.kill()
    late = rows[rows[:, 2] >= sent_from_ms]  # without those of the backlog
    latency_s = (late[:, 1] - late[:, 2]) / 1000
    count = after.checkpoints - before.checkpoints
    return {
        "first_ready_s": ready_s,
        "first_learned_s": learned_s,
        "checkpoints": count,
        "checkpoint_s": (after.checkpoint_s - before.checkpoint_s) / max(1.0, count),
        "longest_standstill_s": float(np.diff(np.unique(rows[:, 0])).max()) / 1000,
        "latency_p50_s": float(np.quantile(latency_s, 0.5)),
        "latency_p99_s": float(np.quantile(latency_s, 0.99)),
        "latency_max_s": float(latency_s.max()),
        "cpu_share": cpu_s / options.seconds,
        "stop_s": stop_s,
        "restart_ready_s": again_s,
        "lost_events": options.users + sent - restored,
    }


def main() -> None:
    parser = parser_of(__doc__)
    add_broker(parser)
    parser.add_argument("--partitions", type=int, default=1_000)
    parser.add_argument("--rate", type=int, default=100, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=10.0, help="checkpoint.interval_s")
    parser.add_argument("--code", type=Path, default=Path.cwd(), help="the checkout that the service runs on")
    parser.add_argument("--set", action="append", default=[], help="more configuration of the service")
    options = parser.parse_args()
    sets = {"checkpoint.interval_s": options.interval} | dict(pair.split("=", 1) for pair in options.set)
    os.environ["PYTHONPATH"] = str(options.code.resolve())
    with (
        running(options.broker) as broker,
        tempfile.TemporaryDirectory() as folder,
        Site(broker, "partitions", Path(folder), options.partitions, sets) as site,
    ):
        figures = measure(site, options)
    for name, value in figures.items():
        print(f"{re.sub('_s$', ', s', name).replace('_', ' '):30} {value:10.3f}")
    print_result(broker=options.broker, partitions=options.partitions, rate=options.rate, **figures)


if __name__ == "__main__":
    main()

"""Send made-up shoppers into an events topic, evenly paced, from a process of its own.

    python -m producers.simulate --bootstrap-servers 127.0.0.1:9092 --events 60000 --rate 2000

Records are stamped when they are sent, so that latency can be measured; the shoppers' own time, which runs
faster, is in `timestamp_ms` and ends about now.
"""

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from consumers.kafka_client import connect
from pipeline.errors import AfreshError, PublishFailed
from pipeline.settings import KafkaConfig
from producers.kafka_client import producer_options
from producers.pace import paced, pause
from producers.shoppers import Market, ShopEvent, shoppers, wire_events

FLUSH_S = 30.0


class Sent(NamedTuple):
    """How many events went out, and in how many seconds."""

    events: int
    seconds: float


class Delivery(Protocol):
    """What a producer promises for one record."""

    def add_errback(self, call: Callable[[BaseException], object]) -> object: ...


class Producer(Protocol):
    """The part of a Kafka producer that sending needs."""

    def send(self, topic: str, *, key: bytes, value: bytes) -> Delivery: ...
    def flush(self, timeout: float | None = None) -> object: ...


def send(
    producer: Producer,
    topic: str,
    events: Iterable[ShopEvent],
    rate: float,
    wait: Callable[[float], bool] = pause,
) -> Sent:
    """Send the events at `rate` a second (0: as fast as possible), keyed by user, and wait until all are in.

    `wait(seconds)` is called between slices; True from it ends the stream early.

    Raises PublishFailed when the broker did not take a record.
    """
    encode = msgspec.json.Encoder().encode
    failed: list[BaseException] = []
    start_s, sent = time.monotonic(), 0
    try:
        for event in paced(events, rate, wait):
            producer.send(topic, key=event.user_id.encode(), value=encode(event)).add_errback(failed.append)
            sent += 1
            if failed:
                break
        producer.flush(timeout=FLUSH_S)
    except KafkaError as error:
        failed.append(error)
    if failed:
        raise PublishFailed(
            f"an event was not taken by topic {topic}: {type(failed[0]).__name__} {failed[0]}; "
            "look at the broker and start again"
        )
    return Sent(sent, time.monotonic() - start_s)


def until_stdin_closes(seconds: float) -> bool:
    """Wait; say True once the other end of standard input is gone.

    A parent that holds it open for as long as it lives can't leave this process behind, however it dies.
    """
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    market = Market(users=options.users, items=options.items)
    span_ms = int(options.events * market.pause_s * 1000 / market.sessions)
    start_ms = int(time.time() * 1000) - span_ms
    chunks = shoppers(options.events, options.seed, options.change_at, market)
    events = (event for columns in chunks for event in wire_events(columns, start_ms))
    wait = until_stdin_closes if options.until_stdin_closes else pause
    try:
        kafka = KafkaConfig(bootstrap_servers=options.bootstrap_servers)
        producer = connect(KafkaProducer, producer_options(kafka))
        with contextlib.closing(producer):
            sent = send(producer, options.topic, events, options.rate, wait)
    except AfreshError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(sent._asdict()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m producers.simulate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", default="events")
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=2_000.0, help="events a second; 0: as fast as possible")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--change-at", type=int, help="event number at which all tastes change (default: never)"
    )
    parser.add_argument("--users", type=int, default=Market().users)
    parser.add_argument("--items", type=int, default=Market().items)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input does")
    return parser


if __name__ == "__main__":
    sys.exit(main())

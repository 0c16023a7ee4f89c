"""Send made-up shoppers into an events topic, evenly paced, from a process of its own.

    python -m producers.simulate --bootstrap-servers 127.0.0.1:9092 --events 60000 --rate 2000

Records are stamped when they are sent, so that latency can be measured; the shoppers' own time, which runs
faster, is in `timestamp_ms` and ends about now. The last line of stdout is JSON: `sent`, `seconds`.
"""

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Iterator

import msgspec
from kafka import KafkaProducer

from consumers.kafka_client import connect
from pipeline.errors import AfreshError
from pipeline.settings import KafkaConfig
from producers.kafka_client import producer_options
from producers.pace import pause
from producers.replay import Sending, WireEvent, send_events
from producers.shoppers import Market, shoppers, wire_events


def encoded(
    events: int, seed: int, change_at: int | None, end_ms: int, market: Market | None = None
) -> Iterator[WireEvent]:
    """Yield shoppers' events ready to be sent; their own time ends at about `end_ms`."""
    market = market or Market()
    encode = msgspec.json.Encoder().encode
    start_ms = end_ms - int(events * market.pause_s * 1000 / market.sessions)
    for columns in shoppers(events, seed, change_at, market):
        for event in wire_events(columns, start_ms):
            yield WireEvent(event.timestamp_ms, event.user_id.encode(), encode(event))


def until_stdin_closes(seconds: float) -> bool:
    """Wait; say True once the other end of standard input is gone.

    A parent that holds it open for as long as it lives can't leave this process behind, however it dies.
    """
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    kafka, sending = KafkaConfig(bootstrap_servers=options.bootstrap_servers), Sending()
    events = encoded(options.events, options.seed, options.change_at, time.time_ns() // 1_000_000)
    wait = until_stdin_closes if options.until_stdin_closes else pause
    try:
        with contextlib.closing(connect(KafkaProducer, producer_options(kafka))) as producer:
            send_events(producer, options.topic, events, sending, rate=options.rate, wait=wait)
    except AfreshError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps({"sent": sending.sent, "seconds": round(sending.seconds, 3)}))
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
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input does")
    return parser


if __name__ == "__main__":
    sys.exit(main())

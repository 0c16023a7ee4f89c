"""`afresh replay`: a recorded file into the events topic."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.app.file_options import add_file_options, columns_of, count, not_negative
from pipeline.app.interruption import interruption
from pipeline.app.progress_bar import progress_bar
from pipeline.settings import Settings

if TYPE_CHECKING:
    from consumers.file_source import Tally
    from producers.replay import Sending

HELP = """Send a recorded file into the events topic, in its order.

Each row becomes one JSON event: key = user, the row's time in the field for timestamp_ms, the record itself
stamped when it is sent. Without --speed and --rate events go as fast as the broker takes them. The first
Ctrl-C ends the sending: what is out is waited for and counted. Topics that don't exist are created with the
broker's defaults."""
EXAMPLE = "afresh replay events.csv.gz --rate 500 --limit 30000\nafresh replay events.parquet --speed 60"
CHUNK = 1_000  # events that are read at a time
CLOSE_S = 1.0  # all is flushed by then, or lost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed", type=not_negative, default=0.0, metavar="X", help="keep the recorded gaps, divided by X"
    )
    pace.add_argument(
        "--rate", type=not_negative, default=0.0, metavar="R", help="events a second; 0: no limit (default)"
    )
    parser.add_argument(
        "--events", "--limit", dest="limit", type=count, metavar="N", help="how many (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line at the end")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help=argparse.SUPPRESS
    )  # for a parent process
    add_file_options(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Send the file; 0 when its end or the first Ctrl-C was reached.

    Raise `UsageError` when the file can't be read, holds no good event, or no broker answers; `BrokerLost`
    and `PublishFailed` when the broker goes away or refuses an event on the way.
    """
    from itertools import chain

    from kafka import KafkaProducer  # the client, numpy and rich are not needed for help

    from consumers.file_source import Tally, read_events
    from consumers.kafka_client import connect
    from pipeline.errors import UsageError
    from pipeline.event.fields import field_names
    from pipeline.run.clock import SystemClock
    from producers.kafka_client import producer_options
    from producers.pace import pause
    from producers.replay import Sending, ensure_topic, send_events, wire_events
    from producers.simulate import until_stdin_closes

    tally, sending = Tally(), Sending()
    topic, default_type = next(iter(settings.topics.event_topics().items()))
    chunks = read_events(
        args.file, CHUNK, now_ms=SystemClock().now_ms(), columns=columns_of(args, settings),
        time_unit=args.time_unit, default_type=default_type, start=args.start, limit=args.limit, tally=tally,
        settings=settings.events,
    )  # fmt: skip
    first = next(chunks, None)  # errors of the file come before those of the broker
    if first is None and tally.rejected:
        raise UsageError(f"{args.file}: not one row could be read: {tally.lines()[0]}")
    for created in ensure_topic(settings.kafka, settings.topics, topic):
        print(f"created topic {created}", file=sys.stderr)
    events = wire_events(
        chain([] if first is None else [first], chunks),
        field_names(settings.events),
        settings.events.time_unit,
    )
    producer = connect(KafkaProducer, producer_options(settings.kafka))
    sleep = until_stdin_closes if args.until_stdin_closes else pause
    try:
        with interruption() as interrupted, _progress(sending, tally, args.limit) as show:

            def wait(seconds: float) -> bool:
                show()
                return sleep(seconds) or interrupted()

            send_events(
                producer, topic, events, sending, rate=args.rate, speed=args.speed, wait=wait,
                flush_s=settings.kafka.broker_timeout_s,
            )  # fmt: skip
    finally:
        producer.close(timeout=CLOSE_S)
    _report(args, topic, sending, tally)
    return 0


@contextmanager
def _progress(sending: "Sending", tally: "Tally", limit: int | None) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, where that is a terminal; the function given moves it."""
    began_s = time.monotonic()
    with progress_bar() as move:

        def show() -> None:
            share = sending.sent / limit if limit else tally.share
            rate = sending.sent / max(time.monotonic() - began_s, 1e-3)
            move(share, f"{sending.sent:,} events, {rate:,.0f}/s")

        yield show


def _report(args: argparse.Namespace, topic: str, sending: "Sending", tally: "Tally") -> None:
    rejected = tally.rejected.total()
    rate = sending.sent / sending.seconds if sending.seconds else 0.0
    print(
        f"sent {sending.sent:,} events to topic {topic} in {sending.seconds:.1f} s ({rate:,.0f}/s), "
        f"{rejected:,} rows rejected",
        *tally.lines(), sep="\n", file=sys.stderr,
    )  # fmt: skip
    if args.json:
        figures = {
            "sent": sending.sent,
            "rejected": rejected,
            "seconds": sending.seconds,
            "events_per_s": rate,
        }
        print(json.dumps(figures))

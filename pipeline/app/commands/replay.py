"""`afresh replay`: a recorded file into the events topic."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.app.console import interruption, progress_bar
from pipeline.app.file_options import add_file_options, not_negative, recording_of
from pipeline.settings import Settings
from producers.simulator.options import whole

if TYPE_CHECKING:
    from consumers.files.rows import Tally
    from pipeline.events.batch import Events
    from producers.replay import Sending

HELP = """Send a recorded file into the events topic, in its order.

Each row becomes one JSON event: key = user, the row's time in the field for timestamp_ms, the record itself
stamped when it is sent. Without --speed and --rate events are sent as fast as the broker accepts them. The
first Ctrl-C stops the sending; events in flight are acknowledged and counted. Events out of the order of time
are counted and not sorted. Missing topics are created with the broker's defaults."""
EXAMPLE = "afresh replay events.csv.gz --rate 500 --limit 30000\nafresh replay events.parquet --speed 60"
CHUNK_EVENTS = 1_000  # read at a time
SURVEYED_EVENTS = 100_000  # of which the times are checked before the first one is sent
CLOSE_S = 1.0  # everything is flushed by then, or lost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--speed", type=not_negative, default=0.0, metavar="X", help="keep the recorded gaps, divided by X"
    )
    speed.add_argument(
        "--rate", type=not_negative, default=0.0, metavar="R", help="events a second; 0: no limit (default)"
    )
    parser.add_argument(
        "--events", "--limit", dest="limit", type=whole(0), metavar="N", help="how many (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line at the end")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help=argparse.SUPPRESS
    )  # for a parent process
    add_file_options(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Send the file; return 0 at its end or after the first Ctrl-C.

    Raise `UsageError` when the file can't be read, has no valid event, or no broker answers; `BrokerLost`
    and `PublishFailed` when the broker is lost or rejects an event.
    """
    from consumers.files.recording import readable_twice  # help needs no client, numpy, rich
    from consumers.files.rows import Tally
    from producers.replay import Sending

    tally, sending = Tally(), Sending()
    with readable_twice(args.file) as path:
        topic = _send(args, settings, path, tally, sending)
    _report(args, topic, sending, tally)
    return 0


def _send(
    args: argparse.Namespace, settings: Settings, path: Path, tally: "Tally", sending: "Sending"
) -> str:
    """Send the file, stored at `path`; return the topic."""
    from kafka import KafkaProducer

    from consumers.kafka.client import connect
    from pipeline.events.fields import field_names
    from producers.kafka.client import producer_options
    from producers.kafka.topics import ensure_topics
    from producers.rate_limiter import Pace, pause
    from producers.replay import send_events, wire_events
    from producers.simulator.simulation import until_stdin_closes

    topic = next(iter(settings.topics.event_topics()))
    chunks = _read(args, settings, path, tally)
    for created in ensure_topics(settings.kafka, settings.topics, [topic]):
        print(f"created topic {created}", file=sys.stderr)
    events = wire_events(chunks, field_names(settings.events), settings.events.time_unit)
    producer = connect(KafkaProducer, producer_options(settings.kafka))
    sleep = until_stdin_closes if args.until_stdin_closes else pause
    try:
        with interruption() as interrupted, progress_bar() as move:

            def wait(seconds: float) -> bool:
                move(sending.sent / args.limit if args.limit else tally.share, sending.sent)
                return sleep(seconds) or interrupted()

            pace = Pace(args.rate, args.speed)
            send_events(producer, topic, events, sending, pace, wait, settings.kafka.broker_timeout_s)
    finally:
        producer.close(timeout=CLOSE_S)
    return topic


def _read(args: argparse.Namespace, settings: Settings, path: Path, tally: "Tally") -> Iterator["Events"]:
    """Return the file's events in its order; errors of the first events are raised at once."""
    from itertools import chain, islice

    from consumers.files.order import counted, survey
    from consumers.files.source import read_events
    from pipeline.errors import UsageError
    from pipeline.service.clock import SystemClock

    now_ms, recording = SystemClock().now_ms(), recording_of(args, settings, path)
    survey(recording, now_ms, SURVEYED_EVENTS)
    chunks = counted(
        read_events(recording, CHUNK_EVENTS, now_ms=now_ms, start=args.start, limit=args.limit, tally=tally),
        tally,
    )
    first = list(islice(chunks, 1))
    if not first and tally.rejected:
        raise UsageError(f"{args.file}: no row can be read: {tally.lines()[0]}")
    return chain(first, chunks)


def _report(args: argparse.Namespace, topic: str, sending: "Sending", tally: "Tally") -> None:
    rejected = tally.rejected.total()
    rate = sending.sent / sending.seconds if sending.seconds else 0.0
    print(
        f"sent {sending.sent:,} events to topic {topic} in {sending.seconds:.1f} s ({rate:,.0f}/s), "
        f"{rejected:,} rows rejected",
        *tally.lines(), *tally.order(), sep="\n", file=sys.stderr,
    )  # fmt: skip
    if args.json:
        figures = {
            "sent": sending.sent,
            "rows": tally.rows,
            "rejected": rejected,
            "ignored": tally.ignored,
            "duplicates": 0,  # the sender can't detect them
            # events that were read before an interruption are left out too
            "left_out": tally.left_out + tally.types.total() - sending.sent,
            "out_of_order": tally.out_of_order,
            "seconds": sending.seconds,
            "events_per_s": rate,
        }
        print(json.dumps(figures))

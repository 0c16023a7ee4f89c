"""`afresh simulate`: simulated users into the events topic, or into a file."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.app.console import interruption, progress_bar
from pipeline.settings import Settings
from producers.simulator.options import add_simulation_options, order_of

if TYPE_CHECKING:
    from producers.simulator.simulation import Order, Sender

HELP = """Send the events of simulated users to the events topic, or write them to a file.

Users have preferences and items have successors, so that there is something to learn; users and items arrive
over time. The same seed gives the same events. --truth writes what changed when, for whom. With --closed-loop
users look at rankings of the recommendations topic and, by chance, at popular and at random items, and click
and buy by their preferences: the table at the end compares the three. The first Ctrl-C ends the sending;
events that were sent are waited for and counted."""
EXAMPLE = """afresh simulate --events 60000 --change sudden@30000 --truth truth.json
afresh simulate --closed-loop --rate 400         # beside `afresh run`
afresh simulate --season 3 --retire 0.2 --out users.csv.gz"""
PROGRESS_INTERVAL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_simulation_options(parser)
    parser.add_argument("--truth", type=Path, metavar="PATH", help="JSON file for what changed when")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write a .csv, .csv.gz or .jsonl for afresh evaluate instead; no broker is needed",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON line at the end")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help=argparse.SUPPRESS
    )  # for a parent process


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Send or write everything; return 0 at the end or after the first Ctrl-C.

    Raise `UsageError` for an invalid plan or file, or when no broker answers; `BrokerLost` and
    `PublishFailed` when the broker is lost or rejects an event.
    """
    from pipeline.errors import UsageError
    from producers.simulator.file import check_file, check_folder

    order = order_of(args)
    if args.truth is not None:
        check_folder("--truth", args.truth)
    if args.out is None:
        return _send(args, order, settings)
    if args.closed_loop or args.withdraw:
        raise UsageError("--out: expected without --closed-loop and --withdraw: they need topics, not a file")
    check_file(args.out)
    return _write(args, order)


def _write(args: argparse.Namespace, order: "Order") -> int:
    from producers.simulator.file import START_MS, write_events
    from producers.simulator.simulation import Simulation
    from producers.simulator.users import span_ms

    began_s = time.monotonic()
    simulation = Simulation(order, START_MS + span_ms(order.events, order.config, order.plan))
    written = write_events(args.out, simulation.columns())
    if args.truth is not None:
        simulation.write_truth(args.truth, written)
    figures = {"written": written, "file": str(args.out), "seconds": round(time.monotonic() - began_s, 3)}
    print(f"wrote {written:,} events to {args.out}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 0


def _send(args: argparse.Namespace, order: "Order", settings: Settings) -> int:
    from producers.kafka.topics import ensure_topics
    from producers.rate_limiter import pause
    from producers.simulator.simulation import Sender, until_stdin_closes
    from producers.simulator.uplift import lines

    sender = Sender(order, settings.kafka, settings.topics, settings.events, settings.items)
    for created in ensure_topics(settings.kafka, settings.topics, [sender.topic]):
        print(f"created topic {created}", file=sys.stderr)
    sleep = until_stdin_closes if args.until_stdin_closes else pause
    with interruption() as interrupted, progress_bar() as move:
        due_s = time.monotonic() + PROGRESS_INTERVAL_S

        def wait(seconds: float) -> bool:
            nonlocal due_s
            if not args.until_stdin_closes:
                sent = sender.sending.sent
                move(sent / order.events, sent, _click_rates(sender))
            elif args.closed_loop and time.monotonic() >= due_s:  # for the parent process
                due_s = time.monotonic() + PROGRESS_INTERVAL_S
                print(json.dumps({"progress": sender.progress()}), flush=True)
            return sleep(seconds) or interrupted()

        sender.send(wait)
    if args.truth is not None:
        sender.simulation.write_truth(args.truth, sender.sending.sent)
    figures = sender.figures()
    sent, seconds = sender.sending.sent, sender.sending.seconds
    rate = sent / seconds if seconds else 0.0
    print(f"sent {sent:,} events to topic {sender.topic} in {seconds:.1f} s ({rate:,.0f}/s)", file=sys.stderr)
    if args.closed_loop:
        if any(arm["slates"] for arm in figures["uplift"]["arms"].values()):
            print(*lines(figures["uplift"]), sep="\n")
        else:
            topic = settings.topics.recommendations
            print(f"no ranking was read from topic {topic}: is `afresh run` running?", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 0


def _click_rates(sender: "Sender") -> str:
    rates = ", ".join(
        f"{name} {100 * counts['clicks'] / counts['shown']:.1f}%"
        for name, counts in sender.simulation.uplift.counts().items()
        if counts["shown"]
    )
    return f", clicks: {rates}" if rates else ""

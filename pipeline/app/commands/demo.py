"""`afresh demo`: broker, simulated users, pipeline and a live view on one machine, without any setup."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline.app.file_options import NONE, add_column_options, recording_of
from pipeline.errors import UsageError
from pipeline.settings import CheckpointConfig, EventsConfig, KafkaConfig, Settings, TopicsConfig
from producers.simulator.options import EVENTS, RATE, events_a_second, whole

if TYPE_CHECKING:
    from pipeline.app.wiring import Service

HELP = """Run everything live on this machine: simulated users, an embedded broker and the pipeline.

Starts a broker on loopback, publishes the users' events from a separate process, learns them as they arrive
and publishes rankings. Users see lists, published, popular or random ones at random, and click by their
preferences, which change halfway. Ends by itself or on Ctrl-C, with a summary on stderr and one JSON line on
stdout. Nothing is kept. --file plays a recorded stream instead."""
EXAMPLE = "afresh demo --events 60000 --rate 2000\nafresh demo --file events.csv.gz --user-column buyer"
PARTITIONS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--events", type=whole(1), metavar="N", help=f"how many (default: {EVENTS}; of a file: all)"
    )
    parser.add_argument(
        "--rate", type=events_a_second, default=RATE, metavar="R",
        help=f"events a second (default: {RATE:.0f}; 0: as fast as possible)",
    )  # fmt: skip
    parser.add_argument("--file", type=Path, metavar="PATH", help="play a recorded stream instead")
    parser.add_argument(
        "--open-loop", action="store_true", help="users see no lists, and the uplift is not measured"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="of the users (default: 0)")
    add_column_options(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the demo; return 0 when it ended by itself or by a first Ctrl-C.

    Raise `UsageError` without the file, or when the broker can't be started, other `AfreshError`s as the loop
    and the sender do, and KeyboardInterrupt before the loop runs or on a second Ctrl-C.
    """
    from pipeline.app.demo.progress import summary_lines
    from pipeline.app.demo.show import Demo
    from pipeline.app.demo.view import View
    from pipeline.app.wiring import build_service  # help needs no torch and no Kafka client
    from pipeline.service.clock import SystemClock
    from producers.embedded_broker import EmbeddedBroker
    from producers.kafka.topics import create_topics
    from producers.sender_process import SenderProcess

    if args.file is not None and not args.file.is_file():
        raise UsageError(f"--file {args.file}: no such file; expected a .csv, .jsonl or .parquet")
    if args.log_level == "info":  # the live view shows what is logged
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("pipeline.service.loop").setLevel(logging.ERROR)  # nothing is saved, as intended
    total, change_at = planned(args)
    columns = file_columns(args, settings)
    with View(sys.stderr) as view:
        view.print("starting the embedded broker")
        with EmbeddedBroker() as broker:
            own = demo_settings(settings, broker.bootstrap_servers)
            create_topics(own.kafka, own.topics, PARTITIONS)
            view.print("compiling: some seconds, more the first time")
            with SenderProcess(sender_command(args, broker.bootstrap_servers, change_at, columns)) as sender:
                demo = Demo(view, SystemClock(), sender, total, change_at)
                service = build_service(own, demo)
                recommender = service.recommender
                with metrics_served(own.metrics.address, service, view.print):
                    view.print(f"playing {args.file}" if args.file else "sending events of simulated users")
                    summary = demo.play(service.loop, recommender.quality, recommender.track)
        for line in summary_lines(summary):
            view.print(line)
    print(json.dumps(summary))
    return 0


@contextmanager
def metrics_served(address: str, service: "Service", show: Callable[[str], None]) -> Iterator[None]:
    """Serve /metrics, and print where; an address that is in use is reported and does not end the demo."""
    from pipeline.service.health import serve

    with ExitStack() as stack:
        try:
            if server := serve(address, service.metrics.registry, service.health):
                stack.enter_context(server)
                show(f"metrics at http://{server.address}/metrics")
        except UsageError as error:  # the default address may be a running service's
            show(f"continuing without /metrics: {error}")
        yield


def demo_settings(settings: Settings, bootstrap_servers: str) -> Settings:
    """Return the settings with the demo's own broker, topics and fields, and without a checkpoint.

    Event types, batches, model, ranking, limits and the metrics' address stay as configured.
    """
    return msgspec.structs.replace(
        settings,
        kafka=KafkaConfig(bootstrap_servers=bootstrap_servers),
        topics=TopicsConfig(),
        events=msgspec.structs.replace(settings.events, fields={}, time_unit=EventsConfig().time_unit),
        checkpoint=CheckpointConfig(),
    )


def planned(args: argparse.Namespace) -> tuple[int | None, int | None]:
    """Return the number of events, and the one at which preferences change; None: not known, never."""
    if args.file is not None:
        return args.events, None
    events = args.events or EVENTS
    return events, events // 2


def file_columns(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Return the options that name the columns of the file, by the user's options and configuration."""
    if args.file is None:
        return []
    recording = recording_of(args, settings, args.file)
    names = recording.columns._asdict().items()
    options = [f"--{column}-column={NONE if name is None else name}" for column, name in names]
    options += [f"--delimiter={recording.delimiter}"] * (recording.delimiter != ",")
    options += [f"--columns={','.join(recording.header or ())}"] * (recording.header is not None)
    return options + [f"--time-unit={recording.time_unit}"] * (recording.time_unit is not None)


def sender_command(
    args: argparse.Namespace, bootstrap_servers: str, change_at: int | None, columns: Sequence[str] = ()
) -> list[str]:
    """Return the command of the process that sends the events; `columns`: as `file_columns` names them."""
    afresh = [sys.executable, "-m", "pipeline.app.cli"]
    address = ["--set", f"kafka.bootstrap_servers={bootstrap_servers}", "--json", "--until-stdin-closes"]
    if args.file is not None:
        limit = [] if args.events is None else ["--limit", str(args.events)]
        return [*afresh, "replay", str(args.file), "--rate", str(args.rate), *columns, *limit, *address]
    events = ["--events", str(args.events or EVENTS), "--rate", str(args.rate), "--seed", str(args.seed)]
    change = [] if change_at is None else ["--change", f"sudden@{change_at}"]
    loop = [] if args.open_loop else ["--closed-loop"]
    return [*afresh, "simulate", *events, *change, *loop, *address]

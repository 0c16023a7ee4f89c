"""`afresh broker`: the embedded broker in the foreground."""

import argparse
import sys
import threading
from pathlib import Path

from pipeline.app.console import signals_to
from pipeline.errors import AfreshError
from pipeline.settings import Settings

HELP = """Run the embedded broker for development, until Ctrl-C.

Prints bootstrap_servers=127.0.0.1:PORT when it is ready. It listens on this machine only. Its data are lost
when it ends, unless --data names a folder. It is not for production."""
EXAMPLE = "afresh broker --port 9092 --data ./broker-data"
POLL_S = 0.5  # between two checks whether the broker still runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=_port, default=9092, metavar="P", help="0: a free port (default: 9092)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keeps the data (default: a temporary folder)"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; return 0 then. Raise `AfreshError` when the broker ends by itself."""
    from producers.embedded_broker import EmbeddedBroker  # help needs no Kafka client

    stop = threading.Event()
    with signals_to(lambda number, frame: stop.set()), EmbeddedBroker(args.port, args.data) as broker:
        print(f"bootstrap_servers={broker.bootstrap_servers}", flush=True)
        print("Ctrl-C ends it", file=sys.stderr)
        while not stop.wait(POLL_S):
            if not broker.alive():
                raise AfreshError("the embedded broker ended by itself; start it again")
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text}: expected a port from 0 to 65535")
    return port

"""`afresh broker`: the embedded broker in the foreground."""

import argparse
import sys
import threading
from pathlib import Path
from types import FrameType

from pipeline.app.interruption import signals_to
from pipeline.errors import AfreshError
from pipeline.settings import Settings

HELP = """Run the embedded broker for development, until Ctrl-C.

Prints bootstrap_servers=127.0.0.1:PORT when it is ready. It listens on this machine only and keeps its
data in memory, saved as it changes; without --data they are gone when it ends. It is not for production."""
EXAMPLE = "afresh broker --port 9092 --data ./broker-data"
LOOK_S = 0.5  # how soon a broker that died by itself is noticed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument(
        "--port", type=_port, default=9092, metavar="P", help="0: any free one (default: 9092)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep the data here (default: until it ends)"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; 0 then. Raise `AfreshError` when the broker dies by itself."""
    from producers.embedded_broker import EmbeddedBroker  # the Kafka client, not needed for help

    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    with signals_to(ask_to_stop), EmbeddedBroker(args.port, args.data) as broker:
        print(f"bootstrap_servers={broker.bootstrap_servers}", flush=True)
        print("Ctrl-C ends it", file=sys.stderr)
        while not stop.wait(LOOK_S):
            if not broker.alive():
                raise AfreshError("the embedded broker ended by itself; start it again")
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text}: expected a port from 0 to 65535")
    return port

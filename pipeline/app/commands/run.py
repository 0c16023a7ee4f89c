"""`afresh run`: the service."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.app.interruption import signals_to
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.service.loop import Loop

HELP = """Learn from the events topic and publish refreshed rankings, until Ctrl-C or SIGTERM.

The first signal finishes the batch in hand, publishes, saves a checkpoint, commits and leaves the group; a
second
one ends the process at once (130), which loses nothing either: the journal has every batch."""
EXAMPLE = "afresh run --config afresh.toml --set checkpoint.path=/var/lib/afresh"
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options: there are none."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until a signal; 0 then. Raise `AfreshError` as the loop does."""
    from pipeline.app.wiring import build_service  # torch and the Kafka client, not needed for help
    from pipeline.service.health import serve

    with signals() as stopper:
        service = build_service(settings)
        server = serve(settings.metrics.address, service.metrics.registry, service.health)
        try:
            stopper.take(service.loop)
            service.loop.run()
        finally:
            if server is not None:
                server.close()
    return 0


class Stopper:
    """Turns the first signal into a request to stop, the second into the end."""

    def __init__(self) -> None:
        self.asked = False
        self._loop: Loop | None = None

    def take(self, loop: "Loop") -> None:
        """Stop this loop from now on."""
        self._loop = loop

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked:
            os._exit(INTERRUPTED)  # at once, whatever the process hangs in
        self.asked = True
        if self._loop is None:
            raise SystemExit(0)  # nothing has begun
        self._loop.stop()


@contextmanager
def signals() -> Iterator[Stopper]:
    """Give SIGINT and SIGTERM to a `Stopper` for a while."""
    stopper = Stopper()
    with signals_to(stopper):
        yield stopper

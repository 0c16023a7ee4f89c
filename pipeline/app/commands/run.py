"""`afresh run`: the service."""

import argparse
import os
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.app.console import signals_to
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.app.wiring import Service

HELP = """Learn from the events topic and publish refreshed rankings, until Ctrl-C or SIGTERM.

The first signal finishes the current batch, publishes, saves a checkpoint, commits and leaves the group; a
second one ends the process at once (130), which loses nothing either: the journal has every batch."""
EXAMPLE = "afresh run --config afresh.toml --set checkpoint.path=/var/lib/afresh"
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options: there are none."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until a signal; return 0 then. Raise `AfreshError` as the loop does."""
    from pipeline.app.wiring import build_service  # help needs no torch and no Kafka client
    from pipeline.service.health import serve

    service: Service | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        if service is None:
            raise SystemExit(0)  # nothing has begun
        service.loop.stop()

    with ExitStack() as stack:
        # at once, even where the process hangs
        stack.enter_context(signals_to(stop, lambda number, frame: os._exit(INTERRUPTED)))
        service = build_service(settings)
        if server := serve(settings.metrics.address, service.metrics.registry, service.health):
            stack.enter_context(server)
        service.loop.run()
    return 0

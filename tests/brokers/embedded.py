"""The embedded broker, for a whole test session or for one test that ends it."""

from collections.abc import Iterator
from contextlib import contextmanager

from producers.embedded_broker import EmbeddedBroker


@contextmanager
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """Run an embedded broker on a free port, with a folder of its own."""
    with EmbeddedBroker() as broker:
        yield broker

"""Fixtures that several test files share: brokers, and topics of a test's own."""

import os

from pipeline.thread_limits import limit_threads

limit_threads(1)  # as the commands do, before numpy is there: on busy cores a small batch waits for threads

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brokers.apache import apache_kafka
from brokers.embedded import embedded_broker as run_embedded
from hypothesis import settings

# the first example may compile a kernel, and other programs share the machine
settings.register_profile("afresh", deadline=None)
settings.load_profile("afresh")

LONGEST = (("test_kill.py", "test_crash_points.py"), ("test_transactions.py", "test_service.py"))

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests at the beginning of either half, where each of two processes starts.

    At the end one process would wait while the other is still at them.
    """
    early = [[item for item in items if item.path.name in files] for files in LONGEST]
    rest = [item for item in items if not any(item.path.name in files for files in LONGEST)]
    cut = max(0, len(items) // 2 - len(early[0]))
    items[:] = [*early[0], *rest[:cut], *early[1], *rest[cut:]]


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """Address of an embedded broker that the whole session shares."""
    with run_embedded() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def apache_broker() -> Iterator[str]:
    """Address of an Apache Kafka broker that the whole session shares."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("KAFKA_HOME is not set: it names a folder with Apache Kafka's libs/")
    with apache_kafka(Path(home)) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", marks=pytest.mark.kafka, id="embedded"),
        pytest.param("apache_broker", marks=pytest.mark.kafka, id="apache"),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """Address of each kind of broker in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Let a test run commands, which set logging up, and put it back."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def topic_name() -> Callable[[str], str]:
    """Make names that no other test uses, for topics and groups."""

    def make(stem: str) -> str:
        return f"{stem}-{os.getpid()}-{next(_numbers)}"

    return make

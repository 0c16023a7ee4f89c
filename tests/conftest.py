"""Fixtures of several test files: brokers, and topic names that are unique to a test."""

import os

from pipeline.thread_limits import limit_threads

limit_threads(1)  # as the commands do, before numpy is imported: a small batch would wait for busy threads

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from harness.apache_kafka import apache_kafka
from harness.service import Process, Site
from hypothesis import settings
from kafka_group import Group

from producers.embedded_broker import EmbeddedBroker

# the first example may compile a kernel, and other programs share the machine
settings.register_profile("afresh", deadline=None)
settings.load_profile("afresh")

Process.forks = True

LONGEST = (("test_kill.py", "test_crash_points.py"), ("test_transactions.py", "test_service.py"))

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest tests to the start of each half, where each of two processes begins."""
    early = [[item for item in items if item.path.name in files] for files in LONGEST]
    rest = [item for item in items if not any(item.path.name in files for files in LONGEST)]
    cut = max(0, len(items) // 2 - len(early[0]))
    items[:] = [*early[0], *rest[:cut], *early[1], *rest[cut:]]


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """Address of an embedded broker of the whole session."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def apache_broker() -> Iterator[str]:
    """Address of an Apache Kafka broker of the whole session."""
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
    """Restore the root logger after a test of commands, which configure it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def topic_name() -> Callable[[str], str]:
    """Return a function that makes unique names of topics and groups."""
    return lambda stem: f"{stem}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def group(broker: str, topic_name: Callable[[str], str]) -> Iterator[Group]:
    """Topics and sources of one test on each kind of broker."""
    with Group(broker, topic_name) as made:
        yield made


@pytest.fixture
def site(embedded_broker: str, topic_name: Callable[[str], str], tmp_path: Path) -> Iterator[Site]:
    """A site on the embedded broker, without topics yet."""
    with Site(embedded_broker, topic_name("site"), tmp_path, partitions=1) as made:
        yield made


@pytest.fixture
def make_site(topic_name: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Return a function that makes a `Site` with topics of its own; its processes end with the test."""
    with contextlib.ExitStack() as stack:

        def make(broker: str, partitions: int = 4, settings: Mapping[str, object] | None = None) -> Site:
            stem = topic_name("site")
            folder = tmp_path / stem
            folder.mkdir()
            site = stack.enter_context(Site(broker, stem, folder, partitions, settings or {}))
            site.create_topics()
            return site

        yield make

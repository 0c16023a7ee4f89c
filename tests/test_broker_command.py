"""`afresh broker` and the embedded broker: it reports its address, ends when asked, leaves nothing behind."""

import errno
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.clients import Row, make_topic, write
from harness.service import Process, until
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import UsageError
from producers.embedded_broker import EmbeddedBroker

Start = Callable[..., Process]
pytestmark = pytest.mark.kafka


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Process]]:
    """Start the command with options, `--port 0` by default; it is killed at the end of the test."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with ExitStack() as stack:
        yield lambda *options, port=0, name="broker": stack.enter_context(
            Process("broker", "--port", str(port), *options, folder=tmp_path, name=name)
        )


def address(process: Process) -> str:
    process.until(process.printed, "the address")
    first_line = re.fullmatch(r"bootstrap_servers=(127\.0\.0\.1:\d+)\n", process.printed())
    assert first_line, process.printed()
    return first_line[1]


def refuses_connections(server: str) -> bool:
    host, port = server.split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == errno.ECONNREFUSED


def scratch_folders(folder: Path) -> list[Path]:
    return list(folder.glob("**/afresh-broker-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_broker_and_removes_its_folder(start: Start, number: int, tmp_path: Path) -> None:
    process = start()
    server = address(process)
    make_topic(server, "events")
    assert scratch_folders(tmp_path)
    process.tell(number)
    assert process.wait() == (-number if number == signal.SIGKILL else 0)
    until(lambda: refuses_connections(server), "the broker's port is closed")
    until(lambda: not scratch_folders(tmp_path), "the folder is removed")


def test_data_in_a_given_folder_is_kept(start: Start, tmp_path: Path) -> None:
    options = ("--data", str(tmp_path / "data"))
    process = start(*options)
    server = address(process)
    make_topic(server, "events")
    write(server, "events", [Row(0, int(time.time() * 1000), b"kept")])
    process.end()
    consumer = KafkaConsumer(bootstrap_servers=address(start(*options, name="again")))
    assert consumer.end_offsets([TopicPartition("events", 0)]) == {TopicPartition("events", 0): 1}
    consumer.close()


def test_a_port_that_is_in_use_or_impossible_is_an_error(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(port=port)
        assert process.wait() == 2
    assert f"--port {port}: the port is in use" in process.said()
    assert process.said().count("\n") == 1
    assert start(port=70_000, name="impossible").wait() == 2


def test_a_broker_that_dies_ends_the_command(start: Start) -> None:
    process = start()
    address(process)
    pid = process._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("no /proc here: the broker's process can't be found")
    os.killpg(int(children.read_text().split()[0]), signal.SIGKILL)
    assert process.wait() == 1
    assert "the embedded broker ended by itself" in process.said()


def test_a_stopped_broker_leaves_no_process_of_its_group() -> None:
    with EmbeddedBroker() as broker:
        group = broker.pid
        assert broker.alive()
        broker.stop()
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
        broker.stop()  # has no effect
        assert not broker.alive()


@pytest.mark.parametrize(
    ("script", "message"),
    [("", "no message"), ("echo no luck; rm -rf {tmp}/afresh-broker-*", "no luck")],
    ids=["silent", "removes its folder"],
)
def test_a_broker_that_ends_at_once_is_an_error(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{script.format(tmp=tmp_path)}\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("producers.embedded_broker._binary", lambda: broken)
    with pytest.raises(UsageError, match=rf"did not become ready on port \d+: {message}"):
        EmbeddedBroker().start()
    assert scratch_folders(tmp_path) == []


def test_a_data_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "file"
    data.write_text("not a folder")
    with pytest.raises(UsageError, match=r"--data .*file: not a folder"):
        EmbeddedBroker(data=data).start()

"""`afresh broker`: it says where it listens, ends when asked, and leaves nothing behind."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.clients import Row, make_topic, write
from brokers.embedded import embedded_broker as run_embedded
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import UsageError
from producers.embedded_broker import EmbeddedBroker

pytestmark = pytest.mark.kafka
WAIT_S = 20


@contextlib.contextmanager
def command(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.app.cli", "broker", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    """What its first line says."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], WAIT_S)[0], "nothing was printed"
    line = process.stdout.readline()
    said = re.fullmatch(r"bootstrap_servers=(127\.0\.0\.1:\d+)\n", line)
    assert said, line
    return said[1]


def closes(server: str) -> bool:
    """Wait until nobody listens there any more."""
    host, port = server.split(":")
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except ConnectionRefusedError:
            return True
        except OSError:  # it is just ending
            continue
    return False


def scratch_folders(tmp: Path) -> list[Path]:
    return list(tmp.glob("afresh-broker-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with command("--port", "0") as process:
        server = address(process)
        make_topic(server, "events")
        assert scratch_folders(tmp_path)
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
    assert closes(server)
    assert scratch_folders(tmp_path) == []


def test_it_dies_with_a_parent_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with command("--port", "0") as process:
        server = address(process)
        process.kill()
        process.wait(WAIT_S)
    assert closes(server)
    until = time.monotonic() + WAIT_S
    while scratch_folders(tmp_path):
        assert time.monotonic() < until


def test_data_outlive_it_where_a_folder_is_named(tmp_path: Path) -> None:
    options = ("--port", "0", "--data", str(tmp_path / "data"))
    with command(*options) as process:
        server = address(process)
        make_topic(server, "events")
        write(server, "events", [Row(0, int(time.time() * 1000), b"kept")])
        process.terminate()
        assert process.wait(WAIT_S) == 0
    with command(*options) as process:
        consumer = KafkaConsumer(bootstrap_servers=address(process))
        assert consumer.end_offsets([TopicPartition("events", 0)]) == {TopicPartition("events", 0): 1}
        consumer.close()


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command("--port", str(port)) as process:
            assert process.wait(WAIT_S) == 2
            assert process.stderr is not None
            said = process.stderr.read()
    assert f"--port {port}: the port is in use" in said
    assert said.count("\n") == 1


def test_a_port_that_is_none_is_refused() -> None:
    with command("--port", "70000") as process:
        assert process.wait(WAIT_S) == 2


def test_a_broker_that_dies_ends_the_command() -> None:
    with command("--port", "0") as process:
        address(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("no /proc here: the broker's process can't be found")
        group = int(children.read_text().split()[0])
        os.killpg(group, signal.SIGKILL)
        assert process.wait(WAIT_S) == 1
        assert process.stderr is not None
        assert "the embedded broker ended by itself" in process.stderr.read()


def test_a_stopped_broker_leaves_no_process_of_its_group() -> None:
    with run_embedded() as broker:
        group = broker.pid
        assert broker.alive()
        broker.stop()
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
        broker.stop()  # twice does nothing
        assert not broker.alive()


def test_a_broker_that_ends_at_once_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # it is remembered otherwise
    monkeypatch.setattr("producers.embedded_broker._binary", lambda: Path("/bin/false"))
    with pytest.raises(UsageError, match=r"did not become ready on port \d+: no message"):
        EmbeddedBroker().start()
    assert scratch_folders(tmp_path) == []


def test_a_folder_that_vanishes_under_a_launch_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\necho no luck\nrm -rf {tmp_path}/afresh-broker-*\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("producers.embedded_broker._binary", lambda: broken)
    with pytest.raises(UsageError, match=r"did not become ready on port \d+: no luck"):
        EmbeddedBroker().start()


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    data = tmp_path / "file"
    data.write_text("not a folder")
    with pytest.raises(UsageError, match=r"--data .*file: not a folder"):
        EmbeddedBroker(data=data).start()

"""`afresh check` of this machine: import names, the checkpoint folder, the port."""

import fcntl
import socket
import sys
from pathlib import Path

import pytest
from harness.workers import Worker, publish, settings_for
from test_check import only, problems

from consumers.memory import MemoryLog
from pipeline.app import cli
from pipeline.app.check.findings import Level
from pipeline.app.check.machine import checkpoint, checkpoint_offsets, import_names, port, worker_runs
from pipeline.app.check.records import check_offsets
from pipeline.settings import CheckpointConfig, Settings

ROOT = Path(cli.__file__).parents[2]


def test_another_owner_of_an_import_name_is_a_fault() -> None:
    (fine,) = import_names({"pipeline": ["afresh"], "consumers": ["Afresh"]}, ROOT)
    assert (fine.level, fine.about) == (Level.OK, "import names")
    problem = only(list(import_names({"consumers": ["afresh", "acme-bus"]}, ROOT)), Level.FAULT)
    assert "import name consumers: is installed by acme-bus too" in f"{problem.about}: {problem.found}"
    assert "pip uninstall acme-bus" in problem.to_do


def test_a_package_that_hides_ours_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "producers").mkdir()
    (tmp_path / "producers" / "__init__.py").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "producers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    problem = only(list(import_names({}, ROOT)), Level.FAULT)
    assert problem.about == "import name producers"
    assert f"comes from {tmp_path}" in problem.found


def on_disk(folder: Path) -> Settings:
    return Settings(checkpoint=CheckpointConfig(path=str(folder), journal=str(folder)))


def test_a_checkpoint_folder_is_checked_and_not_changed(tmp_path: Path) -> None:
    findings = list(checkpoint(on_disk(tmp_path / "deep" / "state"), running=False))
    assert problems(findings) == []
    assert "will be created" in findings[0].found
    assert "has none yet" in findings[1].found
    assert list(tmp_path.iterdir()) == []
    assert "nothing survives" in only(list(checkpoint(Settings(), running=False)), Level.WARN).found
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in problems(list(checkpoint(on_disk(file / "state"), running=False)))[0].found


def test_a_checkpoint_beyond_the_end_of_the_topic_is_a_fault(tmp_path: Path) -> None:
    log, settings = MemoryLog(), settings_for(tmp_path)
    assert checkpoint_offsets(settings) == {}
    publish(log, ["ann", "bob", "ann"])
    worker = Worker(log, settings)
    worker.loop.start()
    worker.finish()
    worker.loop.checkpoint()
    worker.kill()
    learned = checkpoint_offsets(settings)
    assert list(check_offsets("events", {0: 3}, learned)) == []
    assert list(check_offsets("others", {0: 0}, learned)) == []
    problem = only(list(check_offsets("events", {0: 2}, learned)), Level.FAULT)
    assert "offset 3 of partition 0, which ends at 2" in problem.found


def test_a_damaged_checkpoint_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "worker-0").mkdir()
    (tmp_path / "worker-0" / "manifest-000000000007.json").write_text("{")
    problem = only(list(checkpoint(on_disk(tmp_path), running=False)), Level.FAULT)
    assert "worker worker-0" in problem.found


def test_a_port_in_use_is_a_fault_unless_our_own_worker_holds_it(tmp_path: Path) -> None:
    settings = on_disk(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "can't be bound" in only([port(address, worker_runs(settings))], Level.FAULT).found
        (tmp_path / "worker-0").mkdir()
        with (tmp_path / "worker-0" / "journal.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert worker_runs(settings)
            assert port(address, running=True).level is Level.OK
            found = [finding.found for finding in checkpoint(settings, running=True)]
        assert not worker_runs(settings)
    assert any("a process runs as worker-0" in text for text in found)
    assert port(address, running=False).found == "is free"

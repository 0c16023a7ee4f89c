"""`afresh check` of this machine, what it prints, and the command with a broker."""

import fcntl
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from harness.clients import config, make_topic
from harness.workers import Worker, publish, settings_for
from kafka import KafkaAdminClient, KafkaProducer
from test_check import TOPICS, only, problems

from consumers.kafka.survey import survey
from consumers.memory import MemoryLog
from pipeline.app import cli
from pipeline.app.check.findings import Level
from pipeline.app.check.machine import checkpoint, checkpoint_offsets, import_names, port, worker_runs
from pipeline.app.check.records import check_offsets
from pipeline.settings import CheckpointConfig, Settings

pytestmark = pytest.mark.usefixtures("logging_as_before")

Out, Name = pytest.CaptureFixture[str], Callable[[str], str]
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
    findings = list(checkpoint(on_disk(tmp_path / "deep" / "state")))
    assert problems(findings) == []
    assert "will be created" in findings[0].found
    assert "has none yet" in findings[1].found
    assert list(tmp_path.iterdir()) == []
    assert "nothing survives" in only(list(checkpoint(Settings())), Level.WARN).found
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in problems(list(checkpoint(on_disk(file / "state"))))[0].found


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
    problem = only(list(checkpoint(on_disk(tmp_path))), Level.FAULT)
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
            assert port(address, worker_runs(settings)).level is Level.OK
        assert not worker_runs(settings)
    assert port(address, running=False).found == "is free"


def run(capsys: Out, *args: str) -> tuple[int, str]:
    code = cli.main(["check", *args, "--set", "metrics.address=", "--log-level", "error"])
    return code, capsys.readouterr().out


def test_without_a_broker_this_machine_is_checked(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFRESH_KAFKA__OPTIONS__SSL_PASSWORD", "hunter2")
    timeout = ("--set", "kafka.start_timeout_s=0.3")
    code, out = run(capsys, "--set", "kafka.bootstrap_servers=127.0.0.1:1", *timeout)
    assert code == 2
    lines = out.splitlines()
    assert 'kafka.bootstrap_servers = "127.0.0.1:1"  (--set)' in lines
    assert any(line.startswith("ok     import names: ") for line in lines)
    assert lines[-2].startswith("fault  broker: no broker answered at kafka.bootstrap_servers = '127.0.0.1")
    assert lines[-1] == "1 fault, 1 warning: fix the faults first"
    assert "hunter2" not in out
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        _, out = run(capsys, "--set", f"kafka.bootstrap_servers=127.0.0.1:{other.getsockname()[1]}")
    assert "Something accepts connections at 127.0.0.1:" in out


@pytest.mark.kafka
def test_topics_are_created_on_request_alone(embedded_broker: str, topic_name: Name, capsys: Out) -> None:
    names = {role: topic_name(role) for role in TOPICS}
    events = names["events"]
    make_topic(embedded_broker, events, 3)
    producer = KafkaProducer(bootstrap_servers=embedded_broker)
    for number in range(30):
        value = msgspec.json.encode({"user_id": f"u{number}", "item_id": "i"})
        producer.send(events, key=f"u{number}".encode(), value=value)
    producer.send(events, key=b"u1", value=b"{").get(10)
    producer.close()
    sets = [f"topics.{role}={name}" for role, name in names.items() if role != "events"]
    sets += [f'topics.events=["{events}"]', f"kafka.bootstrap_servers={embedded_broker}"]
    options = [word for text in sets for word in ("--set", text)]
    code, out = run(capsys, *options, "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["faults"]) == (0, 0)
    checks = {check["about"]: check for check in report["checks"]}
    assert checks[f"topic {names['drift']}"]["level"] == "warn"
    assert checks[f"keys of {events}"]["level"] == "ok"
    assert "not_json: 1" in checks[f"records of {events}"]["found"]
    assert report["configuration"]["topics.drift"] == {"value": f'"{names["drift"]}"', "origin": "--set"}
    assert report["configuration"]["rank.k"] == {"value": "10", "origin": "default"}
    admin = KafkaAdminClient(bootstrap_servers=embedded_broker)
    assert not set(admin.list_topics()) & (set(names.values()) - {events})
    code, out = run(capsys, *options, "--create-topics")
    assert code == 0
    assert f"ok     topic {names['recommendations']}: 3 partitions, compacted" in out
    assert f"ok     records of {names['items']}: no record yet" in out
    assert set(admin.list_topics()) >= set(names.values())
    admin.close()


@pytest.mark.kafka
def test_a_survey_joins_no_group(embedded_broker: str, topic_name: Name) -> None:
    group = topic_name("group")
    found = survey(config(embedded_broker, group), [topic_name("absent")], f"{group}-worker-0")
    assert (found.group.error, found.transactional_id) == ("", "")
    assert [topic.exists for topic in found.topics.values()] == [False]
    admin = KafkaAdminClient(bootstrap_servers=embedded_broker)
    assert group not in {each["group_id"] for each in admin.list_groups()}
    admin.close()

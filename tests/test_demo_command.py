"""`afresh demo` as a command: settings and options, the process of the sender, and that none is left."""

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from harness.clock import ManualClock

from pipeline.app import cli
from pipeline.app.commands import demo as command
from pipeline.errors import AfreshError
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.settings import CheckpointConfig, EventsConfig, KafkaConfig, ModelConfig, Settings
from producers.sender_process import SenderProcess


def test_the_demo_keeps_its_own_broker_topics_and_records_and_the_users_model():
    mine = Settings(
        kafka=KafkaConfig(bootstrap_servers="prod:9092", group_id="live"),
        checkpoint=CheckpointConfig(path="/var/lib/afresh"),
        model=ModelConfig(tables={"attention": {"dim": 32}}),
        events=EventsConfig(fields={"user_id": "uid"}, time_unit="s", weights={"buy": 3.0}),
    )
    settings = command.demo_settings(mine, "127.0.0.1:1234")
    assert settings.kafka == KafkaConfig(bootstrap_servers="127.0.0.1:1234")
    assert settings.checkpoint.path == ""
    assert settings.model == mine.model
    assert settings.events == EventsConfig(weights={"buy": 3.0})
    assert settings.metrics == mine.metrics


def served(address):
    lines, service = [], argparse.Namespace(metrics=Metrics(), health=Health(ManualClock(0)))
    with command.metrics_served(address, service, lines.append):
        for url in (line.removeprefix("metrics at ") for line in lines if line.startswith("metrics at ")):
            with urllib.request.urlopen(url) as answer:
                lines.append(answer.read().decode())
    return lines


def test_metrics_are_served_while_the_demo_runs_and_no_longer():
    line, answer = served("127.0.0.1:0")
    assert "afresh_events_learned 0.0" in answer
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(line.removeprefix("metrics at "))
    assert served("") == []


def test_an_address_in_use_is_reported_and_the_demo_continues_without_metrics():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (line,) = served(address)
    assert line.startswith("continuing without /metrics: ")
    assert address in line


def options(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def sender_command(*arguments):
    args = options(*arguments)
    return " ".join(command.sender_command(args, "127.0.0.1:1", command.planned(args)[1]))


def test_by_default_60_000_events_are_sent_at_2_000_a_second_and_preferences_change_halfway():
    assert command.planned(options()) == (60_000, 30_000)
    assert " --events 60000 --rate 2000.0 --seed 0 --change sudden@30000 --closed-loop " in sender_command()
    assert "--closed-loop" not in sender_command("--open-loop")
    assert "--closed-loop" not in sender_command("--file", "events.csv")


def test_a_files_columns_go_by_the_options_and_the_configuration(tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("when,customer ref,SKU\n")
    args = options("--file", str(path), "--timestamp-column", "when", "--time-unit", "iso")
    mine = Settings(events=EventsConfig(fields={"user_id": "customer ref", "item_id": "SKU"}))
    columns = command.file_columns(args, mine)
    assert columns[:3] == ["--user-column=customer ref", "--item-column=SKU", "--timestamp-column=when"]
    assert columns[-1] == "--time-unit=iso"
    assert "--user-column=customer ref" in command.sender_command(args, "127.0.0.1:1", None, columns)
    assert command.file_columns(options(), mine) == []
    path.write_text("1;2;3;881250949\n")
    args = options("--file", str(path), "--columns", "user,item,,timestamp", "--value-column", "none")
    expected = ["--value-column=none", "--delimiter=;", "--columns=user,item,,timestamp"]
    assert command.file_columns(args, Settings())[-3:] == expected


@pytest.mark.parametrize("words", ["--events many", "--events 0", "--rate -1", "--rate nan"])
def test_a_wrong_number_is_reported(words, capsys):
    option, number = words.split()
    with pytest.raises(SystemExit):
        options(option, number)
    assert f"argument {option}: {number}: expected " in capsys.readouterr().err


def python(code):
    return [sys.executable, "-c", code]


def test_a_sender_process_reports_its_progress_and_in_the_end_its_figures():
    code = (
        'import sys; print(\'{"progress": {"sent": 3}}\', flush=True); sys.stdin.read(1); '
        'print(\'{"sent": 7, "uplift": {}}\')'
    )
    with SenderProcess(python(code)) as sender:
        assert (sender.sent(), sender.progress(), sender.figures()) == (None, None, None)
        sender.start()
        assert sender.figures() is None  # it waits for its input to end
        sender.stop()
        assert sender.progress() == {"sent": 3}
        assert (sender.sent(), sender.figures()) == (7, {"sent": 7, "uplift": {}})


def test_a_sender_process_that_fails_is_reported_with_its_last_line_and_its_code():
    fails = "import sys; print('x' * 100_000); print('no disk', file=sys.stderr); sys.exit({})"
    for code, shown in ((3, 3), (77, 1)):
        with SenderProcess(python(fails.format(code))) as sender:
            sender.start()
            sender._process.wait(timeout=30)
            with pytest.raises(AfreshError, match=f"ended with code {code}: no disk") as caught:
                sender.sent()
        assert caught.value.exit_code == shown


@pytest.mark.parametrize("code", ["import sys; sys.stdin.read()", "import time; time.sleep(600)"])
def test_no_sender_process_outlives_its_block_even_one_that_ignores_its_input(code, monkeypatch):
    monkeypatch.setattr("producers.sender_process.STOP_WAIT_S", 0.2)
    with SenderProcess(python(code)) as sender:
        sender.start()
        pid = sender._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_sender_ends_when_the_process_that_started_it_is_killed(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    child = "import sys; out = open(sys.argv[1], 'w'); print('up', file=out, flush=True); sys.stdin.read()"
    parent = (
        "import sys; from producers.sender_process import SenderProcess; "
        "SenderProcess([sys.executable, '-c', *sys.argv[1:]]).start(); sys.stdin.read()"
    )
    command = [*python(parent), child, str(tmp_path / "fifo")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, (tmp_path / "fifo").open() as fifo:
        assert fifo.readline() == "up\n"
        process.kill()
        assert fifo.read() == ""  # the end of the file: the only writer has ended


DEMO = [sys.executable, "-m", "pipeline.app.cli", "demo"]


def played(*arguments):
    command = [*DEMO, "--rate", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def children(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *children(child)]
    return found


def read_until(stream, text):
    for shown in iter(stream.readline, ""):
        if text in shown:
            return
    raise AssertionError(f"ended without {text!r}")


@pytest.mark.kafka
def test_the_command_runs_with_a_broker_of_its_own_and_ends_with_one_json_line():
    done = played("--events", "1500")
    summary = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert summary["events"] == 1_500
    assert summary["dead_letters"] == 0
    assert next(iter(summary["models"])) == "attention"
    assert "1,500 events learned" in done.stderr
    assert list(summary["uplift"]["arms"]) == ["recommended", "popular", "random"]


@pytest.mark.kafka
def test_the_command_plays_a_file(tmp_path):
    rows = [f"u{row % 7},i{row % 50},{1_700_000_000 + row},click,\n" for row in range(400)]
    (tmp_path / "events.csv").write_text("user,item,timestamp,event,value\n" + "".join(rows))
    summary = json.loads(played("--file", str(tmp_path / "events.csv"), "--events", "300").stdout)
    assert (summary["events"], summary["uplift"]) == (300, None)


def test_a_missing_file_is_reported_in_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--file", str(tmp_path / "none.csv")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "none.csv: no such file" in err


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command_whatever_ends_it(number):
    command = [*DEMO, "--events", "100000", "--rate", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        read_until(process.stderr, " of 100,000 events")
        family = [os.pidfd_open(pid) for pid in children(process.pid)]
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert len(family) >= 2  # broker and sender
    for one in family:
        assert select.select([one], [], [], 10)[0], "a child process outlived the demo"
        os.close(one)
    if number == signal.SIGINT:
        assert process.returncode == 0
        assert 0 < json.loads(out)["events"] < 100_000

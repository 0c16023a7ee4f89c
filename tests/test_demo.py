"""The demo over a real loop: it starts the sender when ready, ends when all is learned, leaves no process."""

import io
import json
import os
import signal

import msgspec
import numpy as np
import pytest
from harness.clock import ManualClock
from harness.learners import CountingLearner

from consumers.memory import MemoryLog, MemorySource
from pipeline.app import cli
from pipeline.app.commands import demo as command
from pipeline.app.demo.progress import summary_lines
from pipeline.app.demo.show import Demo, Latency
from pipeline.app.demo.view import View
from pipeline.errors import AfreshError
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.evaluation.timeline import Moment, Timeline
from pipeline.events.decode import Decoder
from pipeline.events.records import DriftAlarm
from pipeline.models.model import RankResult
from pipeline.service.health import Health
from pipeline.service.loop import Adapters, Loop
from pipeline.service.metrics import Metrics
from pipeline.service.ports import Delivered
from pipeline.settings import CheckpointConfig, EventsConfig, KafkaConfig, ModelConfig, Settings
from producers.memory import MemorySink
from producers.simulator.events import wire_events
from producers.simulator.users import simulate_users

NOW_MS = 1_750_000_000_000
ALARM = DriftAlarm("adwin", "hit_rate", 900, 0.374, 0.061, NOW_MS)


class Clock(ManualClock):
    """A clock on which every look takes 10 ms."""

    def monotonic_s(self):
        self.advance(0.01)
        return super().monotonic_s()


class ListSender:
    """Put simulated events and one bad record into the log at the start."""

    def __init__(self, log, events):
        self.log, self.events, self.started, self.stopped, self.error = log, events, 0, 0, None
        self.so_far = self.last = None

    def start(self):
        self.started += 1
        for columns in simulate_users(self.events, seed=0):
            for event in wire_events(columns, NOW_MS - 10**7):
                self.log.append(msgspec.json.encode(event), key=event.user_id.encode(), timestamp=NOW_MS - 40)
        self.log.append(b"not json", timestamp=NOW_MS)

    def sent(self):
        if self.error:
            raise self.error
        return self.events + 1 if self.started else None

    def progress(self):
        return self.so_far

    def figures(self):
        return self.last if self.stopped else None

    def stop(self):
        self.stopped += 1


class AlarmingLearner(CountingLearner):
    def step(self, raw, *arguments):
        outcome = super().step(raw, *arguments)
        if raw.seq == 2:
            outcome.alarms.append(ALARM)
        return outcome


class Stage:
    """A demo, its loop and what they print, without a broker."""

    def __init__(self, events=2_000, change_at=600):
        self.clock, self.log, self.printed = Clock(NOW_MS), MemoryLog(), io.StringIO()
        self.sender, self.sink, settings = ListSender(self.log, events), MemorySink(), Settings()
        self.demo = Demo(View(self.printed), self.clock, self.sender, events, change_at)
        decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
        self.source = MemorySource(self.log)
        adapters = Adapters(self.source, decoder, self.sink, self.clock, self.demo)
        self.loop = Loop(AlarmingLearner(settings), adapters, settings)
        self.quality = RankMetrics(["attention", "popularity"])

    def play(self):
        return self.demo.play(self.loop, self.quality, self.track)

    def track(self):
        return Timeline(self.quality.models).track(Moment(1, 0, self.quality.totals(), 0.0, 0))


def test_the_demo_ends_by_itself_when_all_that_was_sent_is_learned_and_acknowledged():
    stage = Stage()
    summary = stage.play()
    assert (stage.sender.started, stage.sender.stopped) == (1, 1)
    assert summary["events"] == 2_000
    assert summary["dead_letters"] == len(stage.sink.outbox.rejects) == 1
    assert summary["rankings"] == len(stage.sink.outbox.rankings) > 0
    assert stage.log.committed == {each: stage.log.end(each) for each in stage.log.partitions()}
    assert summary["events_per_s"] > 0
    assert 40 <= summary["latency_p50_ms"] <= summary["latency_p99_ms"]


def test_the_summary_has_the_keys_of_the_last_json_line():
    stage = Stage()
    hits = RankResult(*(np.array([value]) for value in (4, 0, 100, True, True, 0.9)))
    stage.quality.update("attention", hits, np.array([False]), np.zeros(1))
    summary = json.loads(json.dumps(stage.play()))
    assert list(summary) == [
        "events", "rankings", "dead_letters", "events_per_s", "latency_p50_ms", "latency_p99_ms", "models",
        "drift_alarms", "uplift", "seconds",
    ]  # fmt: skip
    assert summary["models"]["attention"] == {"hr@10": 1.0, "ndcg@10": pytest.approx(1 / np.log2(6))}
    assert summary["models"]["popularity"] == {"hr@10": 0.0, "ndcg@10": 0.0}
    assert summary["drift_alarms"] == [{"signal": "hit_rate", "at_event": 900, "delay_events": 300}]
    assert summary["uplift"] is None
    first, latency, model, _, alarm = summary_lines(summary)
    assert first.startswith("2,000 events learned and ")
    assert latency.startswith("from the event's record to the acknowledged ranking: p50 ")
    assert model == "attention: hit rate@10 1.000, NDCG@10 .387, whole stream"
    assert alarm == "drift alarm: hit_rate at event 900, 300 after the change of preferences"


def arms(clicks):
    counts = {"shown": 50, "clicks": clicks, "purchases": 1}
    return {"arms": {"recommended": counts, "random": counts}}


def test_the_uplift_is_shown_while_it_runs_and_summed_up_at_the_end():
    stage = Stage(events=40_000)
    stage.sender.so_far = {"sent": 9, **arms(5)}
    gap = {"click_rate": [0.0, -0.1, 0.1], "purchase_rate": None}
    last = {**arms(6), "lists_up_to_date": 0.754, "recommended_minus_random": gap}
    stage.sender.last = {"sent": 40_001, "seconds": 1.0, "uplift": {**last, "windows": [last] * 10}}
    summary = stage.play()
    assert "clicks on 100 shown: recommended 10.0, random 10.0\n" in stage.printed.getvalue()
    assert summary["uplift"] == last
    lines = list(summary_lines(summary))
    assert "75% of the recommended lists covered all events of their user" in lines
    assert "of 100 random items 12.0 and 2.00: recommended +0.0 ±10.0 and -" in lines


@pytest.mark.parametrize("change_at", [None, 900, 1_500])
def test_an_alarm_that_no_planted_change_explains_has_no_delay(change_at):
    (alarm,) = Stage(change_at=change_at).play()["drift_alarms"]
    assert alarm["delay_events"] is None


@pytest.mark.parametrize(("current", "reported"), [(0.5, False), (0.49, True)])
def test_a_machine_that_is_too_slow_for_the_rate_is_reported(current, reported):
    summary = {**Stage().play(), "uplift": {**arms(5), "lists_up_to_date": current}}
    assert ("try a lower --rate" in "\n".join(summary_lines(summary))) is reported


def test_without_a_terminal_progress_and_alarms_are_plain_lines():
    stage = Stage(events=40_000)
    stage.play()
    lines = stage.printed.getvalue().splitlines()
    alarm = "drift: hit_rate .374 -> .061 at event 900, 300 after the change of preferences"
    assert lines.count(alarm) == 1
    assert sum(text.startswith("40,001 of 40,000 events | ") for text in lines) == 1
    assert "\x1b" not in stage.printed.getvalue()


def test_a_first_signal_ends_the_demo_in_good_order():
    stage = Stage(events=20_000)
    poll = stage.source.poll

    def interrupted_poll(*arguments):
        if stage.loop.learner.seq == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return poll(*arguments)

    stage.source.poll = interrupted_poll
    before = signal.getsignal(signal.SIGINT)
    summary = stage.play()
    assert 0 < summary["events"] < 20_000
    assert stage.sender.stopped == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_ends_it_at_once():
    stage = Stage()
    stage.source.poll = lambda *_: os.kill(os.getpid(), signal.SIGINT) or NOTHING_POLLED
    stage.loop.leave = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stage.play()


def test_a_sender_that_failed_ends_the_demo_with_its_error():
    stage = Stage()
    stage.sender.error = AfreshError("the process that sends the events ended with code 1: disk full")
    with pytest.raises(AfreshError, match="disk full"):
        stage.play()


def test_latency_percentiles_are_those_of_all_times_and_at_most_a_minute():
    times = np.random.default_rng(0).integers(-5, 900, 5_001)
    latency = Latency()
    assert latency.percentile(0.5) is None
    for part in np.array_split(times, 7):
        latency.add(part)
    for share in (0.5, 0.99, 1.0):
        expected = np.percentile(np.maximum(times, 0), share * 100, method="inverted_cdf")
        assert latency.percentile(share) == expected
    latency.add(np.array([10**9]))
    assert latency.percentile(1.0) == 60_000


def test_records_without_a_plausible_time_are_in_no_latency():
    demo = Stage().demo
    demo.delivered(Delivered(1, {}, np.array([0, NOW_MS - 30])), NOW_MS)
    assert demo.latency.percentile(1.0) == 30


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
    """Return the lines printed while metrics are served, and the answer of the server."""
    lines, service = [], argparse.Namespace(metrics=Metrics(), health=Health(ManualClock(NOW_MS)))
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


def test_an_open_loop_and_a_file_have_no_closed_loop():
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
    assert command.file_columns(args, Settings())[-3:] == [
        "--value-column=none", "--delimiter=;", "--columns=user,item,,timestamp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [("--events", "many"), ("--events", "0"), ("--rate", "-1"), ("--rate", "nan")]
)
def test_a_wrong_number_is_reported(arguments, capsys):
    with pytest.raises(SystemExit):
        options(*arguments)
    assert f"argument {arguments[0]}: {arguments[1]}: expected " in capsys.readouterr().err


def python(code):
    return [sys.executable, "-c", code]


def finish(sender):
    """Wait for the process without a poll, then ask."""
    sender._process.wait(timeout=30)
    return sender.sent()


def test_a_sender_process_reports_how_many_events_it_sent():
    with SenderProcess(python("print('hello'); print('{\"sent\": 12, \"seconds\": 1}')")) as sender:
        assert sender.sent() is None
        sender.start()
        assert finish(sender) == 12


def test_a_sender_process_reports_its_progress_and_in_the_end_its_figures():
    code = (
        'import sys; print(\'{"progress": {"sent": 3}}\', flush=True); sys.stdin.read(1); '
        'print(\'{"sent": 7, "uplift": {}}\')'
    )
    with SenderProcess(python(code)) as sender:
        assert (sender.progress(), sender.figures()) == (None, None)
        sender.start()
        assert sender.figures() is None  # it waits for its input to end
        sender.stop()
        assert sender.progress() == {"sent": 3}
        assert sender.figures() == {"sent": 7, "uplift": {}}


def test_a_sender_process_that_fails_is_reported_with_its_last_line_and_its_code():
    fails = "import sys; print('x' * 100_000); print('no disk', file=sys.stderr); sys.exit({})"
    for code, shown in ((3, 3), (77, 1)):
        with SenderProcess(python(fails.format(code))) as sender:
            sender.start()
            with pytest.raises(AfreshError, match=f"ended with code {code}: no disk") as caught:
                finish(sender)
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


def children(pid):
    """Every process that descends from this one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *children(child)]
    return found


def read_until(stream, text):
    """Read lines up to one with this text."""
    for shown in iter(stream.readline, ""):
        if text in shown:
            return
    raise AssertionError(f"ended without {text!r}")


@pytest.mark.kafka
def test_the_command_runs_with_a_broker_of_its_own_and_ends_with_one_json_line():
    done = subprocess.run(
        [*DEMO, "--events", "1500", "--rate", "0"], capture_output=True, text=True, timeout=120, check=True
    )
    (last,) = done.stdout.splitlines()
    summary = json.loads(last)
    assert summary["events"] == 1_500
    assert summary["dead_letters"] == 0
    assert next(iter(summary["models"])) == "attention"
    assert "1,500 events learned" in done.stderr
    assert list(summary["uplift"]["arms"]) == ["recommended", "popular", "random"]


@pytest.mark.kafka
def test_the_command_plays_a_file(tmp_path):
    rows = [f"u{row % 7},i{row % 50},{1_700_000_000 + row},click,\n" for row in range(400)]
    (tmp_path / "events.csv").write_text("user,item,timestamp,event,value\n" + "".join(rows))
    command = [*DEMO, "--file", str(tmp_path / "events.csv"), "--rate", "0", "--events", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["events"] == 300
    assert json.loads(done.stdout)["uplift"] is None


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

"""`afresh simulate`: what it writes and sends, what it reports, and how a parent process follows it."""

import json
import sys
import threading
import time
from contextlib import closing
from unittest.mock import Mock

import msgspec
import pytest
from harness.clients import lying_on
from harness.service import Site, until
from kafka import KafkaProducer
from recordings import read_recording

from pipeline.app import cli
from pipeline.settings import EventsConfig, KafkaConfig
from producers.rate_limiter import Pace, pause
from producers.sender_process import SenderProcess
from producers.simulator import newest_lists, simulation
from producers.simulator.events import BUSY_CONFIG, DEFAULT_CONFIG, SimulatedEvent, item_name, user_name
from producers.simulator.file import START_MS
from producers.simulator.newest_lists import NewestLists
from producers.simulator.plan import Burst, Plan, Season
from producers.simulator.simulation import Order, Sender, Simulation, encoder

NOW_MS = 1_780_000_000_000


def simulated(*arguments):
    return cli.main(["simulate", *map(str, arguments)])


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.jsonl", "a.jsonl.gz"])
def test_a_file_holds_the_events_as_evaluate_reads_them(name, tmp_path, capsys):
    path = tmp_path / name
    assert simulated("--events", 1_000, "--seed", 3, "--out", path, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["written"] == 1_000
    (events,) = read_recording(path, 2_000, now_ms=NOW_MS)
    (expected,) = Simulation(Order(1_000, 3), NOW_MS).columns()
    assert events.user_ids == [user_name(user) for user in expected.user_B]
    assert events.item_ids == [item_name(item) for item in expected.item_B]
    assert (events.time_ms_B == START_MS + expected.time_ms_B).all()
    assert set(events.types) <= {"view", "click", "like", "cart", "buy"}


def test_the_same_seed_writes_the_same_file_and_the_same_truth(tmp_path):
    plan = ["--events", 2_000, "--change", "sudden@500", "--burst", "rate@900..1100", "--retire", "0.1"]
    written = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert simulated(*plan, "--out", folder / "a.csv.gz", "--truth", folder / "truth.json") == 0
        written.append([(folder / name).read_bytes() for name in ("a.csv.gz", "truth.json")])
    assert written[0] == written[1]
    truth = json.loads(written[0][1])
    (change,) = truth["changes"]
    (events,) = read_recording(tmp_path / "0" / "a.csv.gz", 4_000, now_ms=NOW_MS)
    assert change["at_event"] == 500
    assert events.time_ms_B[499] <= change["at_ms"] <= events.time_ms_B[500]
    assert {"events", "sent", "seed", "bursts", "retired_items", "new_items", "noise_users"} <= truth.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--events", "0"], "0: expected a whole number, 1 or more"),
        (["--rate", "-1"], "-1: expected events a second"),
        (["--change", "sudden@9", "--change", "gradual@1..20"], "overlap: expected the first to be over"),
        (["--out", "a.txt"], "--out a.txt: expected a name that ends with .csv"),
        (["--out", "nowhere/a.csv"], "--out nowhere/a.csv: expected a file in a folder that exists"),
        (["--truth", "nowhere/a.json"], "--truth nowhere/a.json: expected a file in a folder that exists"),
        (["--out", "a.csv", "--closed-loop"], "--out: expected without --closed-loop"),
    ],
)
def test_wrong_use_is_an_error_of_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert simulated(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_events_have_the_field_names_and_the_time_unit_of_the_configuration():
    settings = EventsConfig(fields={"item_id": "product.sku", "user_id": "$key"}, time_unit="iso")
    simulation = Simulation(Order(1, 0), NOW_MS, encoder(settings))
    (event,) = simulation.wire(simulation.columns())
    record = msgspec.json.decode(event.value)
    assert event.key.startswith(b"shopper-")
    assert record["product"]["sku"]
    assert record["timestamp_ms"].startswith("2026-05-28T")
    assert "user_id" not in record


def test_events_are_keyed_by_user_and_event_time_ends_about_now():
    simulation = Simulation(Order(3_000, 0), NOW_MS)
    events = list(simulation.wire(simulation.columns()))
    assert len(events) == 3_000
    for event in events[::500]:
        decoded = msgspec.json.decode(event.value, type=SimulatedEvent)
        assert (event.key.decode(), event.time_ms) == (decoded.user_id, decoded.timestamp_ms)
    times = sorted(event.time_ms for event in events)
    assert abs(times[-1] - NOW_MS) < 0.1 * (NOW_MS - times[0])


def test_a_season_starts_at_midnight_and_ends_about_now():
    simulation, day_ms = Simulation(Order(3_000, 0, plan=Plan(season=Season(2))), NOW_MS), 24 * 3_600_000
    assert simulation.start_ms % day_ms == 0
    *_, last = simulation.wire(simulation.columns())
    assert NOW_MS - 1.2 * day_ms < last.time_ms < NOW_MS + 0.2 * day_ms


def test_a_burst_of_rate_is_sent_as_a_burst():
    assert Order(1_000, 0, rate=500.0).pace() == Pace(500.0)
    burst = Plan(bursts=(Burst("rate", 10, 20),))
    speed = Order(1_000, 0, rate=500.0, plan=burst).pace().speed
    assert speed * 1_000 == pytest.approx(500 * DEFAULT_CONFIG.pause_s * 1_000 / DEFAULT_CONFIG.sessions)
    assert Order(1_000, 0, rate=0.0, plan=burst).pace() == Pace()


def test_a_sender_process_has_the_default_configuration_whatever_the_environment(monkeypatch):
    monkeypatch.setenv("AFRESH_TOPICS__EVENTS", "other")
    print_names = "import json, os; print(json.dumps({'sent': 0, 'names': list(os.environ)}))"
    with SenderProcess([sys.executable, "-c", print_names]) as sender:
        sender.start()
        until(sender.figures, "the end of the process")
        names = sender.figures()["names"]
    assert "PATH" in names
    assert not any(name.startswith("AFRESH_") for name in names)


def records_of(site, topic):
    return lying_on(site.broker, f"{site.stem}-{topic}")


def publish(site, *records):
    """Publish rankings: (user, value)."""
    with closing(KafkaProducer(bootstrap_servers=site.broker)) as producer:
        for key, value in records:
            producer.send(f"{site.stem}-recommendations", key=key.encode(), value=value)


def listed(*items, event_ms=0):
    return json.dumps(
        {"items": [{"item_id": item} for item in items], "event_timestamp_ms": event_ms}
    ).encode()


@pytest.mark.kafka
def test_a_user_sees_the_newest_ranking_or_else_the_default_one(site):
    site.create_topics()
    newest = listed("b", "c", event_ms=7)
    publish(site, ("ann", listed("a")), ("ann", newest), ("bob", listed("d")), ("bob", None))
    settings = site.configured()
    with NewestLists(settings.kafka, settings.topics.recommendations) as lists:
        while lists.of("ann") is None or lists.of("bob") is not None:
            lists.refresh()
        assert lists.of("ann") == (["b", "c"], 7)
        assert lists.of("eve") is None
        publish(site, ("__default__", listed("e")))
        while lists.of("eve") is None:
            lists.refresh()
        assert lists.of("bob") == lists.of("eve") == (["e"], 0)
        assert lists.of("ann") == (["b", "c"], 7)


def test_an_error_of_the_reading_thread_is_raised(monkeypatch):
    broken = Mock(**{"poll.side_effect": ValueError("no such codec")})
    monkeypatch.setattr(newest_lists, "TopicReader", lambda *_: broken)
    with NewestLists(KafkaConfig(), "recommendations") as lists:
        lists.of("ann")
        lists._thread.join()
        with pytest.raises(ValueError, match="no such codec"):
            lists.refresh()


@pytest.mark.kafka
def test_the_closed_loop_reports_its_progress_and_the_uplift(site, capsys, tmp_path, monkeypatch):
    site.create_topics()
    publish(site, ("__default__", listed("tea-0", "art-0", "books-0")))
    monkeypatch.setattr("pipeline.app.commands.simulate.PROGRESS_INTERVAL_S", 0.05)
    monkeypatch.setattr(simulation, "until_stdin_closes", pause)
    options = ["--events", 1_500, "--rate", 3_000, "--retire", 0.2, "--withdraw", "--closed-loop", "--json"]
    truth_path = tmp_path / "truth.json"
    assert simulated(*options, "--truth", truth_path, "--until-stdin-closes", *site.options()) == 0
    out = capsys.readouterr().out.splitlines()
    progress = [json.loads(line)["progress"] for line in out if line.startswith('{"progress"')]
    last = json.loads(out[-1])
    assert last["sent"] == len(records_of(site, "events")) == 1_500
    assert len(progress) > 2
    assert [line["sent"] for line in progress] == sorted(line["sent"] for line in progress)
    assert progress[-1]["arms"].keys() == {"recommended", "popular", "random"}
    for arm, counts in last["uplift"]["arms"].items():
        assert counts["slates"] >= progress[-1]["arms"][arm]["slates"] > 0
    shown = last["uplift"]["arms"]["recommended"]
    assert shown["shown"] == 3 * shown["slates"]
    retired = {item["item_id"] for item in json.loads(truth_path.read_text())["retired_items"]}
    withdrawn = [json.loads(record.value) for record in records_of(site, "items")]
    assert all(record["available"] is False for record in withdrawn)
    assert {record["item_id"] for record in withdrawn} <= retired
    assert 0 < len(retired) - 5 <= len(withdrawn) <= len(retired)  # without some of the last round


def test_the_command_creates_the_topic_and_sends_the_simulated_events(broker, topic_name, tmp_path, capsys):
    site = Site(broker, topic_name("simulate"), tmp_path)
    assert simulated("--events", 500, "--rate", 5_000, "--json", *site.options()) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["sent"] == 500
    assert f"created topic {site.events}" in err
    records = records_of(site, "events")
    own = Simulation(Order(500, 0), NOW_MS)
    sent, expected = (
        sorted(json.dumps(json.loads(each.value) | {"timestamp_ms": 0}) for each in events)
        for events in (records, own.wire(own.columns()))
    )
    assert sent == expected
    assert all(abs(record.timestamp / 1000 - time.time()) < 60 for record in records)


@pytest.mark.kafka
def test_a_closed_loop_without_rankings_reports_that(site, capsys):
    assert simulated("--events", 300, "--rate", 0, "--closed-loop", "--json", *site.options()) == 0
    assert f"no ranking was read from topic {site.stem}-recommendations" in capsys.readouterr().err


@pytest.mark.kafka
def test_an_interrupted_sender_waits_for_events_that_were_sent(site):
    site.create_topics()
    stop = threading.Event()

    def wait(seconds):
        return sender.sending.sent >= 100 or stop.wait(seconds)

    order = Order(10**9, 0, 5_000.0, config=BUSY_CONFIG)
    settings = site.configured()
    sender = Sender(order, settings.kafka, settings.topics, EventsConfig())
    sender.send(wait)
    assert 100 <= sender.sending.sent < 10_000
    assert len(records_of(site, "events")) == sender.figures()["sent"]

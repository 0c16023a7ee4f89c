"""`afresh simulate`: what it writes and sends, what it says of it, and how it talks to a parent process."""

import json
import os
import sys
import threading

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from recordings import read_recording

from pipeline.app import cli
from pipeline.settings import EventsConfig, KafkaConfig, TopicsConfig
from producers.child import SenderProcess
from producers.kafka.topics import create_topics
from producers.simulator import newest_lists, simulate
from producers.simulator.file import START_MS
from producers.simulator.market import BUSY_MARKET, MARKET, item_name, user_name
from producers.simulator.newest_lists import NewestLists
from producers.simulator.plan import Burst, Plan, Season
from producers.simulator.simulate import Order, Sender, Simulation, wire_form

NOW_MS = 1_780_000_000_000


def simulated(*arguments):
    return cli.main(["simulate", *map(str, arguments)])


@pytest.mark.parametrize(
    "name", ["shoppers.csv", "shoppers.csv.gz", "shoppers.csv.jsonl", "shoppers.jsonl.gz"]
)
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


def test_the_same_seed_makes_the_same_file_and_the_truth_beside_it(tmp_path):
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
    ("arguments", "said"),
    [
        (["--change", "slow@5"], "kind of change 'slow': expected one of sudden"),
        (["--events", "0"], "0: expected a whole number, 1 or more"),
        (["--rate", "-1"], "-1: expected events a second"),
        (["--change", "sudden@9", "--change", "gradual@1..20"], "overlap: expected the first to be over"),
        (["--season", "0"], "season, days 0, strength 0.6: expected days above 0"),
        (["--out", "a.txt"], "--out a.txt: expected a name that ends with .csv"),
        (["--out", "nowhere/a.csv"], "--out nowhere/a.csv: expected a file in a folder that exists"),
        (["--truth", "nowhere/a.json"], "--truth nowhere/a.json: expected a file in a folder that exists"),
        (["--out", "a.csv", "--closed-loop"], "--out: expected without --closed-loop"),
    ],
)
def test_wrong_use_is_one_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert simulated(*arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_events_have_the_names_and_the_unit_of_time_that_the_configuration_reads():
    settings = EventsConfig(fields={"item_id": "product.sku", "user_id": "$key"}, time_unit="iso")
    simulation = Simulation(Order(1, 0), NOW_MS, wire_form(settings))
    (event,) = simulation.wire(simulation.columns())
    record = msgspec.json.decode(event.value)
    assert event.key.startswith(b"shopper-")
    assert record["product"]["sku"]
    assert record["timestamp_ms"].startswith("2026-05-28T")
    assert "user_id" not in record


def test_a_season_begins_at_midnight_and_ends_about_now():
    simulation = Simulation(Order(3_000, 0, plan=Plan(season=Season(2))), NOW_MS)
    events = list(simulation.wire(simulation.columns()))
    day_ms = 24 * 3_600_000
    assert simulation.start_ms % day_ms == 0
    assert NOW_MS - 1.2 * day_ms < events[-1].time_ms < NOW_MS + 0.2 * day_ms


def test_a_burst_bursts_in_the_sending_too():
    even, burst = Order(1_000, 0, rate=500.0), Plan(bursts=(Burst("rate", 10, 20),))
    assert simulate._pace(even) == {"rate": 500.0}
    speed = simulate._pace(Order(1_000, 0, rate=500.0, plan=burst))["speed"]
    assert speed * 1_000 == pytest.approx(500 * MARKET.pause_s * 1_000 / MARKET.sessions)
    assert simulate._pace(Order(1_000, 0, rate=0.0, plan=burst)) == {"rate": 0.0}


TALKS = """
import sys
def say(line): print(line, end="", flush=True)
say('{"progress": {"sent": 1}}\\n{"progress": {"se')
open(sys.argv[1]).read()
say('nt": 2}}\\n')
open(sys.argv[2]).read()
say('{"sent": 3, "seconds": 1}\\n')
"""


def test_a_parent_hears_of_progress_while_the_process_goes_on_writing(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    with SenderProcess([sys.executable, "-c", TALKS, str(first), str(second)]) as sender:
        assert sender.progress() is None
        sender.start()
        with first.open("w"):  # opens when the process has come to read it
            assert sender.progress() == {"sent": 1}  # the half line behind it doesn't count
        with second.open("w"):
            assert sender.progress() == {"sent": 2}
        sender.wait(30)
        assert sender.progress() == {"sent": 2}
        assert sender.sent() == 3


def names_of(topic_name):
    return TopicsConfig(
        events=[topic_name("shoppers")],
        recommendations=topic_name("lists"),
        items=topic_name("items"),
        dead_letters=topic_name("dead"),
        drift=topic_name("drift"),
    )


def records_of(address, topic):
    """Everything in a topic of one partition."""
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end, found = consumer.end_offsets([partition])[partition], []
    while len(found) < end:
        found += consumer.poll(1_000).get(partition, [])
    consumer.close()
    return found


def listed(*items, event_ms=0):
    return json.dumps(
        {"items": [{"item_id": item} for item in items], "event_timestamp_ms": event_ms}
    ).encode()


def publish(address, topic, *records):
    producer = KafkaProducer(bootstrap_servers=address)
    for key, value in records:
        producer.send(topic, key=key.encode(), value=value)
    producer.close()


@pytest.mark.kafka
def test_a_shopper_sees_the_newest_list_or_else_the_one_for_everybody(embedded_broker, topic_name):
    topics, kafka = names_of(topic_name), KafkaConfig(bootstrap_servers=embedded_broker)
    create_topics(kafka, topics, partitions=1)
    publish(
        embedded_broker, topics.recommendations,
        ("ann", listed("a")), ("ann", listed("b", "c", event_ms=7)), ("bob", listed("d")), ("bob", None),
    )  # fmt: skip
    with NewestLists(kafka, topics.recommendations) as lists:
        while lists.of("ann") is None or lists.of("bob") is not None:
            lists.refresh()
        assert lists.of("ann") == (["b", "c"], 7)
        assert lists.of("eve") is None
        publish(embedded_broker, topics.recommendations, ("__default__", listed("e")))
        while lists.of("eve") is None:
            lists.refresh()
        assert lists.of("bob") == lists.of("eve") == (["e"], 0)
        assert lists.of("ann") == (["b", "c"], 7)


def test_whatever_ends_the_reading_of_lists_is_raised_and_not_taken_for_silence(monkeypatch):
    class Broken:
        def __init__(self, *_):
            pass

        def poll(self, wait_s):
            raise ValueError("no such codec")

        def close(self):
            pass

    monkeypatch.setattr(newest_lists, "TopicReader", Broken)
    with NewestLists(KafkaConfig(), "recommendations") as lists:
        lists.of("ann")
        lists._thread.join()
        with pytest.raises(ValueError, match="no such codec"):
            lists.refresh()


@pytest.mark.kafka
def test_lists_of_a_topic_that_is_not_there_are_told_of_in_one_line(embedded_broker, capsys):
    arguments = ["--bootstrap-servers", embedded_broker, "--events", "10", "--closed-loop"]
    assert simulate.main([*arguments, "--recommendations", "no-such-topic"]) == 2
    assert "topic 'no-such-topic' does not exist" in capsys.readouterr().err


@pytest.mark.kafka
def test_the_closed_loop_tells_how_it_goes_and_what_came_of_it(
    embedded_broker, topic_name, capsys, tmp_path, monkeypatch
):
    topics = names_of(topic_name)
    create_topics(KafkaConfig(bootstrap_servers=embedded_broker), topics, partitions=1)
    publish(embedded_broker, topics.recommendations, ("__default__", listed("tea-0", "art-0", "books-0")))
    (events,) = topics.event_topics()
    monkeypatch.setattr(simulate, "TELL_S", 0.05)
    command = ["--bootstrap-servers", embedded_broker, "--topic", events, "--items", topics.items]
    command += ["--recommendations", topics.recommendations, "--truth", str(tmp_path / "truth.json")]
    said = ["--events", "1500", "--rate", "3000", "--retire", "0.2", "--withdraw", "--closed-loop"]
    assert simulate.main([*command, *said]) == 0
    *told, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["sent"] == 1_500
    assert len(records_of(embedded_broker, events)) == 1_500
    progress = [line["progress"] for line in told]
    assert len(progress) > 2
    assert [line["sent"] for line in progress] == sorted(line["sent"] for line in progress)
    assert progress[-1]["arms"].keys() == {"recommended", "popular", "random"}
    for arm, counts in last["uplift"]["arms"].items():
        assert counts["slates"] >= progress[-1]["arms"][arm]["slates"] > 0
    shown = last["uplift"]["arms"]["recommended"]
    assert shown["shown"] == 3 * shown["slates"]
    truth = json.loads((tmp_path / "truth.json").read_text())
    retired = {item["item_id"] for item in truth["retired_items"]}
    withdrawn = [json.loads(record.value) for record in records_of(embedded_broker, topics.items)]
    assert all(record["available"] is False for record in withdrawn)
    assert 0 < len(withdrawn) <= len(retired)
    assert {record["item_id"] for record in withdrawn} <= retired
    assert len(retired) - len(withdrawn) <= 5  # of the last round


@pytest.mark.kafka
def test_the_command_sends_into_the_topic_of_the_configuration_and_creates_it(
    embedded_broker, topic_name, capsys
):
    topics = names_of(topic_name)
    sets = [("kafka.bootstrap_servers", embedded_broker), ("topics.events", list(topics.event_topics()))]
    sets += [(f"topics.{name}", getattr(topics, name)) for name in ("recommendations", "items")]
    sets += [(f"topics.{name}", getattr(topics, name)) for name in ("dead_letters", "drift")]
    options = [part for key, value in sets for part in ("--set", f"{key}={value}")]
    assert simulated("--events", 300, "--rate", 0, "--closed-loop", "--json", *options) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["sent"] == 300
    (events,) = topics.event_topics()
    assert f"created topic {events}" in err
    assert f"no list came to topic {topics.recommendations}" in err


@pytest.mark.kafka
def test_a_sending_that_is_told_to_stop_waits_for_what_is_out(embedded_broker, topic_name):
    topics, kafka = names_of(topic_name), KafkaConfig(bootstrap_servers=embedded_broker)
    create_topics(kafka, topics, partitions=1)
    stop = threading.Event()

    def wait(seconds):
        return sender.sending.sent >= 100 or stop.wait(seconds)

    sender = Sender(Order(10**9, 0, 5_000.0, market=BUSY_MARKET), kafka, topics, EventsConfig())
    sender.send(wait)
    assert 100 <= sender.sending.sent < 10_000
    assert len(records_of(embedded_broker, sender.topic)) == sender.figures()["sent"]

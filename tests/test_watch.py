"""`afresh watch`: rankings as they are published, of which users and from where on the topic."""

import itertools
import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
import pytest
from contracts.sinks import topics_named
from harness.clients import config
from kafka import KafkaProducer

from consumers.memory import MemoryRecord
from pipeline.app import cli
from pipeline.app.watching import Wanted, alarm_line, json_line, long_text, short_text, watch
from pipeline.errors import UsageError
from pipeline.events.records import DriftAlarm, RankedItem, Ranking
from pipeline.service.clock import SystemClock
from pipeline.service.ports import Publication
from pipeline.settings import KafkaConfig, Settings, TopicsConfig
from producers.kafka.sink import KafkaSink
from producers.kafka.topics import create_topics

pytestmark = pytest.mark.usefixtures("logging_as_before")

AT_MS = 1_700_000_000_000
Name = Callable[[str], str]


def ranking(user: str, number: int = 1, items: int = 7) -> Ranking:
    listed = [RankedItem(f"i{place}", 5.0 - place, ["h1", "h2"]) for place in range(items)]
    return Ranking(user, f"r{number}", listed, AT_MS, AT_MS, "attention", number)


def record(key: bytes, value: bytes | None) -> MemoryRecord:
    return MemoryRecord("recommendations", 0, 0, AT_MS, key, value)


ANN = b"""{"user_id":"ann","ranking_id":"r","items":[{"item_id":"i1","score":1.5,"because":["h"]}],
 "generated_at_ms":1700000000000,"event_timestamp_ms":1,"model":"attention","model_version":7,"later":true}"""


def test_a_record_is_text_of_one_line_or_of_one_for_each_place_or_json() -> None:
    shown, tombstone = record(b"ann", ANN), record(b"ann", None)
    assert short_text(shown) == "2023-11-14 22:13:20Z ann: i1 1.50"
    assert long_text(shown).splitlines() == [
        "2023-11-14 22:13:20Z ann: 1 items, attention 7",
        "    1 i1     1.50  because of h",
    ]
    assert short_text(record(b"__default__", ANN)).partition(" (")[2].startswith("users without events): i1")
    assert short_text(tombstone) == long_text(tombstone) == "2023-11-14 22:13:20Z ann is forgotten"
    assert "\n" not in json_line(shown)
    assert json.loads(json_line(shown)) == json.loads(ANN)
    forgotten = {"user_id": "ann", "forgotten": True, "forgotten_at_ms": AT_MS}
    assert json.loads(json_line(tombstone)) == forgotten
    alarm = DriftAlarm("adwin", "loss", 1200, 0.5, 0.75, 0)
    line = alarm_line(record(b"loss", msgspec.json.encode(alarm)))
    assert line == "1970-01-01 00:00:00Z drift: loss .500 -> .750 at event 1,200"


def test_an_id_can_not_command_the_terminal() -> None:
    hostile = record(b"\x1b[2J", ANN.replace(b'"i1"', b'"\\u001b[2J"'))
    for line in (short_text(hostile), long_text(hostile)):
        assert "\x1b" not in line
        assert line.count(r"'\x1b[2J'") == 2


@pytest.fixture
def site(embedded_broker: str, topic_name: Name) -> Settings:
    topics = topics_named(topic_name)
    create_topics(config(embedded_broker), topics, partitions=3, replication=1)
    return Settings(kafka=config(embedded_broker), topics=topics)


@pytest.fixture
def sink(site: Settings) -> Iterator[KafkaSink]:
    with closing(KafkaSink(site.kafka, site.topics, SystemClock().now_ms)) as made:
        yield made


def taken(
    settings: Settings, wanted: Wanted, count: int, opened: Callable[[], None] = lambda: None
) -> list[str]:
    """The first lines of a watch, which is then closed."""
    with closing(watch(settings, wanted, opened)) as lines:
        return list(itertools.islice(lines, count))


@pytest.mark.kafka
def test_a_user_s_newest_list_comes_first_then_what_is_published(site: Settings, sink: KafkaSink) -> None:
    lists = [ranking(user, number) for number in (1, 2) for user in ("ann", "bob", "eve")]
    sink.publish(Publication(lists)).wait(10)
    sink.publish(Publication(removed_users=["eve"])).wait(10)
    lines = watch(site, Wanted(["ann", "new", "eve"], as_json=True), lambda: None)
    ann, eve = json.loads(next(lines)), json.loads(next(lines))
    assert (ann["user_id"], ann["model_version"]) == ("ann", 2)
    assert (eve["user_id"], eve["forgotten"]) == ("eve", True)
    sink.publish(Publication([ranking("bob", 3), ranking("new", 3), ranking("ann", 3)])).wait(10)
    assert {json.loads(next(lines))["user_id"] for _ in range(2)} == {"new", "ann"}
    lines.close()


@pytest.mark.kafka
def test_lists_of_all_users_come_from_now_on_or_from_the_beginning(site: Settings, sink: KafkaSink) -> None:
    alarm = DriftAlarm("adwin", "loss", 9, 0.1, 0.2, AT_MS)
    sink.publish(Publication([ranking("ann"), ranking("ann", 2)], alarms=[alarm])).wait(10)
    everything = taken(site, Wanted(everything=True, drift=True), 3)
    assert sum("ann: i0 5.00, " in line and line.endswith(", +2") for line in everything) == 2
    assert sum("drift: loss .100 -> .200" in line for line in everything) == 1

    (line,) = taken(site, Wanted(), 1, lambda: sink.publish(Publication([ranking("bob")])).wait(10))
    assert " bob: " in line


@pytest.mark.kafka
def test_other_records_are_skipped(site: Settings, sink: KafkaSink, caplog: pytest.LogCaptureFixture) -> None:
    with closing(KafkaProducer(bootstrap_servers=site.kafka.bootstrap_servers)) as producer:
        producer.send(site.topics.recommendations, key=b"ann", value=b'{"not": "ours"}').get(10)
    sink.publish(Publication([ranking("ann")])).wait(10)
    with caplog.at_level(logging.WARNING):
        (line,) = taken(site, Wanted(["ann"], everything=True), 1)
    assert " ann: 7 items, attention 1" in line
    assert "offset 0 was not written by afresh, and is skipped: Object missing" in caplog.text


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_zero(
    site: Settings, sink: KafkaSink, number: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sink.publish(Publication([ranking("ann"), ranking("ann", 2)])).wait(10)
    printed: list[str] = []

    def stop_at_the_second(record: MemoryRecord) -> str:
        if printed:
            signal.raise_signal(number)
        printed.append(short_text(record))
        return printed[-1]

    monkeypatch.setattr("pipeline.app.watching.short_text", stop_at_the_second)
    topic, before = site.topics.recommendations, signal.getsignal(signal.SIGTERM)
    sets = ["--set", f"kafka.bootstrap_servers={site.kafka.bootstrap_servers}"]
    sets += ["--set", f"topics.recommendations={topic}"]
    assert cli.main(["watch", "--from-beginning", *sets]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), " ann: i0 5.00" in out) == (1, True)
    assert err == f"watching {topic}; Ctrl-C ends it\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("command", [["watch"], ["simulate", "--events", "10"]], ids=lambda words: words[0])
def test_no_broker_is_one_line_and_code_two(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "kafka.bootstrap_servers=127.0.0.1:1", "--set", "kafka.start_timeout_s=0.2"]
    assert cli.main([*command, *options, "--log-level", "error"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("afresh: no broker answered at kafka.bootstrap_servers = '127.0.0.1:1'")
    assert shown.err.count("\n") == 1


@pytest.mark.kafka
def test_a_missing_topic_is_an_error(embedded_broker: str, topic_name: Name) -> None:
    topics = TopicsConfig(recommendations=topic_name("absent"))
    with pytest.raises(UsageError, match=r"topic 'absent-.*' does not exist "):
        taken(Settings(kafka=KafkaConfig(bootstrap_servers=embedded_broker), topics=topics), Wanted(), 1)

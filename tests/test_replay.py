"""Replay: what goes out decodes to what was recorded, in its rhythm, and every end of it is told."""

import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from recordings import read_recording

from consumers.memory import MemoryRecord
from pipeline.app.cli import main
from pipeline.errors import BrokerLost, PublishFailed
from pipeline.events.batch import Events, Polled, Span
from pipeline.events.decode import Decoder
from pipeline.events.fields import field_names
from pipeline.settings import EventsConfig, TopicsConfig
from producers.replay import Sending, WireEvent, as_recorded, send_events, wire_events

NOW = 1_700_000_000_000
ROWS = [("ann", "tea", "buy", 1_600_000_000_123, 2.5), ("bob", " 07 ", "view", 1_600_000_001_000, math.nan)]


def columns(rows: list[tuple[str, str, str, int, float]]) -> Events:
    users, items, types, times, values = (list(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int64)
    return Events(
        users,
        items,
        types,
        [None] * len(rows),
        np.array(times),
        zeros,
        np.array(values),
        zeros.astype(np.int32),
    )


def decoded(events: list[WireEvent], config: EventsConfig) -> Events:
    records = [
        MemoryRecord("events", 0, offset, NOW, each.key, each.value) for offset, each in enumerate(events)
    ]
    polled = Polled((Span("events", 0, 0, len(records)),), list(records), np.zeros(len(records), np.int32))
    batch = Decoder(config, TopicsConfig(), 65_536).decode(0, NOW, polled)
    assert not batch.rejects
    return batch.events


@pytest.mark.parametrize("unit", ["ms", "s", "iso", "auto"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"user_id": "who", "timestamp_ms": "at", "value": "price"}, {"user_id": "$key", "item_id": "a.b"}],
)
@given(time_ms=st.integers(946_684_800_000, NOW))
def test_what_goes_out_decodes_to_what_was_recorded(unit: str, fields: dict[str, str], time_ms: int) -> None:
    config = EventsConfig(fields=fields, time_unit=unit)
    recorded = columns([*ROWS, ("cy", "tea", "buy", time_ms, 0.1)])
    sent = list(wire_events([recorded], field_names(config), config.time_unit))
    assert [event.key for event in sent] == [b"ann", b"bob", b"cy"]
    got = decoded(sent, config)
    assert (got.user_ids, got.item_ids, got.types) == (recorded.user_ids, recorded.item_ids, recorded.types)
    assert got.time_ms_B.tolist() == recorded.time_ms_B.tolist()
    np.testing.assert_array_equal(got.value_B, recorded.value_B)


def test_an_event_without_a_value_names_none() -> None:
    (_, plain) = wire_events([columns(ROWS)], field_names(EventsConfig()), "ms")
    assert json.loads(plain.value) == {
        "user_id": "bob", "item_id": " 07 ", "event_type": "view", "timestamp_ms": 1_600_000_001_000,
    }  # fmt: skip


class Time:
    """Time that passes only while somebody waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        return False


def at_times(times: list[int]) -> Iterator[WireEvent]:
    return (WireEvent(time_ms, b"ann", b"{}") for time_ms in times)


@given(st.lists(st.integers(0, 5_000), min_size=1), st.sampled_from([0.5, 1.0, 60.0]))
def test_gaps_are_those_of_the_recording_divided_by_the_speed(times: list[int], speed: float) -> None:
    clock = Time()
    left = [
        (event.time_ms, clock.now_s)
        for event in as_recorded(at_times(times), speed, clock.wait, lambda: clock.now_s)
    ]
    newest = list(itertools.accumulate(times, max))
    assert [time_ms for time_ms, _ in left] == times
    assert [at_s for _, at_s in left] == pytest.approx([(time - times[0]) / 1000 / speed for time in newest])


def test_a_long_gap_can_be_interrupted() -> None:
    waits: list[float] = []

    def interrupted(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    assert len(list(as_recorded(at_times([0, 3_600_000]), 1.0, interrupted, lambda: 0.0))) == 1
    assert max(waits) <= 0.1


class Delivered:
    """A delivery that has already ended, well or badly."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def add_errback(self, call: Callable[[BaseException], object]) -> object:
        return call(self.error) if self.error else None


class Taker:
    """A producer that takes everything until it is told to fail."""

    def __init__(
        self, *, refuses: int = -1, error: Exception | None = None, flush: Exception | None = None
    ) -> None:
        self.sent: list[tuple[str, bytes, bytes, int]] = []
        self.flushed = 0
        self._refuses, self._error, self._flush = refuses, error, flush

    def send(self, topic: str, *, key: bytes, value: bytes, partition: int) -> Delivered:
        self.sent.append((topic, key, value, partition))
        return Delivered(self._error if len(self.sent) == self._refuses else None)

    def partitions_for(self, topic: str) -> set[int]:
        return {0, 1, 2}

    def flush(self, timeout: float | None = None) -> None:
        self.flushed += 1
        if self._flush:
            raise self._flush


def test_everything_is_sent_in_order_and_flushed() -> None:
    taker, sending = Taker(), Sending()
    events = [WireEvent(0, b"u%d" % (number % 7), b"%d" % number) for number in range(2_500)]
    send_events(taker, "events", events, sending)
    assert [(key, value) for _, key, value, _ in taker.sent] == [(event.key, event.value) for event in events]
    assert (
        len({(key, partition) for _, key, _, partition in taker.sent}) == 7
    )  # a user keeps to one partition
    assert (sending.sent, taker.flushed, sending.failed) == (2_500, 1, [])


def test_an_interruption_flushes_what_is_out() -> None:
    taker, sending = Taker(), Sending()
    asked = itertools.count()
    send_events(taker, "events", at_times([0] * 9_000), sending, wait=lambda seconds: next(asked) == 2)
    assert 0 < sending.sent == len(taker.sent) < 9_000
    assert taker.flushed == 1


def test_a_refused_event_ends_the_sending() -> None:
    taker, sending = Taker(refuses=3, error=MessageSizeTooLargeError("big")), Sending()
    with pytest.raises(PublishFailed, match=r"topic 'shop' did not take an event, after about 3: .*big"):
        send_events(taker, "shop", at_times([0] * 10), sending)
    assert len(taker.sent) == 3


def test_a_broker_that_stops_answering_is_lost() -> None:
    with pytest.raises(
        BrokerLost, match="stopped answering after about 10 events to topic 'events'"
    ) as error:
        send_events(Taker(flush=KafkaTimeoutError("60 s")), "events", at_times([0] * 10), Sending())
    assert error.value.exit_code == 3


def recording(folder: Path, rows: int = 300) -> Path:
    path = folder / "recorded.csv"
    lines = [f"u{number % 40},{number:05},{1_600_000_000 + number}.5,view,{number}" for number in range(rows)]
    path.write_text("\n".join(["user,item,timestamp,event,value", ",tea,1600000000,,", *lines]) + "\n")
    return path


def test_no_broker_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            "replay",
            str(recording(tmp_path)),
            "--set",
            "kafka.bootstrap_servers=127.0.0.1:1",
            "--set",
            "kafka.start_timeout_s=0.2",
            "--log-level",
            "error",
        ]
    )
    assert code == 2
    assert "no broker answered at kafka.bootstrap_servers = '127.0.0.1:1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\na,b\n", "no column 'timestamp'; found 'user', 'item'"),
        ("user,item,timestamp\n,b,1\n", "not one row could be read: 1 rows rejected: empty_id"),
    ],
)
def test_a_file_that_gives_nothing_is_told_before_any_broker_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    assert main(["replay", str(path), "--set", "kafka.bootstrap_servers=127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "options", [["--rate", "-1"], ["--speed", "nan"], ["--limit", "-1"], ["--rate", "1", "--speed", "2"]]
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", "events.csv", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert options[-2] in line


def consumed(servers: str, topic: str, count: int) -> list[MemoryRecord]:
    """Read a topic as any subscriber would."""
    consumer = KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None)
    records: list[MemoryRecord] = []
    try:
        for _ in range(100):
            for found in consumer.poll(timeout_ms=200).values():
                records += [
                    MemoryRecord(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value) for r in found
                ]
            if len(records) >= count:
                break
    finally:
        consumer.close()
    return records


@pytest.fixture
def settings(embedded_broker: str, topic_name: Callable[[str], str]) -> list[str]:
    names = {name: topic_name(name) for name in ("items", "recommendations", "dead_letters", "drift")}
    pairs = [f"topics.{name}={topic}" for name, topic in names.items()]
    pairs += [f"kafka.bootstrap_servers={embedded_broker}", f'topics.events=["{topic_name("events")}"]']
    return [option for pair in pairs for option in ("--set", pair)]


def events_topic(settings: list[str]) -> str:
    topic: str = json.loads(settings[-1].partition("=")[2])[0]
    return topic


@pytest.mark.kafka
def test_the_topic_holds_what_the_file_held(
    tmp_path: Path, embedded_broker: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recording(tmp_path)
    assert main(["replay", str(path), "--json", "--start", "10", "--events", "250", *settings]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out.splitlines()[-1])
    assert (figures["sent"], figures["rejected"]) == (250, 1)
    parts = ("sent", "rejected", "ignored", "duplicates", "left_out")
    assert figures["rows"] == sum(figures[part] for part in parts) == 261
    assert figures["out_of_order"] == 0
    assert figures["seconds"] > 0
    assert figures["events_per_s"] > 0
    assert "sent 250 events" in err
    assert "1 rows rejected: empty_id. The first: line 2: user is empty" in err
    records = consumed(embedded_broker, events_topic(settings), 250)
    assert len(records) == 250
    (recorded,) = read_recording(path, 250, now_ms=NOW, start=10, limit=250)
    by_item = {json.loads(record.value or b"")["item_id"]: record for record in records}
    wire = [WireEvent(0, b"", by_item[item].value or b"") for item in recorded.item_ids]
    got = decoded(wire, EventsConfig())
    assert got.user_ids == recorded.user_ids
    assert got.time_ms_B.tolist() == recorded.time_ms_B.tolist()
    assert [by_item[item].key for item in got.item_ids] == [user.encode() for user in got.user_ids]
    assert min(record.timestamp for record in records) > NOW  # stamped when they were sent


@pytest.mark.kafka
def test_ctrl_c_flushes_and_reports(tmp_path: Path, embedded_broker: str, settings: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.app.cli",
        "replay",
        str(recording(tmp_path)),
        "--json",
        "--speed",
        "10",
    ]
    process = subprocess.Popen(
        [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert consumed(embedded_broker, events_topic(settings), 1)  # it has begun; the file would take 30 s
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    sent = json.loads(out.splitlines()[-1])["sent"]
    assert 0 < sent < 300
    assert len(consumed(embedded_broker, events_topic(settings), sent)) == sent

"""Replay and rate limits: records decode to the recorded events, gaps and rates hold, failures are errors."""

import itertools
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from harness.clients import lying_on
from harness.service import Site
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from recordings import read_recording

from consumers.memory import MemoryRecord
from pipeline.app.cli import main
from pipeline.errors import BrokerLost, PublishFailed
from pipeline.events.batch import Events, Polled, Span
from pipeline.events.decode import Decoder
from pipeline.events.fields import field_names
from pipeline.settings import EventsConfig, TopicsConfig
from producers.rate_limiter import Pace, paced
from producers.replay import Sending, WireEvent, send_events, wire_events

NOW = 1_700_000_000_000
ROWS = [("ann", "tea", "buy", 1_600_000_000_123, 2.5), ("bob", " 07 ", "view", 1_600_000_001_000, math.nan)]


def columns(rows: list[tuple[str, str, str, int, float]]) -> Events:
    users, items, types, times, values = (list(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int64)
    none, index = [None] * len(rows), zeros.astype(np.int32)
    return Events(users, items, types, none, np.array(times), zeros, np.array(values), index)


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
def test_a_sent_record_decodes_to_the_recorded_event(unit: str, fields: dict[str, str], time_ms: int) -> None:
    config = EventsConfig(fields=fields, time_unit=unit)
    recorded = columns([*ROWS, ("cy", "tea", "buy", time_ms, 0.1)])
    sent = list(wire_events([recorded], field_names(config), config.time_unit))
    assert [event.key for event in sent] == [b"ann", b"bob", b"cy"]
    got = decoded(sent, config)
    assert (got.user_ids, got.item_ids, got.types) == (recorded.user_ids, recorded.item_ids, recorded.types)
    assert got.time_ms_B.tolist() == recorded.time_ms_B.tolist()
    np.testing.assert_array_equal(got.value_B, recorded.value_B)


def test_an_event_without_a_value_has_no_such_field() -> None:
    (_, plain) = wire_events([columns(ROWS)], field_names(EventsConfig()), "ms")
    assert json.loads(plain.value) == {
        "user_id": "bob", "item_id": " 07 ", "event_type": "view", "timestamp_ms": 1_600_000_001_000,
    }  # fmt: skip


class Time:
    """A clock that moves only during waits, by the requested time and `late_s`."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s, self.late_s, self.waits = 0.0, late_s, 0

    def wait(self, seconds: float) -> bool:
        self.waits += 1
        self.now_s += seconds + self.late_s
        return False

    def read(self) -> float:
        return self.now_s


def at_times(times: list[int]) -> Iterator[WireEvent]:
    return (WireEvent(time_ms, b"ann", b"{}") for time_ms in times)


@given(st.lists(st.integers(0, 5_000), min_size=1), st.sampled_from([0.5, 1.0, 60.0]))
def test_gaps_are_the_recorded_ones_divided_by_the_speed(times: list[int], speed: float) -> None:
    clock = Time()
    stream = paced(at_times(times), Pace(speed=speed), clock.wait, clock.read)
    left = [(event.time_ms, clock.now_s) for event in stream]
    newest = list(itertools.accumulate(times, max))
    assert [time_ms for time_ms, _ in left] == times
    assert [at_s for _, at_s in left] == pytest.approx([(time - times[0]) / 1000 / speed for time in newest])


def test_a_long_gap_can_be_interrupted() -> None:
    waits: list[float] = []

    def interrupted(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    assert len(list(paced(at_times([0, 3_600_000]), Pace(speed=1.0), interrupted, lambda: 0.0))) == 1
    assert max(waits) <= 0.1


@pytest.mark.parametrize("late_s", [0.0, 0.004, 0.5])
def test_a_rate_holds_over_the_run_when_every_wait_is_too_long(late_s: float) -> None:
    clock = Time(late_s)
    times = [clock.now_s for _ in paced(at_times([0] * 2_000), Pace(1_000), clock.wait, clock.read)]
    lateness = [at - number / 1_000 for number, at in enumerate(times)]
    assert min(lateness) >= -1e-9
    assert max(lateness) <= 0.016 + late_s
    assert clock.waits < 160


def test_without_a_rate_there_is_no_wait() -> None:
    clock = Time()
    assert len(list(paced(at_times([0] * 5_000), Pace(), clock.wait, clock.read))) == 5_000
    assert clock.now_s == 0.0


def test_a_wait_that_returns_true_ends_the_stream() -> None:
    stops = iter([False, False, True])
    clock = Time()
    events = at_times([0] * 100)
    stream = paced(events, Pace(1_000), lambda seconds: clock.wait(seconds) or next(stops), clock.read)
    assert len(list(stream)) == 31


def client(**parts: object) -> Mock:
    return Mock(**{"partitions_for.return_value": {0, 1, 2}, **parts})


def test_events_are_sent_in_order_one_partition_a_user_and_flushed() -> None:
    producer, sending = client(), Sending()
    events = [WireEvent(0, b"u%d" % (number % 7), b"%d" % number) for number in range(2_500)]
    send_events(producer, "events", events, sending)
    sent = [call.kwargs for call in producer.send.call_args_list]
    assert [(each["key"], each["value"]) for each in sent] == [(each.key, each.value) for each in events]
    assert len({(each["key"], each["partition"]) for each in sent}) == 7
    assert (sending.sent, producer.flush.call_count) == (2_500, 1)


def test_a_rejected_event_ends_the_sending() -> None:
    rejected = Mock(**{"add_errback.side_effect": lambda call: call(MessageSizeTooLargeError("big"))})
    producer = client(**{"send.side_effect": [Mock(), Mock(), rejected]})
    with pytest.raises(PublishFailed, match=r"topic 'shop' rejected an event after about 3: .*big"):
        send_events(producer, "shop", at_times([0] * 10), Sending())


def test_a_broker_that_stops_answering_is_lost() -> None:
    producer = client(**{"flush.side_effect": KafkaTimeoutError("60 s")})
    with pytest.raises(BrokerLost, match="stopped answering after about 10 events to topic 'events'"):
        send_events(producer, "events", at_times([0] * 10), Sending())


def recording(folder: Path, rows: int = 300) -> Path:
    path = folder / "recorded.csv"
    lines = [f"u{number % 40},{number:05},{1_600_000_000 + number}.5,view,{number}" for number in range(rows)]
    path.write_text("\n".join(["user,item,timestamp,event,value", ",tea,1600000000,,", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\na,b\n", "no column 'timestamp'; found 'user', 'item'"),
        ("user,item,timestamp\n,b,1\n", "no row can be read: 1 rows rejected: empty_id"),
    ],
)
def test_a_file_without_events_is_an_error_before_any_broker_is_asked(
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
def test_impossible_options_are_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "events.csv", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert options[-2] in line


@pytest.mark.kafka
def test_the_topic_holds_the_file(tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    path = recording(tmp_path)
    assert main(["replay", str(path), "--json", "--start", "10", "--events", "250", *site.options()]) == 0
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
    records = lying_on(site.broker, site.events)
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
def test_ctrl_c_flushes_and_reports(tmp_path: Path, site: Site) -> None:
    site.create_topics()
    process = site.start("replay", str(recording(tmp_path)), "--json", "--speed", "10")  # would take 30 s
    process.until(lambda: lying_on(site.broker, site.events), "the first event")
    process.end(signal.SIGINT)
    sent = json.loads(process.printed().splitlines()[-1])["sent"]
    assert 0 < sent < 300
    assert len(lying_on(site.broker, site.events)) == sent

"""Recorded files: every format gives the same columns, ids stay text, and no row is dropped in silence."""

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import read_recording

from consumers.files.rows import Columns, Tally
from consumers.memory import MemoryRecord
from pipeline.errors import UsageError
from pipeline.events.batch import Events, Polled, Span
from pipeline.events.checks import REASONS
from pipeline.events.decode import Decoder
from pipeline.settings import EventsConfig, TopicsConfig

NOW = 1_700_000_000_000
HEADER = "user,item,timestamp,event,value\n"


def written(folder: Path, text: str | bytes, name: str = "events.csv") -> Path:
    path = folder / name
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def chunks(path: Path, batch: int = 100, **options: Any) -> list[Events]:
    return list(read_recording(path, batch, now_ms=NOW, **options))


def only(path: Path, **options: Any) -> Events:
    (events,) = chunks(path, **options)
    return events


def as_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), folder / "events.parquet")
    return folder / "events.parquet"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1600000000", "1600000000.123"], [1_600_000_000_000, 1_600_000_000_123]),
        (["1600000000000", "1600000000123.4"], [1_600_000_000_000, 1_600_000_000_123]),
        (["2020-09-13T12:26:40Z", "2020-09-13 14:26:40.123+02:00"], [1_600_000_000_000, 1_600_000_000_123]),
        (["2020-09-13", "2020-09-13T12:26:40"], [1_599_955_200_000, 1_600_000_000_000]),
        (["oops", "1600000000000", "12", "1600000000001"], [1_600_000_000_000, 1_600_000_000_001]),
    ],
)
def test_the_unit_of_time_is_that_of_the_first_rows(tmp_path: Path, times: list[str], expected: Any) -> None:
    path = written(tmp_path, HEADER + "".join(f"ann,tea,{time},,\n" for time in times))
    assert only(path).time_ms_B.tolist() == expected


def test_a_time_in_another_unit_than_the_first_rows_is_read_by_its_size(tmp_path: Path) -> None:
    others = ["1600000000000", "1600000000000000", "1600000000000000000", "2020-09-13 12:26:40 UTC"]
    text = HEADER + "ann,tea,1600000000,,\n" * 100 + "".join(f"ann,tea,{time},,\n" for time in others)
    (events,) = chunks(written(tmp_path, text), 200)
    assert set(events.time_ms_B.tolist()) == {1_600_000_000_000}
    assert len(events) == 104


def test_times_of_parquet_define_their_unit(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    nanoseconds = pa.array([1_600_000_000_123_456_789], pa.timestamp("ns", "Europe/Paris"))
    path = as_parquet(tmp_path, {"user": ["ann"], "item": ["tea"], "timestamp": nanoseconds})
    assert only(path).time_ms_B.tolist() == [1_600_000_000_123]


BAD_ROWS = [
    ("empty_id", ",tea,1600000000,,"),
    ("empty_id", "ann,,1600000000,,"),
    ("reserved_id", "__default__,tea,1600000000,,"),
    ("long_id", f"{'x' * 257},tea,1600000000,,"),
    ("long_id", f"ann,{'ü' * 129},1600000000,,"),
    ("long_id", f"ann,tea,1600000000,{'x' * 257},"),
    ("not_utf8", b"ann,te\xff,1600000000,,"),
    ("bad_time", "ann,tea,,,"),
    ("bad_time", "ann,tea,soon,,"),
    ("bad_time", "ann,tea,nan,,"),
    ("bad_time", "ann,tea,1_600_000_000,,"),
    ("bad_time", "ann,tea,315532799,,"),
    ("bad_time", "ann,tea,1700086401,,"),
    ("wrong_type", "ann,tea,1600000000,,five"),
    ("wrong_type", "ann,tea,1600000000,,1_0"),
    ("not_finite", "ann,tea,1600000000,,nan"),
    ("not_finite", "ann,tea,1600000000,,1e999"),
    ("bad_row", "ann,tea,1600000000,buy"),
    ("bad_row", "ann,tea,1600000000,buy,1,more"),
]


BAD_OBJECTS = [
    ("not_json", "{"),
    ("not_json", '{"user":"\\ud800","item":"tea","timestamp":1600000000}'),
    ("not_finite", '{"user":"ann","item":"tea","timestamp":1600000000,"value":NaN}'),
    ("not_finite", '{"user":"ann","item":"tea","timestamp":1600000000,"value":1e999}'),
    ("not_object", "[]"),
    ("too_deep", '{"x":' + "[" * 300 + "]" * 300 + "}"),
    ("missing_field", '{"user":"ann","timestamp":1600000000}'),
    ("missing_field", '{"user":"ann","item":"tea"}'),
    ("wrong_type", '{"user":1.0,"item":"tea","timestamp":1600000000}'),
    ("wrong_type", '{"user":"ann","item":["tea"],"timestamp":1600000000}'),
    ("wrong_type", '{"user":"ann","item":"tea","timestamp":true}'),
    ("wrong_type", '{"user":"ann","item":"tea","timestamp":1600000000,"value":false}'),
    ("wrong_type", '{"user":"ann","item":"tea","timestamp":1600000000,"value":1' + "0" * 400 + "}"),
    ("long_id", '{"user":1' + "0" * 300 + ',"item":"tea","timestamp":1600000000}'),
    ("bad_time", '{"user":"ann","item":"tea","timestamp":"1979-09-13"}'),
]
FORMATS = {  # header and a good row
    "events.csv": (HEADER.encode(), b"%s,tea,1600000000,,1\n"),
    "events.jsonl": (b"", b'{"user":"%s","item":"tea","timestamp":1600000000}\n'),
}
BAD = [("events.csv", *bad) for bad in BAD_ROWS] + [("events.jsonl", *bad) for bad in BAD_OBJECTS]


@pytest.mark.parametrize(("name", "reason", "row"), BAD, ids=[f"{i}-{bad[1]}" for i, bad in enumerate(BAD)])
def test_a_bad_row_is_counted_between_good_ones(tmp_path: Path, name: str, reason: str, row: Any) -> None:
    (header, good), line = FORMATS[name], row if isinstance(row, bytes) else row.encode()
    path = written(tmp_path, header + good % b"before" + line + b"\n\n" + good % b"after", name)
    tally = Tally()
    assert only(path, tally=tally).user_ids == ["before", "after"]
    assert dict(tally.rejected) == {reason: 1}
    assert reason in REASONS
    assert tally.lines() == [f"1 rows rejected: {reason}. The first: {tally.first[reason]}"]
    assert tally.first[reason].startswith(f"line {2 + bool(header)}: ")


def test_columns_may_have_other_names_and_any_order(tmp_path: Path) -> None:
    path = written(tmp_path, "note,when,sku,who\nx,1600000000,tea,ann\n")
    events = only(path, columns=Columns(user="who", item="sku", timestamp="when"), default_type="buy")
    assert (events.user_ids, events.item_ids, events.types) == (["ann"], ["tea"], ["buy"])
    assert np.isnan(events.value_B[0])


def test_columns_may_be_nested_fields(tmp_path: Path) -> None:
    rows = [
        {"who": {"id": 7}, "at": {"$date": "2020-09-13T12:26:40Z"}, "item": "tea"},
        {"who.id": "bob", "at": {"$date": "2020-09-13T12:26:41Z"}, "item": "rum"},
        {"who": "cid", "at": {"$date": "2020-09-13T12:26:42Z"}, "item": "gin"},
    ]
    columns = Columns(user="who.id", timestamp="at.$date")
    path = written(tmp_path, as_jsonl(rows), "nested.jsonl")
    tally = Tally()
    assert only(path, columns=columns, tally=tally).user_ids == ["7", "bob"]
    assert tally.rejected == {"missing_field": 1}
    bad = written(tmp_path, as_jsonl([rows[0] | {"value": True}]), "bad.jsonl")
    assert chunks(bad, columns=columns) == []  # the columns are there: no error of names
    with pytest.raises(UsageError, match=r"no column 'who\.name'; .*--user-column"):
        chunks(path, columns=Columns(user="who.name", timestamp="at.$date"))


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("a,item,timestamp", Columns(), r"no column 'user'; found 'a', 'item', 'timestamp'.*--user-column"),
        ("user,b,timestamp", Columns(), r"no column 'item'; .*--item-column"),
        ("a,b,timestamp", Columns(), r"no column 'user', 'item'; .*--user-column and .*--item-column"),
        ("user,item,t", Columns(), r"no column 'timestamp'; .*--timestamp-column"),
        ("user,item,timestamp", Columns(event="kind"), r"no column 'kind'; .*--event-column"),
        ("user,item,timestamp", Columns(value="price"), r"no column 'price'; .*--value-column"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, header: str, columns: Columns, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chunks(written(tmp_path, header + "\na,b,1600000000\n"), columns=columns)


def test_names_that_fit_no_object_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, '{"user_id":"ann","item":"tea","timestamp":1600000000}\n' * 3, "events.jsonl")
    with pytest.raises(UsageError, match=r"no column 'user'; found 'user_id', .*--user-column"):
        chunks(path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress((HEADER + "ann,tea,1600000000,,\n" * 5_000).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    written(tmp_path, "plain", "plain.csv").rename(tmp_path / "plain.csv.gz")
    written(tmp_path, "", "nothing.csv")
    written(tmp_path, "no parquet", "bad.parquet")
    for name, message in [
        ("none.csv", "none.csv: can't be read: No such file"),
        ("nothing.csv", "nothing.csv: empty; expected a header line such as user,item,"),
        ("cut.csv.gz", "cut.csv.gz: not a whole gzip file"),
        ("plain.csv.gz", "plain.csv.gz: not a whole gzip"),
        ("bad.parquet", "bad.parquet: can't be read as parquet"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            chunks(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_parquet_column_of_an_ambiguous_type_is_an_error(tmp_path: Path) -> None:
    path = as_parquet(tmp_path, {"user": [1.0], "item": ["tea"], "timestamp": [1_600_000_000]})
    with pytest.raises(UsageError, match="column 'user' holds double; expected text or whole numbers"):
        chunks(path)


def test_parquet_without_its_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'afresh\[parquet\]'"):
        chunks(tmp_path / "events.parquet")


def test_a_jsonl_of_a_topic_is_read_as_the_topic_is(tmp_path: Path) -> None:
    """Several items in a row, second choices and types to ignore, with the rows all accounted for."""
    config = EventsConfig(
        fields={"user_id": ["uid", "device.id"], "item_id": ["lines[].sku", "sku"], "value": "lines[].price"},
        roles={"look": "ignore"},
    )
    base = {"timestamp_ms": NOW - 60_000, "event_type": "buy"}
    rows: list[dict[str, Any]] = [
        base | {"uid": "ann", "lines": [{"sku": "tea", "price": 2.5}, {"sku": 7}, {"sku": ""}, {}]},
        base | {"device": {"id": "d1"}, "uid": "", "sku": "rum", "lines": []},
        {"event_type": "look"},
        base | {"event_type": "look", "uid": "bob", "lines": [{}, {}, {}]},
        base | {"uid": "cyd", "sku": "lamp"},
        base | {"sku": "lamp"},
        base | {"uid": "ann", "lines": [{"sku": "a"}] * 1_001},
    ]
    path = written(tmp_path, as_jsonl(rows), "events.jsonl")
    tally = Tally()
    columns = Columns("uid", "lines[].sku", "timestamp_ms", "event_type", "lines[].price")
    events = only(path, columns=columns, settings=config, tally=tally)
    values = [json.dumps(row).encode() for row in rows]
    records = [MemoryRecord("events", 0, at, NOW, None, value) for at, value in enumerate(values)]
    polled = Polled((Span("events", 0, 0, len(rows)),), list(records), np.zeros(len(rows), np.int32))
    topic = Decoder(config, TopicsConfig(), 100_000).decode(0, NOW, polled)
    assert events.user_ids == topic.events.user_ids == ["ann", "ann", "d1", "cyd"]
    assert events.item_ids == topic.events.item_ids == ["tea", "7", "rum", "lamp"]
    np.testing.assert_array_equal(events.value_B, topic.events.value_B)
    assert tally.rejected.total() == 3  # the first row too: it holds bad elements beside good ones
    assert len(rows) == tally.rows == len(events) - tally.extra + tally.rejected.total() + tally.ignored

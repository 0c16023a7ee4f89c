"""The names of a file's columns: given by hand, mapped by the configuration, or plain; no guess beyond."""

import json
import logging
from argparse import ArgumentParser
from pathlib import Path

import pytest
from recordings import read_recording

from consumers.files.rows import Columns
from pipeline.app.file_options import add_file_options, recording_of
from pipeline.errors import UsageError
from pipeline.settings import EventsConfig, Settings

NOW = 1_700_000_000_000
NESTED = {"user_id": "who.id", "item_id": "sku", "timestamp_ms": "at", "event_type": "kind", "value": "price"}


def columns(path: Path, *options: str, **fields: str) -> Columns:
    parser = ArgumentParser()
    add_file_options(parser)
    args = parser.parse_args([str(path), *options])
    return recording_of(args, Settings(events=EventsConfig(fields=fields)), path).columns


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def table(folder: Path, header: str) -> Path:
    path = folder / "events.csv"
    path.write_text(f"{header}\n" + ",".join("1700000000" for _ in header.split(",")) + "\n", "utf-8")
    return path


def test_an_export_is_read_by_the_names_of_the_topic(tmp_path: Path) -> None:
    row = {"who": {"id": 7}, "sku": "tea", "at": "2020-09-13T12:26:40Z", "kind": "buy", "price": 2.5}
    found = columns(jsonl(tmp_path, row), **NESTED)
    assert found == Columns("who.id", "sku", "at", "kind", "price")
    (events,) = read_recording(tmp_path / "events.jsonl", 10, now_ms=NOW, columns=found)
    assert (events.user_ids, events.item_ids, events.types) == (["7"], ["tea"], ["buy"])
    assert (events.time_ms_B.tolist(), events.value_B.tolist()) == ([1_600_000_000_000], [2.5])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("who.id,sku,at,kind,price", Columns("who.id", "sku", "at", "kind", "price")),
        ("user,item,timestamp,event,value", Columns()),
        ("user_id,item_id,timestamp_ms", Columns("user_id", "item_id", "timestamp_ms")),
        ("price,kind,event,sku,item,at,user,who.id", Columns("who.id", "sku", "at", "kind", "price")),
        ("user,sku,at", Columns("user", "sku", "at")),  # a type and a value are optional
    ],
)
def test_the_mapped_name_comes_before_the_plain_one(tmp_path: Path, header: str, expected: Columns) -> None:
    path = table(tmp_path, header)
    assert columns(path, **NESTED) == expected
    (events,) = read_recording(path, 10, now_ms=NOW, columns=expected)
    assert len(events.user_ids) == 1


def test_a_given_name_is_the_last_word(tmp_path: Path) -> None:
    path = table(tmp_path, "who.id,sku,at,kind,price,user,other")
    found = columns(path, "--user-column", "user", "--value-column", "absent", **NESTED)
    assert found == Columns("user", "sku", "at", "kind", "absent")
    with pytest.raises(UsageError, match=r"no column 'absent'; .*--value-column"):
        list(read_recording(path, 10, now_ms=NOW, columns=found))


def test_the_key_is_no_column_so_the_user_is_found_under_a_plain_name(tmp_path: Path) -> None:
    assert columns(table(tmp_path, "user,track,timestamp"), user_id="$key", item_id="track").user == "user"
    assert columns(table(tmp_path, "user_id,track,timestamp"), user_id="$key").user == "user_id"


def test_a_field_that_comes_late_in_jsonl_is_looked_for_under_its_mapped_name(tmp_path: Path) -> None:
    row = {"user": "ann", "item": "tea", "timestamp": 1_600_000_000}
    path = jsonl(tmp_path, "no object", *[row] * 1_000, row | {"price": 3, "kind": "buy"})
    assert columns(path, value="price", event_type="kind") == Columns(event="kind", value="price")


def test_a_name_that_nothing_has_is_told_as_mapped(tmp_path: Path) -> None:
    path = table(tmp_path, "client,sku,at")
    with pytest.raises(UsageError, match=r"no column 'who\.id'; found 'client', 'sku', 'at'"):
        list(read_recording(path, 10, now_ms=NOW, columns=columns(path, **NESTED)))


def test_only_names_that_were_found_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = table(tmp_path, "cid,item,timestamp")
    columns(path, "--user-column", "cid")
    assert not caplog.messages
    columns(path, user_id="cid")
    assert caplog.messages == [f"columns of {path}: user = cid"]


def test_a_parquet_file_is_asked_for_its_names(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"cid": ["ann"], "item_id": ["tea"], "timestamp": [1_600_000_000]}), path)
    assert columns(path, user_id="cid") == Columns(user="cid", item="item_id")

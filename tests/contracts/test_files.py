"""The contract of every reader of recorded files: the same rows give the same events, and all are counted."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import read_recording

from consumers.files.rows import Columns, Tally
from consumers.files.source import READERS
from pipeline.events.batch import Events
from pipeline.settings import EventsConfig

NOW = 1_700_000_000_000
Rows = Sequence[dict[str, Any]]
IDS = ["0444778", "nan", "1e5", " a ", "None", "true", "ü" * 128, "x" * 256, "a,b", 'say "hi"', "2\nlines"]


def as_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, Columns())
        writer.writeheader()
        writer.writerows(rows)


def as_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def as_parquet(path: Path, rows: Rows) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in Columns()}), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.fixture(params=READERS)
def kind(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


def row(number: int = 0, **more: object) -> dict[str, Any]:
    ids = {"user": f"u{number}", "item": "0444778", "timestamp": 1_600_000_000 + number}
    return ids | {"event": "buy", "value": number / 4} | more


def read(folder: Path, kind: str, rows: Rows, batch: int = 100, **options: Any) -> tuple[list[Events], Tally]:
    """Return the events and the tally of rows written in a format; their counts add up."""
    path, tally = folder / f"events.{kind}", Tally()
    WRITERS[kind](path, rows)
    chunks = list(read_recording(path, batch, now_ms=NOW, tally=tally, **options))
    events = sum(map(len, chunks))
    if "limit" not in options:
        assert len(rows) == tally.rows == events + tally.rejected.total() + tally.ignored + tally.left_out
    return chunks, tally


def users(chunks: Sequence[Events]) -> list[str]:
    return [user for events in chunks for user in events.user_ids]


def test_every_column_is_filled(tmp_path: Path, kind: str) -> None:
    rows = [row(number) for number in range(9)] + [row(9, event="", value=None)]
    ((events,), _) = read(tmp_path, kind, rows)
    assert events.user_ids == [f"u{number}" for number in range(10)]
    assert events.item_ids == ["0444778"] * 10
    assert events.types == ["buy"] * 9 + ["click"]
    assert events.event_ids == [None] * 10
    assert events.append_ms_B.tolist() == events.source_B.tolist() == [0] * 10
    assert events.time_ms_B.tolist() == [1_600_000_000_000 + 1_000 * number for number in range(10)]
    np.testing.assert_array_equal(events.value_B, [number / 4 for number in range(9)] + [np.nan])


def test_ids_are_text_byte_for_byte(tmp_path: Path, kind: str) -> None:
    ((events,), _) = read(tmp_path, kind, [row(user=text, item=text) for text in IDS])
    assert events.user_ids == events.item_ids == IDS


def test_whole_numbers_become_their_digits(tmp_path: Path, kind: str) -> None:
    ((events,), _) = read(tmp_path, kind, [row(user=number) for number in (7, -1, 2**63 - 1)])
    assert events.user_ids == ["7", "-1", "9223372036854775807"]


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_an_empty_column_is_counted(tmp_path: Path, kind: str, column: str) -> None:
    chunks, tally = read(tmp_path, kind, [row(0), row(1, **{column: None}), row(2)])
    assert users(chunks) == ["u0", "u2"]
    reason = "missing_field" if kind != "csv" else "bad_time" if column == "timestamp" else "empty_id"
    assert tally.rejected == {reason: 1}
    assert f" {2 + (kind == 'csv')}: " in tally.first[reason]


def test_batches_are_exact_whatever_is_rejected_between(tmp_path: Path, kind: str) -> None:
    rows = [row(number, item="" if number % 3 == 1 else "tea") for number in range(30)]
    chunks, _ = read(tmp_path, kind, rows, 7)
    assert [len(events) for events in chunks] == [7, 7, 6]
    assert users(chunks) == [f"u{number}" for number in range(30) if number % 3 != 1]


@given(start=st.integers(0, 12), limit=st.none() | st.integers(0, 12), batch=st.integers(1, 5))
def test_start_and_limit_count_good_events(start: int, limit: int | None, batch: int) -> None:
    rows = [each for number in range(9) for each in (row(number), row(user=""))]
    for kind in ("csv", "jsonl"):
        with TemporaryDirectory() as folder:
            chunks, _ = read(Path(folder), kind, rows, batch, start=start, limit=limit)
        expected = [f"u{number}" for number in range(9)]
        assert users(chunks) == expected[start : None if limit is None else start + limit]
        assert all(len(events) == batch for events in chunks[:-1])


def test_rows_of_an_ignored_type_are_counted_and_need_nothing(tmp_path: Path, kind: str) -> None:
    rows = [row(), row(event="look", user=None, item=None), row(event="look"), row(event="", item="")]
    chunks, tally = read(tmp_path, kind, rows, settings=EventsConfig(roles={"look": "ignore"}))
    assert (users(chunks), tally.ignored, tally.rejected) == (["u0"], 2, {"empty_id": 1})


def test_the_share_read_grows_to_the_whole(tmp_path: Path, kind: str) -> None:
    path, tally = tmp_path / f"events.{kind}", Tally()
    WRITERS[kind](path, [row(number) for number in range(20_000)])
    shares = [tally.share for _ in read_recording(path, 4_000, now_ms=NOW, tally=tally)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.6
    assert tally.share == 1.0


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("change", [b"\xef\xbb\xbf", b"\r\n", b"gzip"], ids=["mark", "windows", "gzip"])
def test_text_has_a_byte_order_mark_any_line_end_or_is_packed(
    tmp_path: Path, name: str, change: bytes
) -> None:
    path = tmp_path / name
    WRITERS[path.suffix[1:]](path, [row(number) for number in range(5)])
    data = path.read_bytes().replace(b"\r\n", b"\n")
    if change == b"gzip":
        path = tmp_path / f"{name.upper()}.gz"
        path.write_bytes(gzip.compress(data))
    else:
        path.write_bytes(change + data if change != b"\r\n" else data.replace(b"\n", b"\r\n"))
    assert users(list(read_recording(path, 10, now_ms=NOW))) == [f"u{number}" for number in range(5)]

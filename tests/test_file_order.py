"""A file that is not in order of time is sorted where that can be done; one in order is streamed."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recording_of

from consumers.files import order as file_order
from consumers.files.order import in_order
from consumers.files.rows import Tally
from pipeline.app.cli import main

Patch, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
NOW = 1_700_000_000_000
OPTIONS = ("--models", "popularity", "--json")
START_S = 1_600_000_000


def recorded(path: Path, rows: list[tuple[str, str, int]]) -> Path:
    lines = ["user,item,timestamp", *(f"{user},{item},{START_S + time}" for user, item, time in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read(path: Path, start: int = 0, limit: int | None = None, batch: int = 3) -> tuple[list[str], Tally]:
    tally = Tally()
    recording = recording_of(path)
    chunks = list(in_order(recording, batch, now_ms=NOW, start=start, limit=limit, tally=tally))
    assert all(len(events) == batch for events in chunks[:-1])
    items = [item for events in chunks for item in events.item_ids]
    assert tally.rows == len(items) + tally.rejected.total() + tally.left_out
    assert tally.types.total() == len(items)
    return items, tally


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 5), st.none() | st.integers(0, 9))
def test_events_come_in_order_of_time(times: list[int], start: int, limit: int | None) -> None:
    """Equal times come in the order of the file."""
    rows = [("u" if time else "", f"i{number}", time) for number, time in enumerate(times)]
    with TemporaryDirectory() as folder:
        items, tally = read(recorded(Path(folder, "order.csv"), rows), start, limit)
    good = [row for row in rows if row[0]]
    expected = [item for _, item, _ in sorted(good, key=lambda row: row[2])]
    assert items == expected[start : None if limit is None else start + limit]
    late = sum(time < max(t for _, _, t in good[: k + 1]) for k, (_, _, time) in enumerate(good))
    assert (tally.out_of_order, tally.sorted) == (late, late > 0)


def test_a_file_in_order_is_never_held_in_memory(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(file_order, "_sorted", None)
    path = recorded(tmp_path / "a.csv", [("u", f"i{k}", k // 2) for k in range(9)])
    assert read(path)[0] == [f"i{k}" for k in range(9)]


def test_a_file_too_long_to_sort_is_read_as_it_is(tmp_path: Path, monkeypatch: Patch, caplog: Log) -> None:
    monkeypatch.setattr(file_order, "MAX_SORTED", 5)
    path = recorded(tmp_path / "a.csv", [("u", f"i{k}", (7 * k) % 10) for k in range(10)])
    items, tally = read(path)
    assert items == [f"i{k}" for k in range(10)]
    assert (tally.sorted, tally.out_of_order) == (False, 6)
    assert "not in order of time: 3 of 6 events come after a later one; too long to sort" in caplog.text
    assert tally.order() == ["6 events come after a later one: they were read in the file's order"]


def test_the_order_of_a_file_changes_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{rng.integers(20)}", f"i{rng.integers(30)}", k) for k in range(300)]
    figures = []
    for name, said in (("time", False), ("user", True)):
        path = recorded(tmp_path / f"{name}.csv", sorted(rows) if said else rows)
        assert main(["evaluate", str(path), "--start", "20", "--events", "250", *OPTIONS]) == 0
        out, err = capsys.readouterr()
        figures.append(json.loads(out))
        assert ("sorted by time" in err) is said
        assert figures[-1]["sorted"] is said
        assert (figures[-1]["out_of_order"] > 200) is said
        assert figures[-1]["learned"] == 250
    assert figures[0]["models"]["popularity"]["ndcg@10"] == figures[1]["models"]["popularity"]["ndcg@10"]
    assert (figures[0]["left_out"], figures[1]["left_out"]) == (20, 50)

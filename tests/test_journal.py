"""The journal: what was written is read back, what was torn is dropped, and what is missing is an error."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CheckpointError
from pipeline.events.batch import Span
from pipeline.persistence.journal import Entry, Journal, run_lengths, unroll

SPANS = (Span("events", 0, 10, 14), Span("events", 3, 7, 9))


def entry(seq: int) -> Entry:
    return Entry(seq, 1_700_000_000_000 + seq, SPANS, np.array([0, 0, 1, 0, 1, 0], np.int32))


def plain(entries: list[Entry]) -> list[tuple[object, ...]]:
    return [(each.seq, each.now_ms, each.spans, each.order_R.tolist()) for each in entries]


def written(folder: Path, stop: int, checkpoints: tuple[int, ...] = ()) -> Path:
    """Write batches 0 to `stop`, a new segment at each checkpoint, and return the last segment."""
    journal = Journal(folder, keep_all=True)
    journal.open(0)
    for seq in range(stop):
        if seq in checkpoints:
            journal.checkpoint_taken(seq, 0)
        journal.append(entry(seq))
    journal.close()
    return journal.segments()[-1]


@given(st.lists(st.integers(0, 3), max_size=60))
def test_an_order_comes_back_from_its_run_lengths(order: list[int]) -> None:
    pairs = run_lengths(np.array(order, np.int32))
    assert unroll(pairs).tolist() == order
    assert all(left[0] != right[0] for left, right in pairwise(pairs))


def test_entries_come_back_across_segments(tmp_path: Path) -> None:
    written(tmp_path, 7, checkpoints=(3, 5))
    assert [path.name for path in Journal(tmp_path).segments()] == [
        f"journal-{seq:012d}.jsonl" for seq in (0, 3, 5)
    ]
    for start in range(8):
        assert plain(list(Journal(tmp_path).entries(start))) == plain([entry(s) for s in range(start, 7)])


def test_a_line_is_in_the_kernels_hands_when_append_returns(tmp_path: Path) -> None:
    calls: list[bytes] = []

    def write(descriptor: int, line: bytes) -> int:
        calls.append(line)
        return os.write(descriptor, line)

    journal = Journal(tmp_path, write=write)
    journal.open(0)
    journal.append(entry(0))
    assert len(calls) == 2  # the header and the batch: one write each
    assert journal.segments()[0].read_bytes() == b"".join(calls)
    journal.close()


def test_a_last_line_torn_anywhere_is_dropped_and_cut_off(tmp_path: Path) -> None:
    whole = written(tmp_path, 3).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        path = folder / "journal-000000000000.jsonl"
        path.write_bytes(whole[:cut])
        journal = Journal(folder)
        assert plain(list(journal.entries(0))) == plain([entry(0), entry(1)])
        journal.open(2)
        journal.append(entry(2))
        journal.close()
        assert path.read_bytes() == whole


def test_a_segment_torn_in_its_header_is_begun_again(tmp_path: Path) -> None:
    last = written(tmp_path, 4, checkpoints=(2,))
    last.write_bytes(last.read_bytes()[:9])
    journal = Journal(tmp_path)
    assert plain(list(journal.entries(0))) == plain([entry(0), entry(1)])
    journal.open(2)
    journal.append(entry(2))
    journal.close()
    assert plain(list(Journal(tmp_path).entries(0))) == plain([entry(0), entry(1), entry(2)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:2], lines[2][:20] + b"\n", *lines[3:]], r"line 3: can't be read"),
        (lambda lines: [*lines[:2], *lines[3:]], r"line 3: batch 2, expected 1"),
        (lambda lines: [lines[0].replace(b'"format":2', b'"format":9'), *lines[1:]], r"format 9, expected 1"),
    ],
    ids=["torn", "missing", "format"],
)
def test_damage_inside_is_an_error_that_names_the_place(tmp_path: Path, damage: object, message: str) -> None:
    path = written(tmp_path, 4)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        list(Journal(tmp_path).entries(0))


def test_a_torn_end_of_an_earlier_segment_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, 4, checkpoints=(2,))
    first = Journal(tmp_path).segments()[0]
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="ends in a torn line"):
        list(Journal(tmp_path).entries(0))


def test_a_missing_segment_is_an_error_only_where_it_is_needed(tmp_path: Path) -> None:
    written(tmp_path, 6, checkpoints=(2, 4))
    Journal(tmp_path).segments()[1].unlink()
    with pytest.raises(CheckpointError, match="batch 4, expected 2"):
        list(Journal(tmp_path).entries(0))
    assert plain(list(Journal(tmp_path).entries(4))) == plain([entry(4), entry(5)])


def test_segments_that_no_kept_checkpoint_needs_are_deleted(tmp_path: Path) -> None:
    written(tmp_path, 6, checkpoints=(2, 4))
    journal = Journal(tmp_path)
    journal.open(6)
    journal.checkpoint_taken(6, oldest=4)
    journal.close()
    assert [path.name[-7:-6] for path in journal.segments()] == ["4", "6"]


def test_a_batch_out_of_turn_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(0)
    with pytest.raises(CheckpointError, match="batch 1, expected 0"):
        journal.append(entry(1))
    journal.close()


def test_opening_before_what_is_written_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 3)
    journal = Journal(tmp_path)
    with pytest.raises(CheckpointError, match="holds batches up to 2, expected none from 1 on"):
        journal.open(1)
    journal.close()


def test_a_full_disk_is_an_error_before_the_batch_is_learned(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(0)
    journal._write = lambda descriptor, line: os.write(descriptor, line[:10])
    with pytest.raises(CheckpointError, match=r"wrote 10 of \d+ bytes; make room"):
        journal.append(entry(0))
    journal.close()
    assert list(Journal(tmp_path).entries(0)) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"can't be written \(Not a directory\); .*give access"):
        Journal(tmp_path / "file" / "worker-0").lock()


def test_batches_are_cut_off_the_end_across_segments(tmp_path: Path) -> None:
    for seq in range(8):
        folder = tmp_path / str(seq)
        written(folder, 7, checkpoints=(3, 5))
        journal = Journal(folder)
        journal.cut(seq)
        assert plain(list(journal.entries(0))) == plain([entry(s) for s in range(min(seq, 7))])
        if seq < 7:
            journal.open(seq)
            journal.append(entry(seq))
            assert plain(list(journal.entries(0))) == plain([entry(s) for s in range(seq + 1)])
            journal.close()

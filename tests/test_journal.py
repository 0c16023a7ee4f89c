"""The journal: batches are read back as written, torn lines are dropped, missing batches are an error."""

import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CheckpointError
from pipeline.events.batch import Span
from pipeline.persistence.journal import FORMAT, Entry, Journal, run_lengths, unroll

SPANS = (Span("events", 0, 10, 14), Span("events", 3, 7, 9))


def entry(seq: int) -> Entry:
    return Entry(seq, 1_700_000_000_000 + seq, SPANS, [(0, 2), (1, 1), (0, 1), (1, 1), (0, 1)])


def assert_entries(folder: Path, seqs: Iterable[int], start: int = 0) -> None:
    assert list(Journal(folder).entries(start)) == [entry(seq) for seq in seqs]


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


def appended(folder: Path, seq: int) -> None:
    journal = Journal(folder)
    journal.open(seq)
    journal.append(entry(seq))
    journal.close()


@given(st.lists(st.integers(0, 3), max_size=60))
def test_run_lengths_are_decoded_to_the_same_order(order: list[int]) -> None:
    pairs = run_lengths(np.array(order, np.int32))
    assert unroll(pairs).tolist() == order
    assert all(left[0] != right[0] for left, right in pairwise(pairs))


def test_entries_are_read_across_segments(tmp_path: Path) -> None:
    written(tmp_path, 7, checkpoints=(3, 5))
    assert [path.name for path in Journal(tmp_path).segments()] == [
        f"journal-{seq:012d}.jsonl" for seq in (0, 3, 5)
    ]
    for start in range(8):
        assert_entries(tmp_path, range(start, 7), start)


def test_each_line_is_one_write_that_is_complete_when_append_returns(tmp_path: Path) -> None:
    calls: list[bytes] = []

    def write(descriptor: int, line: bytes) -> int:
        calls.append(line)
        return os.write(descriptor, line)

    journal = Journal(tmp_path, write=write)
    journal.open(0)
    journal.append(entry(0))
    assert len(calls) == 2  # the header and the batch
    assert journal.segments()[0].read_bytes() == b"".join(calls)
    journal.close()


def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path) -> None:
    whole = written(tmp_path, 3).read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        path = folder / "journal-000000000000.jsonl"
        path.write_bytes(whole[:cut])
        assert_entries(folder, [0, 1])
        appended(folder, 2)
        assert path.read_bytes() == whole


def test_a_segment_with_a_torn_header_is_started_again(tmp_path: Path) -> None:
    last = written(tmp_path, 4, checkpoints=(2,))
    last.write_bytes(last.read_bytes()[:9])
    assert_entries(tmp_path, [0, 1])
    appended(tmp_path, 2)
    assert_entries(tmp_path, [0, 1, 2])


Lines = list[bytes]
OTHER_FORMAT = b'{"format":%d}\n' % (FORMAT + 1)


@pytest.mark.parametrize(
    ("segment", "damage", "message"),
    [
        (0, lambda lines: [*lines[:2], lines[2][:20] + b"\n", *lines[3:]], "line 3: can't be read"),
        (0, lambda lines: [*lines[:2], *lines[3:]], "line 3: batch 2, expected 1"),
        (0, lambda lines: [OTHER_FORMAT, *lines[1:]], f"format {FORMAT + 1}, expected {FORMAT}"),
        (0, lambda lines: [*lines[:-1], lines[-1][:-5]], "ends in a torn line"),
        (1, lambda lines: [], "batch 6, expected 4"),
    ],
    ids=["torn inside", "missing line", "format", "torn end of an earlier segment", "missing segment"],
)
def test_damage_before_the_last_line_is_an_error_that_names_the_place(
    tmp_path: Path, segment: int, damage: Callable[[Lines], Lines], message: str
) -> None:
    written(tmp_path, 8, checkpoints=(4, 6))
    path = Journal(tmp_path).segments()[segment]
    lines = damage(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(b"".join(lines)) if lines else path.unlink()
    with pytest.raises(CheckpointError, match=message):
        list(Journal(tmp_path).entries(0))
    assert_entries(tmp_path, [6, 7], 6)  # later segments are not affected


def test_segments_that_no_kept_checkpoint_needs_are_deleted(tmp_path: Path) -> None:
    written(tmp_path, 6, checkpoints=(2, 4))
    journal = Journal(tmp_path)
    journal.open(6)
    journal.checkpoint_taken(6, oldest=4)
    journal.close()
    assert [path.name[-7:-6] for path in journal.segments()] == ["4", "6"]


def test_opening_before_the_last_batch_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, 3)
    journal = Journal(tmp_path)
    with pytest.raises(CheckpointError, match="holds batches up to 2, expected none from 1 on"):
        journal.open(1)
    journal.close()


def test_a_batch_out_of_order_and_a_full_disk_are_errors_before_the_batch_is_learned(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(0)
    with pytest.raises(CheckpointError, match="batch 1, expected 0"):
        journal.append(entry(1))
    journal._write = lambda descriptor, line: os.write(descriptor, line[:10])
    with pytest.raises(CheckpointError, match=r"wrote 10 of \d+ bytes; free disk space"):
        journal.append(entry(0))
    journal.close()
    assert_entries(tmp_path, [])


def test_an_unusable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"can't be written \(Not a directory\); .*give access"):
        Journal(tmp_path / "file" / "worker-0").lock()


@pytest.mark.parametrize("seq", range(8))
def test_cut_deletes_batches_across_segments(tmp_path: Path, seq: int) -> None:
    written(tmp_path, 7, checkpoints=(3, 5))
    Journal(tmp_path).cut(seq)
    assert_entries(tmp_path, range(min(seq, 7)))
    if seq < 7:
        appended(tmp_path, seq)
        assert_entries(tmp_path, range(seq + 1))

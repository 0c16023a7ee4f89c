"""The journal: the records, their order and the time of every batch.

With the topic it makes every batch repeatable, so that the parameters after a crash equal those of an
unbroken run bit for bit. One JSON line a batch, appended BEFORE the batch is learned (here on two lines):

    {"seq":7,"now_ms":1700000000000,"spans":[["events",0,812,820],["events",1,790,794]],
     "order":[[0,3],[1,4],[0,5]]}

`order` is run-length coded: 3 records of span 0, then 4 of span 1, then 5 of span 0. `catalog`, if present,
holds the update from the items topic. Each line is one unbuffered `os.write`, so the kernel has it before the
batch is learned: `kill -9` loses nothing, and no fsync is needed. (A power cut may lose the last lines; their
records are then read from the topic as new batches.)

A segment `journal-<first seq>.jsonl` starts after each checkpoint; its first line states the format.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from pipeline.errors import CheckpointError
from pipeline.events.batch import NO_UPDATE, CatalogUpdate, IntArray, Span

FORMAT = 1
Value = TypeVar("Value")
ADVICE = "restore the folder from a backup, or move it away to start empty"


class Header(msgspec.Struct, frozen=True):
    """The first line of a segment."""

    format: int


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch. Without records it brings a catalogue update, or makes pending lists."""

    seq: int
    now_ms: int
    spans: tuple[Span, ...]
    order: list[tuple[int, int]]  # index in spans, run length
    catalog: CatalogUpdate = NO_UPDATE

    @property
    def order_R(self) -> IntArray:
        """The index in `spans` of each record."""
        return unroll(self.order)


def run_lengths(order_R: IntArray) -> list[tuple[int, int]]:
    """Code runs of equal values.

    >>> run_lengths(np.array([0, 0, 0, 1, 0]))
    [(0, 3), (1, 1), (0, 1)]
    """
    if not len(order_R):
        return []
    starts = np.flatnonzero(np.diff(order_R, prepend=order_R[0] - 1))
    lengths = np.diff(starts, append=len(order_R))
    return list(zip(order_R[starts].tolist(), lengths.tolist(), strict=True))


def unroll(order: list[tuple[int, int]]) -> IntArray:
    """Decode `run_lengths`.

    >>> unroll([(0, 3), (1, 1)]).tolist()
    [0, 0, 0, 1]
    """
    pairs = np.array(order, np.int32).reshape(-1, 2)
    return np.repeat(pairs[:, 0], pairs[:, 1])


class Journal:
    """The journal of one worker, in its own local folder.

    `keep_all` keeps segments that no checkpoint needs, to repeat a whole run. `write` lets tests tear a line.
    """

    def __init__(
        self, folder: Path, keep_all: bool = False, write: Callable[[int, bytes], int] = os.write
    ) -> None:
        self.folder = folder
        self.keep_all = keep_all
        self._write = write
        self._file = -1  # of the current segment; -1 until `open`
        self._lock = -1
        self._first = 0  # seq of the current segment
        self._next = 0  # seq of the next entry

    def lock(self) -> None:
        """Keep other processes of this worker_id out until this process ends.

        Raise `CheckpointError` when another process has the lock, or the folder can't be written.
        """
        if self._lock >= 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "journal.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: can't be written ({error.strerror}); expected a writable folder: "
                "give access, or choose another checkpoint.path or checkpoint.journal"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise CheckpointError(
                f"{self.folder}: another process is writing this journal; expected one process a worker. "
                "Stop it, or set another kafka.worker_id here"
            ) from None
        self._lock = lock

    def open(self, seq: int) -> None:
        """Prepare to append batch `seq`, to the last segment if it ends there, else to a new one.

        A torn last line is cut off: its batch was not learned. Raise `CheckpointError` when another process
        writes this journal, or when it holds batches from `seq` on.
        """
        self.lock()
        segments = self.segments()
        if segments:
            path = segments[-1]
            entries, whole_bytes = self._scan(path)
            if whole_bytes == 0:
                path.unlink()  # its header is torn, so it holds nothing
            else:
                os.truncate(path, whole_bytes)
                stop = entries[-1].seq + 1 if entries else first_seq(path)
                if stop > seq:
                    raise CheckpointError(
                        f"{path}: holds batches up to {stop - 1}, expected none from {seq} on; {ADVICE}"
                    )
                if stop == seq:
                    self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
                    self._first, self._next = first_seq(path), seq
                    return
        self._start_segment(seq)

    def append(self, entry: Entry) -> None:
        """Write a batch; from then on a crash can't change it."""
        if entry.seq != self._next:
            raise CheckpointError(
                f"journal {self.folder}: batch {entry.seq}, expected {self._next}; {ADVICE}"
            )
        self._put(entry)
        self._next += 1

    def entries(self, seq: int) -> Iterator[Entry]:
        """Yield the batches from `seq` on, in order, without a torn last line.

        Raise `CheckpointError` when one is missing or unreadable.
        """
        segments = self.segments()
        # The newest segment that starts at or before seq holds it; earlier ones are not needed.
        begin = max((i for i, path in enumerate(segments) if first_seq(path) <= seq), default=0)
        expected = seq
        for path in segments[begin:]:
            entries, whole_bytes = self._scan(path)
            if path is not segments[-1] and whole_bytes < path.stat().st_size:
                raise CheckpointError(f"{path}: ends in a torn line, and later batches exist; {ADVICE}")
            for entry in entries:
                if entry.seq < seq:
                    continue
                if entry.seq != expected:
                    raise CheckpointError(f"{path}: batch {entry.seq}, expected {expected}; {ADVICE}")
                yield entry
                expected += 1

    def is_empty(self) -> bool:
        """Return whether no segment holds a batch."""
        return not any(self._scan(path)[0] for path in self.segments())

    def cut(self, seq: int) -> None:
        """Delete the batches from `seq` on, the last first; only before `open`."""
        for path in reversed(self.segments()):
            first = first_seq(path)
            if first < seq:
                lines = path.read_bytes().splitlines(keepends=True)
                os.truncate(path, sum(map(len, lines[: 1 + seq - first])))  # the header is a line too
                return
            path.unlink()

    def checkpoint_taken(self, seq: int, oldest: int) -> None:
        """Start a new segment at `seq`; delete those that no checkpoint from `oldest` on needs."""
        if seq > self._first:
            self._start_segment(seq)
        if self.keep_all:
            return
        for path, following in pairwise(self.segments()):
            if first_seq(following) <= oldest:
                path.unlink()

    def segments(self) -> list[Path]:
        """Return the segments' paths, oldest first."""
        return sorted(self.folder.glob("journal-*.jsonl"), key=first_seq)

    def close(self) -> None:
        """Close the files and release the lock."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _start_segment(self, seq: int) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        path = self.folder / f"journal-{seq:012d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self._first = self._next = seq
        self._put(Header(FORMAT))

    def _put(self, value: Header | Entry) -> None:
        line = msgspec.json.encode(value) + b"\n"
        try:
            written = self._write(self._file, line)
        except OSError as error:
            raise CheckpointError(f"journal {self.folder}: can't be written ({error.strerror})") from None
        if written != len(line):
            raise CheckpointError(
                f"journal {self.folder}: wrote {written} of {len(line)} bytes; free disk space"
            )

    def _scan(self, path: Path) -> tuple[list[Entry], int]:
        """Return the entries of a segment, and the number of bytes of its whole lines."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            return [], 0
        header = _decode(lines[0], Header, path, 1)
        if header.format != FORMAT:
            raise CheckpointError(
                f"{path}: format {header.format}, expected {FORMAT}; use the version of afresh "
                "that wrote it, or move the folder away to start empty"
            )
        entries = [_decode(line, Entry, path, number) for number, line in enumerate(lines[1:], 2)]
        for number, found in enumerate(entries, 2):
            expected = first_seq(path) + number - 2
            if found.seq != expected:
                raise CheckpointError(
                    f"{path}, line {number}: batch {found.seq}, expected {expected}; {ADVICE}"
                )
        return entries, len(whole)


def first_seq(path: Path) -> int:
    """Return the number of the first batch of a segment.

    >>> first_seq(Path("journal-000000000042.jsonl"))
    42
    """
    digits = path.stem.removeprefix("journal-")
    if not digits.isdecimal():
        raise CheckpointError(f"{path}: expected a name like journal-000000000042.jsonl; move the file away")
    return int(digits)


def _decode(line: bytes, kind: type[Value], path: Path, number: int) -> Value:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path}, line {number}: can't be read ({error}); {ADVICE}") from None

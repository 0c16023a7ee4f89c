"""A recorded file: where its bytes are, and how they become rows."""

import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from consumers.files.rows import DEFAULT_COLUMNS, Columns
from pipeline.errors import UsageError
from pipeline.events.checks import TimeUnit
from pipeline.settings import EventsConfig

Kind = Literal["csv", "jsonl", "parquet"]
STDIN = "-"
GZIP = b"\x1f\x8b"
BUFFER_BYTES = 1 << 16
NO_MAPPING = EventsConfig()


@dataclass(frozen=True, slots=True)
class Recording:
    """How a file is read. `name` is for messages: standard input is read from a temporary file.

    `header` names the columns of a file without a header line. `time_unit` None: derived from the file. Rows
    of an event type in `ignored` are counted and left out.
    """

    path: Path
    name: str
    kind: Kind
    packed: bool = False  # with gzip
    delimiter: str = ","
    header: tuple[str, ...] | None = None
    columns: Columns = DEFAULT_COLUMNS
    time_unit: TimeUnit | None = None
    default_type: str = "click"
    ignored: frozenset[str] = frozenset()
    events: EventsConfig = NO_MAPPING  # of a .jsonl: several names of a field, and paths through arrays


class FileBytes:
    """The unpacked bytes of a file, and how far they have been read."""

    def __init__(self, path: Path, name: str, packed: bool) -> None:
        self._path, self._name, self._packed = path, name, packed
        self._raw: BinaryIO | None = None
        self._size = 0

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open the file, for a buffered reader. Errors of the file inside the block become a `UsageError`."""
        try:
            with self._path.open("rb", BUFFER_BYTES) as raw:
                self._raw, self._size = raw, raw.seek(0, io.SEEK_END)
                raw.seek(0)
                if self._packed:
                    with gzip.open(raw) as unpacked:
                        yield io.BufferedReader(unpacked, BUFFER_BYTES)
                else:
                    yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{self._name}: not a whole gzip file: {error}; get it again") from error
        except OSError as error:
            raise UsageError(f"{self._name}: can't be read: {error.strerror or error}") from error

    def share(self) -> float:
        """Return the share of the packed bytes that has been read."""
        if self._raw is None or not self._size:
            return 0.0
        return 1.0 if self._raw.closed else self._raw.tell() / self._size


@contextmanager
def readable_twice(file: str) -> Iterator[Path]:
    """Yield a path from which a file's bytes can be read more than once.

    Standard input (`-`) and pipes are copied into a temporary file. Raise `UsageError` when it does not fit.
    """
    is_stream = os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file)
    if file != STDIN and not is_stream:
        yield Path(file)
        return
    with tempfile.TemporaryDirectory(prefix="afresh-") as folder:
        path = Path(folder) / "stdin"
        try:
            with (
                open(0 if file == STDIN else file, "rb", closefd=file != STDIN) as source,
                path.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
        except OSError as error:
            raise UsageError(
                f"{file}: can't be copied to {folder}: {error.strerror or error}; "
                "name a folder with room for it in TMPDIR"
            ) from error
        yield path

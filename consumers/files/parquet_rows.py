"""The rows of a parquet file. Columns must have an unambiguous type: text, numbers, times."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consumers.files.recording import Recording
from consumers.files.rows import Row, Tally, places_of, wrong_type
from pipeline.errors import UsageError
from pipeline.events.checks import TimeUnit

PARQUET_ROWS = 8192  # read at a time


def names_in(path: Path) -> list[str]:
    """Return the names of a file's columns; none where reading its rows raises the error."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return []
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return []
    return names


class ParquetRows:
    """The rows of a parquet file: see `consumers.files.rows.Rows`."""

    def __init__(self, recording: Recording, tally: Tally) -> None:
        self._path, self._name, self._columns = recording.path, recording.name, recording.columns
        self._ignored, self._tally = recording.ignored, tally
        self._done, self._total = 0, 0
        tally.counted = "row"
        self.time_unit: TimeUnit | None = None

    def share(self) -> float:
        """Return the share of the rows that has been read."""
        return self._done / self._total if self._total else 0.0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows. Raise `UsageError` without pyarrow, or when the file doesn't fit."""
        try:
            import pyarrow as pa  # 60 MB that only this format needs
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UsageError(
                f"{self._name}: parquet files need the package pyarrow; pip install 'afresh[parquet]'"
            ) from error
        try:
            with self._path.open("rb") as raw, pq.ParquetFile(raw) as file:
                schema, self._total = file.schema_arrow, file.metadata.num_rows
                places_of(self._name, self._columns, schema.names)
                self._check_types(pa.types, schema)
                names = [name for name in dict.fromkeys(self._columns) if name in schema.names]
                for batch in file.iter_batches(PARQUET_ROWS, columns=names):
                    yield from self._rows(pa, batch)
        except (OSError, pa.ArrowException) as error:
            text = str(error).splitlines()[0]
            raise UsageError(f"{self._name}: can't be read as parquet: {text}") from error

    def _check_types(self, types: Any, schema: Any) -> None:
        """Raise `UsageError` for a column of an ambiguous type."""
        text = (types.is_string, types.is_large_string, types.is_string_view)
        id_types = (*text, types.is_integer)
        numbers = (*id_types, types.is_floating, types.is_null)
        allowed = {
            "user": (id_types, "text or whole numbers"),
            "item": (id_types, "text or whole numbers"),
            "timestamp": ((*numbers, types.is_timestamp), "times, numbers or text"),
            "event": ((*id_types, types.is_null), "text or whole numbers"),
            "value": (numbers, "numbers"),
        }
        for column, (tests, expected) in allowed.items():
            name = getattr(self._columns, column)
            if name not in schema.names:
                continue
            kind = schema.field(name).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not any(test(kind) for test in tests):
                raise UsageError(
                    f"{self._name}: column {name!r} holds {kind}; expected {expected}. "
                    f"Convert it, or name another with --{column}-column"
                )
            if types.is_timestamp(kind):
                self.time_unit = "ms"

    def _rows(self, pa: Any, batch: Any) -> Iterator[Row]:
        columns = []
        for name in self._columns:
            if name not in batch.schema.names:
                columns.append([None] * batch.num_rows)
                continue
            values = batch.column(name)
            if pa.types.is_timestamp(values.type):
                values = values.cast(pa.timestamp("ms", values.type.tz), safe=False).cast(pa.int64())
            columns.append(values.to_pylist())
        for number, (user, item, time, event, value) in enumerate(zip(*columns, strict=True), self._done + 1):
            self._done = number
            self._tally.rows += 1
            if event is not None and str(event) in self._ignored:
                self._tally.ignored += 1
                continue
            if user is None or item is None or time is None:
                name = self._columns[[user, item, time].index(None)]
                self._tally.reject(number, wrong_type(name, None, "a value in every row"))
                continue
            yield Row(number, str(user), str(item), time, "" if event is None else str(event), value)

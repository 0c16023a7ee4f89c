"""The rows of a .jsonl: nested fields, several names of a field, arrays that make several events a row."""

from collections.abc import Iterator
from typing import Any

import msgspec

from consumers.files.recording import FileBytes, Recording
from consumers.files.rows import Row, Tally, places_of, wrong_type
from pipeline.events.checks import MAX_DEPTH, MAX_ELEMENTS, Problem, TimeUnit, too_deep, too_many
from pipeline.events.fields import ARRAY, Names, spread, value_at
from pipeline.events.problems import json_problem
from pipeline.settings import FIELD_OF, names_of


class JsonRows:
    """The rows of a .jsonl, an object a line: see `consumers.files.rows.Rows`."""

    time_unit: TimeUnit | None = None

    def __init__(self, recording: Recording, tally: Tally) -> None:
        self._recording, self._columns, self._tally = recording, recording.columns, tally
        self._bytes = FileBytes(recording.path, recording.name, recording.packed)
        self.share = self._bytes.share
        fields = recording.events.fields
        self._choices: dict[str, Names] = {}  # by the name of a column, as `spread` takes them
        for column, name in self._columns._asdict().items():
            if name is not None:
                names = names_of(fields.get(FIELD_OF[column]) or name)
                # the name of an option, or the plain one, is not among those of the configuration
                self._choices[name] = names if name in names else (name,)
        self._spreads = any(len(names) > 1 or ARRAY in names[0] for names in self._choices.values())

    def __iter__(self) -> Iterator[Row]:
        first: dict[str, Any] | None = None
        good = 0
        with self._bytes.open() as binary:
            for number, line in enumerate(binary, 1):
                if line.isspace():
                    continue
                self._tally.rows += 1
                row = self._parsed(number, line)
                if row is None:
                    continue
                first = row if first is None else first
                found = spread(row, self._choices, self._columns.item) if self._spreads else [row]
                if str(self._value(found[0], "event")) in self._recording.ignored:
                    good += 1
                    self._tally.ignored += 1
                    continue
                if len(found) > MAX_ELEMENTS:
                    self._tally.reject(number, too_many(len(found)))
                    continue
                for each in found:
                    got = self._as_row(number, each)
                    if isinstance(got, Row):
                        good += 1
                        yield got
                    else:
                        self._tally.reject(number, got)
        if first is not None and not good:  # no row fits: most likely the names don't
            held = [name for name in self._columns if name is not None and value_at(first, name) is not None]
            places_of(self._recording.name, self._columns, list(dict.fromkeys([*first, *held])))

    def _parsed(self, number: int, line: bytes) -> dict[str, Any] | None:
        """Return the object of a line; reject the line if it holds none."""
        problem = Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; expected a flat JSON object")
        if not too_deep(line):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                return msgspec.json.decode(text.strip(), type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                problem = json_problem(line, error)
        self._tally.reject(number, problem)
        return None

    def _as_row(self, number: int, row: dict[str, Any]) -> Row | Problem:
        texts = []
        for column in ("user", "item", "event"):
            text = self._value(row, column)
            if text is None and column == "event":
                text = ""
            if isinstance(text, bool) or not isinstance(text, str | int):
                return wrong_type(getattr(self._columns, column), text, "text or a whole number")
            texts.append(str(text))
        time, value = self._value(row, "timestamp"), self._value(row, "value")
        if not isinstance(time, str | int | float) or isinstance(time, bool):
            return wrong_type(self._columns.timestamp, time, "a number or an ISO 8601 text")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            return wrong_type(self._columns.value, value, "a number")
        user, item, event = texts
        return Row(number, user, item, time, event, value)

    def _value(self, row: dict[str, Any], column: str) -> Any:
        """Return a row's value in a column; None for nothing, or for a column that is not read."""
        name = getattr(self._columns, column)
        return None if name is None else value_at(row, name)

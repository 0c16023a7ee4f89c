"""From bytes to columns: every record becomes events or a reject, or is ignored. No record raises."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeline.events.batch import Events, Polled, RawBatch, Record, Reject
from pipeline.events.careful import MALFORMED, CarefulParser
from pipeline.events.checks import AHEAD_MS, EARLIEST_MS, Problem, passes, too_deep, unreadable
from pipeline.events.fields import (
    ARRAY,
    READ_FIELDS,
    TEXT_FIELDS,
    TO_MS,
    Names,
    field_choices,
    is_path,
    key_text,
    kind_of,
)
from pipeline.events.problems import payload_of, unparsed_problem
from pipeline.settings import KEY_FIELD, EventsConfig, TopicsConfig

Parse = Callable[[str], Any]
TOMBSTONE = "tombstone"  # counted beside the ignored event types: a record without a value


class Read(NamedTuple):
    """The content of the records read so far."""

    good: list[tuple[Any, int, int, int]]  # event, its time, its record's, index of its span
    rejects: list[Reject]
    ignored: Counter[str]


class Decoder:
    """Decode records by the configured field names, unit of time, event types and roles.

    Where every field has one name that is no path, the quick parser reads nearly every record; the careful
    one reads all others. Raise `UsageError` when the field names contradict each other. Holds no state
    between batches.
    """

    def __init__(self, settings: EventsConfig, topics: TopicsConfig, record_bytes: int) -> None:
        choices = field_choices(settings)
        self._record_bytes = record_bytes
        self._default_types = topics.event_topics()
        self._ignored = settings.ignored()
        self._to_ms = TO_MS[settings.time_unit]
        self._user_is_key = choices["user_id"][0] == KEY_FIELD
        self._has_array = any(ARRAY in name for names in choices.values() for name in names)
        self._parse = quick_parser(choices, settings.time_unit)
        self._careful = CarefulParser(choices, settings)

    def decode(self, seq: int, now_ms: int, polled: Polled) -> RawBatch:
        """Return good events as columns beside the rejects, each in the records' order.

        `now_ms` is the wall-clock time that event times are checked against.
        """
        read = Read([], [], Counter())
        for record, source in zip(polled.records, polled.order_R.tolist(), strict=True):
            value = record.value
            if value is None:
                if problem := unreadable(record):
                    read.rejects.append(Reject(record, *problem))
                else:
                    read.ignored[TOMBSTONE] += 1
            elif len(value) > self._record_bytes or too_deep(value):
                read.rejects.append(Reject(record, *unparsed_problem(value, self._record_bytes)))
            elif self._parse is None or not self._read_quickly(self._parse, record, source, now_ms, read):
                self._read_carefully(record, source, now_ms, read)
        events = self._columns(polled, read.good, now_ms)
        return RawBatch(seq, now_ms, polled.spans, events, read.rejects, ignored=read.ignored)

    def parts(self, polled: Polled, max_events: int) -> Iterator[Polled]:
        """Yield records in parts of at most `max_events` events, but of one record at least.

        Records that are one event each are one part.
        """
        while (count := self._fitting(polled, max_events)) < len(polled.records):
            first, polled = polled.split(count)
            yield first
        yield polled

    def _fitting(self, polled: Polled, max_events: int) -> int:
        """Return how many of the records, from the first on, make one part."""
        events = 0
        for place, record in enumerate(polled.records if self._has_array else ()):
            events += self._careful.count(record, self._default_type(record.topic))
            if events > max_events:
                return max(1, place)
        return len(polled.records)

    def _default_type(self, topic: str) -> str:
        return self._default_types.get(topic, "click")

    def _read_quickly(self, parse: Parse, record: Record, source: int, now_ms: int, read: Read) -> bool:
        """Read a record that holds what is expected; return False, with nothing read, for all others."""
        try:
            event = parse(payload_of(record.value or b"").decode())  # all of it must be UTF-8
            if self._ignored:
                kind = str(event.event_type or self._default_type(record.topic))
                if kind in self._ignored:
                    read.ignored[kind] += 1
                    return True
            time = event.timestamp_ms
            time_ms = record.timestamp if time is None else self._to_ms(time)
            if self._user_is_key:
                event.user_id = key_text(record.key)
            try:
                passed = passes(event, time_ms, now_ms + AHEAD_MS)
            except TypeError:  # a whole number has no length
                as_text(event)
                passed = passes(event, time_ms, now_ms + AHEAD_MS)
        except (*MALFORMED, TypeError):
            return False
        if passed:
            read.good.append((event, time_ms, record.timestamp, source))
        return passed

    def _read_carefully(self, record: Record, source: int, now_ms: int, read: Read) -> None:
        """Read any record that can be parsed at all; its problems become one reject, by the first."""
        results = self._careful.read(record, self._default_type(record.topic), now_ms)
        read.good.extend((*each, record.timestamp, source) for each in results if type(each) is tuple)
        read.ignored.update(each for each in results if isinstance(each, str))
        problems = [each for each in results if isinstance(each, Problem)]
        if problems:
            first, more = problems[0], sum(each != problems[0] for each in problems)
            detail = f"{first.detail} (and {more} more of {len(results)} elements)" if more else first.detail
            read.rejects.append(Reject(record, first.reason, detail))

    def _columns(self, polled: Polled, good: Sequence[tuple[Any, int, int, int]], now_ms: int) -> Events:
        default_types = [self._default_type(span.topic) for span in polled.spans]
        append_ms_B = np.array([appended for _, _, appended, _ in good], np.int64)
        append_ms_B[(append_ms_B < EARLIEST_MS) | (append_ms_B > now_ms + AHEAD_MS)] = 0
        return Events(
            user_ids=[event.user_id for event, _, _, _ in good],
            item_ids=[event.item_id for event, _, _, _ in good],
            types=[event.event_type or default_types[source] for event, _, _, source in good],
            event_ids=[event.event_id or None for event, _, _, _ in good],
            time_ms_B=np.array([time_ms for _, time_ms, _, _ in good], np.int64),
            append_ms_B=append_ms_B,
            value_B=np.array([event.value for event, _, _, _ in good], np.float64),  # None becomes NaN
            source_B=np.array([source for _, _, _, source in good], np.int32),
        )


def quick_parser(choices: Mapping[str, Names], time_unit: str) -> Parse | None:
    """Return a parser of events as JSON text; None where a field has several names, or a path.

    Its result has an attribute for each field that is read, None where nothing is found; ids and types are
    `str | int`, see `as_text`. It raises msgspec's errors.
    """
    if any(len(names) > 1 or is_path(names[0]) for names in choices.values()):
        return None
    members = [(field, kind_of(field, time_unit) | None, None) for field in READ_FIELDS]
    rename = {field: names[0] for field, names in choices.items()}
    parse: Parse = msgspec.json.Decoder(msgspec.defstruct("Event", members, rename=rename, gc=False)).decode
    return parse


def as_text(event: Any) -> None:
    """Turn ids and types that came as whole numbers into their decimal digits."""
    for field in TEXT_FIELDS:
        text = getattr(event, field)
        if text.__class__ is int:
            setattr(event, field, str(text))

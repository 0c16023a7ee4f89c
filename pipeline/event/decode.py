"""From bytes to columns: every record of a poll becomes events or a reject, or is ignored, in one pass, and
none can stop it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.event.batch import Events, Polled, RawBatch, Record, Reject
from pipeline.event.checks import AHEAD_MS, EARLIEST_MS, MAX_DEPTH, SHORT, Problem, too_deep
from pipeline.event.fields import field_choices, key_text
from pipeline.event.framing import is_object, unframed
from pipeline.event.mapped import TO_MS, MappedReader
from pipeline.event.parse import Parse, as_text, plain_parser
from pipeline.event.problems import event_problem, malformed_problem, unread_problem
from pipeline.event.records import DEFAULT_USER
from pipeline.settings import KEY_FIELD, EventsConfig, TopicsConfig

TOMBSTONE = "tombstone"  # counted beside the ignored event types: a record without a value


class Read(NamedTuple):
    """What records were read as."""

    good: list[tuple[Any, int, int, int]]  # event, its time, its record's, index of its span
    rejects: list[Reject]
    ignored: Counter[str]


class Decoder:
    """Decode records by the configured field names, unit of time, event types and roles.

    Raise `UsageError` when the field names contradict each other. Holds no state between batches.
    """

    def __init__(self, settings: EventsConfig, topics: TopicsConfig, record_bytes: int) -> None:
        choices = field_choices(settings)
        self._names = {field: names[0] for field, names in choices.items()}
        self._record_bytes = record_bytes
        self._default_types = topics.event_topics()
        self._to_ms = TO_MS[settings.time_unit]
        self._whole_is_ms = settings.time_unit == "ms"
        self._user_is_key = self._names["user_id"] == KEY_FIELD
        self._parse = plain_parser(choices, settings)
        self._mapped = None if self._parse else MappedReader(choices, settings)

    def decode(self, seq: int, now_ms: int, polled: Polled) -> RawBatch:
        """Turn what was polled into columns of good events beside the rejects, each in the records' order.

        `now_ms` is the wall-clock time that times are judged by. No record whatever raises.
        """
        read, record_B = Read([], [], Counter()), None
        if self._parse:
            self._read_plain(self._parse, polled, now_ms, read)
        elif self._mapped:
            record_B = self._read_mapped(self._mapped, polled, now_ms, read)
        return RawBatch(
            seq, now_ms, polled.spans, self._columns(polled, read.good, now_ms), read.rejects,
            ignored=read.ignored, record_B=record_B,
        )  # fmt: skip

    def parts(self, polled: Polled, max_events: int) -> Iterator[Polled]:
        """Yield records in parts of at most `max_events` events, but of one record at least.

        Only records that may be several events each are counted: all others are one part.
        """
        while (count := self._fitting(polled, max_events)) < len(polled.records):
            first, polled = polled.split(count)
            yield first
        yield polled

    def _fitting(self, polled: Polled, max_events: int) -> int:
        """Return how many of the records, from the first on, make one part."""
        events = 0
        if self._mapped and self._mapped.fans_out:
            for place, record in enumerate(polled.records):
                events += self._mapped.count(record, self._default_type(record.topic))
                if events > max_events:
                    return max(1, place)
        return len(polled.records)

    def _default_type(self, topic: str) -> str:
        return self._default_types.get(topic, "click")

    def _leave_out(self, record: Record, value: bytes | None, read: Read) -> None:
        """Ignore a record without a value; reject one that is not to be parsed."""
        if value is None:
            read.ignored[TOMBSTONE] += 1
        else:
            read.rejects.append(Reject(record, *unread_problem(record, value, self._record_bytes)))

    def _read_mapped(
        self, reader: MappedReader, polled: Polled, now_ms: int, read: Read
    ) -> npt.NDArray[np.int32]:
        """Read records that may be several events, or none; return each event's place in the records."""
        places: list[int] = []
        for place, (record, source) in enumerate(zip(polled.records, polled.order_R.tolist(), strict=True)):
            value = record.value
            if value is None or len(value) > self._record_bytes or too_deep(value):
                self._leave_out(record, value, read)
                continue
            found = reader.read(record, value, self._default_type(record.topic), now_ms)
            read.good.extend((event, time_ms, record.timestamp, source) for event, time_ms in found.events)
            read.ignored.update(found.ignored)
            places += [place] * len(found.events)
            if found.problem:
                read.rejects.append(Reject(record, *found.problem))
        return np.array(places, np.int32)

    def _read_plain(self, parse: Parse, polled: Polled, now_ms: int, read: Read) -> None:
        """Read records of which every field lies at the top, under one name."""
        longest, to_ms, whole_is_ms = self._record_bytes, self._to_ms, self._whole_is_ms
        user_is_key = self._user_is_key
        latest_ms = now_ms + AHEAD_MS
        good, rejects, _ = read
        for record, source in zip(polled.records, polled.order_R.tolist(), strict=True):
            value = record.value
            if value is None or len(value) > longest or (len(value) > 2 * MAX_DEPTH and too_deep(value)):
                self._leave_out(record, value, read)
                continue
            try:
                event = parse(value.decode())  # all of it must be UTF-8; the parser skips over unknown fields
                time_ms = event.timestamp_ms
                if time_ms is None:
                    time_ms = record.timestamp
                elif time_ms.__class__ is not int or not whole_is_ms:
                    time_ms = to_ms(time_ms)
                if user_is_key:
                    event.user_id = key_text(record.key)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                again = self._read_again(parse, record, value, error)
                if isinstance(again, Problem):
                    rejects.append(Reject(record, *again))
                    continue
                event, time_ms = again
            # Nearly every event passes here; only one that doesn't is looked at field by field.
            try:
                if (
                    0 < len(event.user_id) <= SHORT
                    and event.user_id != DEFAULT_USER
                    and 0 < len(event.item_id) <= SHORT
                    and EARLIEST_MS <= time_ms <= latest_ms
                    and (event.event_id is None or len(event.event_id) <= SHORT)
                    and (event.event_type is None or len(event.event_type) <= SHORT)
                ):
                    good.append((event, time_ms, record.timestamp, source))
                    continue
            except TypeError:  # a whole number has no length
                pass
            as_text(event)
            problem = event_problem(event, time_ms, now_ms, self._names.__getitem__)
            if problem:
                rejects.append(Reject(record, *problem))
            else:
                good.append((event, time_ms, record.timestamp, source))

    def _read_again(
        self, parse: Parse, record: Record, value: bytes, error: Exception
    ) -> tuple[Any, int] | Problem:
        """Read a record that didn't parse as what it may be: JSON behind a schema registry's frame."""
        time_field = self._names["timestamp_ms"]
        framed = unframed(value)
        if framed is None or not is_object(framed.payload):
            return malformed_problem(record, value, error, time_field)
        try:
            event = parse(framed.payload.decode())
            time_ms = record.timestamp if event.timestamp_ms is None else self._to_ms(event.timestamp_ms)
            if self._user_is_key:
                event.user_id = key_text(record.key)
        except (msgspec.MsgspecError, ValueError, RecursionError) as inner:
            return malformed_problem(record, framed.payload, inner, time_field)
        return event, time_ms

    def _columns(self, polled: Polled, good: Sequence[tuple[Any, int, int, int]], now_ms: int) -> Events:
        default_types = [self._default_types.get(span.topic, "click") for span in polled.spans]
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

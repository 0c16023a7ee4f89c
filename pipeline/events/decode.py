"""From bytes to columns: every record of a poll becomes events or a reject, or is ignored, in one pass, and
none can stop it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Events, Polled, RawBatch, Record, Reject
from pipeline.events.careful import MALFORMED, TO_MS, CarefulReader
from pipeline.events.checks import AHEAD_MS, EARLIEST_MS, MAX_DEPTH, SHORT, too_deep, unreadable
from pipeline.events.fields import field_choices, key_text
from pipeline.events.framing import payload_of
from pipeline.events.parse import Fan, as_text, quick_parser
from pipeline.events.problems import event_problem, malformed_problem, unread_problem
from pipeline.events.records import DEFAULT_USER
from pipeline.events.ways import plan_of
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

    Nearly every record is read by a quick parser; what that is not right about, by a careful one.
    """

    def __init__(self, settings: EventsConfig, topics: TopicsConfig, record_bytes: int) -> None:
        plan = plan_of(field_choices(settings))
        self._names = {field: ways[0].name if ways else field for field, ways in plan.ways.items()}
        self._record_bytes = record_bytes
        self._default_types = topics.event_topics()
        self._ignored = settings.ignored()
        self._to_ms = TO_MS[settings.time_unit]
        self._whole_is_ms = settings.time_unit == "ms"
        self._user_is_key = self._names["user_id"] == KEY_FIELD
        self._parse = quick_parser(plan, settings)
        self._fan = Fan(plan) if plan.array else None
        self._plain = plan.plain() and not self._ignored
        self._careful = CarefulReader(plan, settings)

    def decode(self, seq: int, now_ms: int, polled: Polled) -> RawBatch:
        """Turn what was polled into columns of good events beside the rejects, each in the records' order.

        `now_ms` is the wall-clock time that times are judged by. No record whatever raises.
        """
        read, record_B = Read([], [], Counter()), None
        if self._fan or self._ignored:
            record_B = self._read_any(polled, now_ms, read)
        else:
            self._read_single(polled, now_ms, read)
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
        for place, record in enumerate(polled.records if self._fan else ()):
            events += self._careful.count(record, self._default_type(record.topic))
            if events > max_events:
                return max(1, place)
        return len(polled.records)

    def _default_type(self, topic: str) -> str:
        return self._default_types.get(topic, "click")

    def _leave_out(self, record: Record, value: bytes | None, read: Read) -> None:
        """Ignore a record without a value; reject one that is not to be parsed.

        A record that stands for a whole batch that can't be read has no value either.
        """
        if value is None and (problem := unreadable(record)):
            read.rejects.append(Reject(record, *problem))
        elif value is None:
            read.ignored[TOMBSTONE] += 1
        else:
            read.rejects.append(Reject(record, *unread_problem(record, value, self._record_bytes)))

    def _read_single(self, polled: Polled, now_ms: int, read: Read) -> None:
        """Read records that are one event each."""
        longest, parse, to_ms, whole_is_ms = self._record_bytes, self._parse, self._to_ms, self._whole_is_ms
        user_is_key = self._user_is_key
        latest_ms = now_ms + AHEAD_MS
        good = read.good
        for record, source in zip(polled.records, polled.order_R.tolist(), strict=True):
            value = record.value
            if value is None or len(value) > longest or (len(value) > 2 * MAX_DEPTH and too_deep(value)):
                self._leave_out(record, value, read)
                continue
            # Nearly every event passes here; only one that doesn't is looked at field by field.
            try:
                event = parse(value.decode())  # all of it must be UTF-8; the parser skips over unknown fields
                time_ms = event.timestamp_ms
                if time_ms is None:
                    time_ms = record.timestamp
                elif time_ms.__class__ is not int or not whole_is_ms:
                    time_ms = to_ms(time_ms)
                if user_is_key:
                    event.user_id = key_text(record.key)
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
            except (*MALFORMED, TypeError):  # a whole number has no length
                pass
            self._read_again(record, value, source, now_ms, read)

    def _read_any(self, polled: Polled, now_ms: int, read: Read) -> npt.NDArray[np.int32]:
        """Read records that may be several events each, or none; return each event's place in the records."""
        places: list[int] = []
        for place, (record, source) in enumerate(zip(polled.records, polled.order_R.tolist(), strict=True)):
            value = record.value
            if value is None or len(value) > self._record_bytes or too_deep(value):
                self._leave_out(record, value, read)
                continue
            if not self._read_quickly(record, value, source, now_ms, read):
                self._read_carefully(record, value, source, now_ms, read)
            places += [place] * (len(read.good) - len(places))
        return np.array(places, np.int32)

    def _read_again(self, record: Record, value: bytes, source: int, now_ms: int, read: Read) -> None:
        """Read a record that is one event or none, and that didn't pass at first sight."""
        if not self._plain:
            if not self._read_quickly(record, value, source, now_ms, read):
                self._read_carefully(record, value, source, now_ms, read)
            return
        payload = payload_of(value)
        try:
            event = self._parse(payload.decode())
            time_ms = record.timestamp if event.timestamp_ms is None else self._to_ms(event.timestamp_ms)
            if self._user_is_key:
                event.user_id = key_text(record.key)
        except MALFORMED as error:
            problem = malformed_problem(record, payload, error, self._names["timestamp_ms"])
            read.rejects.append(Reject(record, *problem))
            return
        as_text(event)
        wrong = event_problem(event, time_ms, now_ms, self._names.__getitem__)
        if wrong:
            read.rejects.append(Reject(record, *wrong))
        else:
            read.good.append((event, time_ms, record.timestamp, source))

    def _read_quickly(self, record: Record, value: bytes, source: int, now_ms: int, read: Read) -> bool:
        """Read a record that holds what is expected, behind a schema registry's frame or not; return False,
        with nothing read, for all others."""
        try:
            event = self._parse(payload_of(value).decode())
            kind = event.event_type
            kind = str(kind) if kind.__class__ is int else kind or self._default_type(record.topic)
            if kind in self._ignored:
                read.ignored[kind] += 1
                return True
            time = event.timestamp_ms
            time_ms = record.timestamp if time is None else self._to_ms(time)
            if self._user_is_key:
                event.user_id = key_text(record.key)
            elements = self._fan.elements(event) if self._fan else ()
            events = self._fan.events(event, elements) if self._fan and elements else [event]
            latest_ms = now_ms + AHEAD_MS
            if not all(_passes(each, time_ms, latest_ms) for each in events):
                return False
        except (*MALFORMED, TypeError):
            return False
        for number, each in enumerate(events if elements else ()):
            if each.event_id and not each.own_id:
                each.event_id += f"#{number}"
        read.good.extend((each, time_ms, record.timestamp, source) for each in events)
        return True

    def _read_carefully(self, record: Record, value: bytes, source: int, now_ms: int, read: Read) -> None:
        """Read any record that can be parsed at all."""
        found = self._careful.read(record, value, self._default_type(record.topic), now_ms)
        read.good.extend((event, time_ms, record.timestamp, source) for event, time_ms in found.events)
        read.ignored.update(found.ignored)
        if found.problem:
            read.rejects.append(Reject(record, *found.problem))

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


def _passes(event: Any, time_ms: int, latest_ms: int) -> bool:
    """Return whether an event is good at first sight, once its whole numbers are text.

    Raise TypeError for one that lacks an id.
    """
    as_text(event)
    return (
        0 < len(event.user_id) <= SHORT
        and event.user_id != DEFAULT_USER
        and 0 < len(event.item_id) <= SHORT
        and EARLIEST_MS <= time_ms <= latest_ms
        and (event.event_id is None or len(event.event_id) <= SHORT)
        and (event.event_type is None or len(event.event_type) <= SHORT)
    )

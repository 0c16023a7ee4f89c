"""Send recorded events to an events topic: with their recorded gaps, at a fixed rate, or without a limit.

Records are stamped when they are sent, so that latency can be measured; the event time is in its own field.
Keys are user ids, so a user's events stay in one partition and in order.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from pipeline.errors import BrokerLost, PublishFailed
from pipeline.events.batch import Events
from pipeline.events.fields import is_path, put_at
from pipeline.settings import KEY_FIELD
from producers.kafka.records import key_hash
from producers.rate_limiter import NO_LIMIT, Pace, paced, pause

CACHED_KEYS = 1 << 17  # hashing a key costs as much as sending its record
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
IN_UNIT: dict[str, Callable[[int], Any]] = {  # convert a time in ms to `events.time_unit`
    "ms": int,
    "auto": int,
    "s": lambda time_ms: time_ms / 1000,
    "iso": lambda time_ms: (EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds"),
}


class WireEvent(NamedTuple):
    """An event ready to be sent."""

    time_ms: int  # event time
    key: bytes
    value: bytes


@dataclass(slots=True)
class Sending:
    """Progress of a replay."""

    sent: int = 0
    seconds: float = 0.0


def wire_events(chunks: Iterable[Events], names: Mapping[str, str], time_unit: str) -> Iterator[WireEvent]:
    """Yield events as JSON that `Decoder` reads: names from `field_names`, times in `time_unit`."""
    encode = msgspec.json.Encoder().encode
    in_unit = IN_UNIT[time_unit]
    user, item, event_type_name = names["user_id"], names["item_id"], names["event_type"]
    timestamp, amount = names["timestamp_ms"], names["value"]
    paths = any(is_path(name) or name == KEY_FIELD for name in names.values())
    for events in chunks:
        times, values = events.time_ms_B.tolist(), events.value_B.tolist()
        rows = zip(events.user_ids, events.item_ids, events.types, times, values, strict=True)
        for user_id, item_id, event_type, time_ms, value in rows:
            fields = {user: user_id, item: item_id, event_type_name: event_type, timestamp: in_unit(time_ms)}
            if not math.isnan(value):
                fields[amount] = value
            yield WireEvent(time_ms, user_id.encode(), encode(nested(fields) if paths else fields))


def nested(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a record with each value at the end of its path.

    >>> nested({"$key": "ann", "items[].sku": "tea", "at": 7})
    {'items': [{'sku': 'tea'}], 'at': 7}
    """
    record: dict[str, object] = {}
    for name, value in fields.items():
        put_at(record, name, value)
    return record


def send_events(
    producer: KafkaProducer,
    topic: str,
    events: Iterable[WireEvent],
    sending: Sending,
    pace: Pace = NO_LIMIT,
    wait: Callable[[float], bool] = pause,
    flush_s: float = 60.0,
) -> None:
    """Send events and wait until the broker has all of them; `sending` counts them on the way.

    `wait` is called between events and ends the sending by returning True; events that were sent by then are
    waited for.

    Raise `BrokerLost` when the broker doesn't answer for `flush_s`, `PublishFailed` when it rejects an event.
    """
    count = len(producer.partitions_for(topic))
    hashed = lru_cache(CACHED_KEYS)(key_hash)
    start_s = time.monotonic()
    failed: list[BaseException] = []
    try:
        for event in paced(events, pace, wait):
            partition = hashed(event.key) % count
            future = producer.send(topic, key=event.key, value=event.value, partition=partition)
            future.add_errback(failed.append)
            sending.sent += 1
            if failed:
                break
        producer.flush(timeout=flush_s)
    except KafkaError as error:
        failed.append(error)
    sending.seconds = time.monotonic() - start_s
    if failed:
        raise _failure(failed[0], sending.sent, topic)


def _failure(error: BaseException, sent: int, topic: str) -> BrokerLost | PublishFailed:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, KafkaTimeoutError):
        return BrokerLost(
            f"the broker stopped answering after about {sent} events to topic {topic!r}: {reason}; "
            "start it again and continue with --start"
        )
    return PublishFailed(
        f"topic {topic!r} rejected an event after about {sent}: {reason}; see the broker's log"
    )

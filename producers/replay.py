"""Send recorded events into an events topic: in their own rhythm, at a fixed rate, or as fast as the broker
takes them.

Records are stamped when they are sent, so that latency can be measured; when the event happened is in the
field for its time. Keys are user ids, so a user's events stay in one partition, in their order.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec
from kafka.errors import KafkaError, KafkaTimeoutError

from pipeline.errors import BrokerLost, PublishFailed
from pipeline.events.batch import Events
from pipeline.events.fields import is_path, put_at
from pipeline.settings import KEY_FIELD, KafkaConfig, TopicsConfig
from producers.kafka.outgoing import key_hash
from producers.kafka.topics import create_topics, missing_topics
from producers.rate_limiter import paced, pause

LOOK_EVERY = 1_000  # events sent without a pause before `wait` is asked again
LOOK_S = 0.1  # a longer gap is waited for in slices, so that an interruption is noticed
KEYS_KEPT = 1 << 17  # keys whose hash is remembered: hashing one costs as much as sending it

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class WireEvent(NamedTuple):
    """One event, ready to be sent."""

    time_ms: int  # when it happened
    key: bytes
    value: bytes


class Delivery(Protocol):
    """What a producer promises for one record."""

    def add_errback(self, call: Callable[[BaseException], object]) -> object: ...


class Producer(Protocol):
    """The part of a Kafka producer that sending needs."""

    def send(self, topic: str, *, key: bytes, value: bytes, partition: int) -> Delivery: ...
    def partitions_for(self, topic: str) -> set[int]: ...
    def flush(self, timeout: float | None = None) -> object: ...


@dataclass(slots=True)
class Sending:
    """How a replay is going."""

    sent: int = 0
    seconds: float = 0.0
    failed: list[BaseException] = field(default_factory=list)


def wire_events(chunks: Iterable[Events], names: Mapping[str, str], time_unit: str) -> Iterator[WireEvent]:
    """Yield events as JSON, as `Decoder` reads it: names from `field_names`, times in `time_unit`."""
    encode = msgspec.json.Encoder().encode
    in_unit = IN_UNIT[time_unit]
    user, item, kind = names["user_id"], names["item_id"], names["event_type"]
    when, amount = names["timestamp_ms"], names["value"]
    deep = any(is_path(name) or name == KEY_FIELD for name in names.values())
    for events in chunks:
        times, values = events.time_ms_B.tolist(), events.value_B.tolist()
        rows = zip(events.user_ids, events.item_ids, events.types, times, values, strict=True)
        for user_id, item_id, event_type, time_ms, value in rows:
            fields = {user: user_id, item: item_id, kind: event_type, when: in_unit(time_ms)}
            if not math.isnan(value):
                fields[amount] = value
            yield WireEvent(time_ms, user_id.encode(), encode(nested(fields) if deep else fields))


def nested(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a record with each value at the end of its path.

    >>> nested({"$key": "ann", "items[].sku": "tea", "at": 7})
    {'items': [{'sku': 'tea'}], 'at': 7}
    """
    record: dict[str, object] = {}
    for name, value in fields.items():
        put_at(record, name, value)
    return record


def as_recorded(
    events: Iterable[WireEvent],
    speed: float,
    wait: Callable[[float], bool] = pause,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[WireEvent]:
    """Yield events with the gaps that lay between them, divided by `speed`, counted from the first.

    What is late is made up for at once, and an event with a time before that of an earlier one goes out
    behind it without a gap. `wait(seconds)` is called in gaps and now and then between; True from it ends
    the stream.
    """
    start_s, first_ms = now_s(), 0
    for out, event in enumerate(events):
        if not out:
            first_ms = event.time_ms
        due_s = start_s + (event.time_ms - first_ms) / 1000 / speed
        if out % LOOK_EVERY == 0 and wait(0.0):
            return
        while (early_s := due_s - now_s()) > 0:
            if wait(min(early_s, LOOK_S)):
                return
        yield event


def send_events(
    producer: Producer,
    topic: str,
    events: Iterable[WireEvent],
    sending: Sending,
    *,
    rate: float = 0.0,
    speed: float = 0.0,
    wait: Callable[[float], bool] = pause,
    flush_s: float = 60.0,
) -> None:
    """Send events and wait until the broker has them all; how many is counted in `sending` as they go out.

    `speed` keeps the recorded gaps, divided by it; else `rate` is events a second; with neither they go as
    fast as the broker takes them. True from `wait`, which is called between events, ends the sending early:
    what is out is still waited for.

    Raise `BrokerLost` when the broker doesn't answer for `flush_s`, `PublishFailed` when it refuses an event.
    """
    count = len(producer.partitions_for(topic))
    hashed = lru_cache(KEYS_KEPT)(key_hash)
    start_s = time.monotonic()
    stream = as_recorded(events, speed, wait) if speed else paced(events, rate, wait)
    failed = sending.failed
    try:
        for event in stream:
            producer.send(
                topic, key=event.key, value=event.value, partition=hashed(event.key) % count
            ).add_errback(failed.append)
            sending.sent += 1
            if failed:
                break
        producer.flush(timeout=flush_s)
    except KafkaError as error:
        failed.append(error)
    sending.seconds = time.monotonic() - start_s
    if failed:
        raise _failure(sending, topic)


def ensure_topic(kafka: KafkaConfig, topics: TopicsConfig, topic: str) -> list[str]:
    """Create the configured topics if `topic` doesn't exist; return those that were created.

    Raise `UsageError` when no broker answers, or it refuses.
    """
    return create_topics(kafka, topics) if missing_topics(kafka, [topic]) else []


def _failure(sending: Sending, topic: str) -> BrokerLost | PublishFailed:
    error = sending.failed[0]
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, KafkaTimeoutError):
        return BrokerLost(
            f"the broker stopped answering after about {sending.sent} events to topic {topic!r}: {said}; "
            "start it again and go on with --start"
        )
    return PublishFailed(
        f"topic {topic!r} did not take an event, after about {sending.sent}: {said}; look at the broker's log"
    )


def _iso(time_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds")


# a time in ms as events carry it, by `events.time_unit`
IN_UNIT: dict[str, Callable[[int], Any]] = {
    "ms": int,
    "auto": int,
    "s": lambda time_ms: time_ms / 1000,
    "iso": _iso,
}

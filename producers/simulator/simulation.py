"""Simulate a stream of users as ordered, and send it to an events topic.

Records are stamped when they are sent, so that latency can be measured; the event time in `timestamp_ms` runs
faster than the wall clock and ends about now.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer

from consumers.kafka.client import connect
from pipeline.errors import UsageError
from pipeline.events.fields import field_names
from pipeline.events.items import OUR_NAMES, item_names
from pipeline.settings import KEY_FIELD, EventsConfig, ItemsConfig, KafkaConfig, TopicsConfig, names_of
from producers.kafka.client import producer_options
from producers.rate_limiter import Pace
from producers.replay import IN_UNIT, Sending, WireEvent, nested, send_events
from producers.simulator.closed_loop import ClosedLoop, Lists
from producers.simulator.events import DEFAULT_CONFIG, Columns, SimulatedEvent, SimulatorConfig, item_name
from producers.simulator.events import wire_events as simulated_events
from producers.simulator.newest_lists import NewestLists
from producers.simulator.plan import NO_PLAN, Plan
from producers.simulator.seasonality import DAY_MS
from producers.simulator.truth import Truth
from producers.simulator.uplift import Uplift
from producers.simulator.users import Sessions, simulate_users, span_ms

CLOSE_S = 1.0  # after the last flush


@dataclass(frozen=True, slots=True)
class Order:
    """What to simulate."""

    events: int
    seed: int
    rate: float = 0.0
    """Mean events a second; 0: as fast as the broker takes them."""
    plan: Plan = NO_PLAN
    closed_loop: bool = False
    withdraw: bool = False
    """Publish retired items to the items topic as unavailable."""
    config: SimulatorConfig = DEFAULT_CONFIG

    def pace(self) -> Pace:
        """Return the rate, or the speed of that mean rate when the plan varies it."""
        uneven = self.plan.season is not None or any(burst.kind == "rate" for burst in self.plan.bursts)
        if not (uneven and self.rate):
            return Pace(self.rate)
        return Pace(speed=self.rate * span_ms(self.events, self.config, self.plan) / self.events / 1000)


class Simulation:
    """One stream: its events, and so far its `truth` and `uplift`.

    The event time ends at about `end_ms`; with a season it starts at midnight, UTC.
    """

    def __init__(
        self, order: Order, end_ms: int, encode: Callable[[SimulatedEvent], bytes] = msgspec.json.encode
    ) -> None:
        self.order, self.truth, self._encode = order, Truth(), encode
        self.uplift = Uplift(order.config.users, order.events)
        start_ms = end_ms - span_ms(order.events, order.config, order.plan)
        self.start_ms = start_ms - start_ms % DAY_MS if order.plan.season else start_ms

    def columns(self, chunk: int = 8_192) -> Iterator[Columns]:
        """Yield the events of users who see no rankings, in chunks."""
        order = self.order
        return simulate_users(order.events, order.seed, order.plan, order.config, chunk, self.truth)

    def closed_loop(self, lists: Lists) -> Iterator[Columns]:
        """Yield the events of users who see rankings; they are drawn when they are requested."""
        order = self.order
        sessions = Sessions(order.config, order.events, order.seed, order.plan, self.truth)
        return ClosedLoop(sessions, lists, self.uplift, order.seed, self.start_ms).rounds(order.events)

    def wire(
        self, chunks: Iterator[Columns], withdraw: Callable[[str], None] | None = None
    ) -> Iterator[WireEvent]:
        """Yield events ready to be sent; `withdraw` is called with each item that has retired."""
        retired = 0
        for columns in chunks:
            if withdraw is not None:
                for item, _, _ in self.truth.retired_items[retired:]:
                    withdraw(item_name(item))
                retired = len(self.truth.retired_items)
            for event in simulated_events(columns, self.start_ms):
                yield WireEvent(event.timestamp_ms, event.user_id.encode(), self._encode(event))

    def write_truth(self, path: Path, sent: int) -> None:
        """Write the ground truth to a JSON file. Raise `UsageError` when the file can't be written.

        An interrupted stream may be simulated further than it was `sent`.
        """
        about = {"events": self.order.events, "sent": sent, "seed": self.order.seed}
        try:
            path.write_text(json.dumps(about | self.truth.as_json(self.start_ms), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise UsageError(f"--truth {path}: {error.strerror or error}") from error


class Sender:
    """Send a simulation to the first events topic of the configuration."""

    def __init__(
        self,
        order: Order,
        kafka: KafkaConfig,
        topics: TopicsConfig,
        events: EventsConfig,
        items: ItemsConfig = OUR_NAMES,
    ) -> None:
        self._kafka, self._topics = kafka, topics
        self._items = items
        self.topic = next(iter(topics.event_topics()))
        self.sending = Sending()
        self.simulation = Simulation(order, time.time_ns() // 1_000_000, encoder(events))

    def send(self, wait: Callable[[float], bool]) -> None:
        """Send everything, or until `wait`, which is called between events, returns True.

        Raise `UsageError` when no broker answers or a topic is missing; `BrokerLost` and `PublishFailed` as
        `send_events` does.
        """
        order, simulation = self.simulation.order, self.simulation
        with ExitStack() as stack:
            producer = connect(KafkaProducer, producer_options(self._kafka))
            stack.callback(producer.close, timeout=CLOSE_S)
            if order.closed_loop:
                lists = stack.enter_context(NewestLists(self._kafka, self._topics.recommendations))
                chunks = simulation.closed_loop(lists)
            else:
                # one round at a time when items are withdrawn, so that they are withdrawn in time
                chunks = simulation.columns(1) if order.withdraw else simulation.columns()

            def withdraw(item_id: str) -> None:
                value = withdrawal(item_id, self._items)
                producer.send(self._topics.items, key=item_id.encode(), value=value)

            events = simulation.wire(chunks, withdraw if order.withdraw else None)
            flush_s = self._kafka.broker_timeout_s
            send_events(producer, self.topic, events, self.sending, order.pace(), wait, flush_s)

    def progress(self) -> dict[str, Any]:
        """Return how many events are sent, and the counts and rates of each arm so far."""
        return {"sent": self.sending.sent, **self.simulation.uplift.summary()}

    def figures(self) -> dict[str, Any]:
        """Return how many events were sent in how many seconds, and the uplift of a closed loop."""
        figures: dict[str, Any] = {"sent": self.sending.sent, "seconds": round(self.sending.seconds, 3)}
        if self.simulation.order.closed_loop:
            figures["uplift"] = self.simulation.uplift.figures()
        return figures


def encoder(settings: EventsConfig) -> Callable[[SimulatedEvent], bytes]:
    """Return the encoder of events with the field names and the unit of time of the configuration.

    >>> event = SimulatedEvent("shopper-1", "tea-1", "buy", 1_500, "s3")
    >>> encoder(EventsConfig(fields={"item_id": "product.sku", "user_id": "$key"}, time_unit="s"))(event)
    b'{"product":{"sku":"tea-1"},"event_type":"buy","timestamp_ms":1.5,"session_id":"s3"}'
    """
    encode = msgspec.json.Encoder().encode
    if not settings.fields and settings.time_unit in ("ms", "auto"):
        return encode
    in_unit = IN_UNIT[settings.time_unit]
    session_id = names_of(settings.fields.get("session_id", "session_id"))[0]
    names = field_names(settings) | {"session_id": session_id}

    def encode_named(event: SimulatedEvent) -> bytes:
        values = msgspec.structs.asdict(event) | {"timestamp_ms": in_unit(event.timestamp_ms)}
        return encode(nested({names.get(field, field): value for field, value in values.items()}))

    return encode_named


def withdrawal(item_id: str, config: ItemsConfig) -> bytes:
    """Return the value of a record of the items topic that withdraws the item of its key.

    >>> withdrawal("tea-1", ItemsConfig(fields={"item_id": ["sku", "id"]}))
    b'{"sku":"tea-1","available":false}'
    """
    names = item_names(config)
    record = {names["item_id"][0]: item_id, names["available"][0]: False}
    record.pop(KEY_FIELD, None)
    return msgspec.json.encode(record)


def until_stdin_closes(seconds: float) -> bool:
    """Wait; return True once the parent process has closed standard input, or was killed."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)

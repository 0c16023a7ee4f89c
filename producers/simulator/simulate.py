"""Send made-up shoppers into an events topic, evenly paced, from a process of its own.

    python -m producers.simulator.simulate --bootstrap-servers 127.0.0.1:9092 --events 60000 --rate 2000

Records are stamped when they are sent, so that latency can be measured; the shoppers' own time, which runs
faster, is in `timestamp_ms` and ends about now. stdout is JSON lines; the last one has `sent` and `seconds`.
With `--closed-loop` shoppers look at what the recommendations topic says: then a line
{"progress": {"sent", "arms", ...}} comes about twice a second, and the last line has `uplift` as well.
"""

import argparse
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
from pipeline.errors import AfreshError, UsageError
from pipeline.events.fields import field_names, put_at
from pipeline.events.items import OUR_NAMES, item_names
from pipeline.settings import KEY_FIELD, EventsConfig, ItemsConfig, KafkaConfig, TopicsConfig
from pipeline.thread_limits import limit_threads
from producers.kafka.client import producer_options
from producers.rate_limiter import pause
from producers.replay import IN_UNIT, Sending, WireEvent, send_events
from producers.simulator.closed_loop import ClosedLoop, Lists
from producers.simulator.file import check_folder
from producers.simulator.market import MARKET, busy_market
from producers.simulator.newest_lists import NewestLists
from producers.simulator.options import (
    add_loop_options,
    add_plan_options,
    add_stream_options,
    plan_of,
    rate_of,
)
from producers.simulator.plan import NO_PLAN, Change, Plan
from producers.simulator.seasonality import DAY_HOURS, HOUR_MS
from producers.simulator.uplift import Uplift
from producers.simulator.users import (
    Columns,
    Market,
    Shop,
    ShopEvent,
    Truth,
    item_name,
    shoppers,
    span_ms,
    user_name,
    wire_events,
)

TELL_S = 0.5
CLOSE_S = 1.0  # all is flushed by then, or lost


def withdrawal(item_id: str, config: ItemsConfig) -> bytes:
    """Return the value of a record that withdraws an item, as `item_news` reads it under its key.

    >>> withdrawal("tea-1", ItemsConfig(fields={"item_id": ["sku", "id"]}))
    b'{"sku":"tea-1","available":false}'
    """
    names = item_names(config)
    record = {names["item_id"][0]: item_id, names["available"][0]: False}
    record.pop(KEY_FIELD, None)
    return msgspec.json.encode(record)


def encoded(
    events: int, seed: int, change_at: int | None, end_ms: int, market: Market | None = None
) -> Iterator[WireEvent]:
    """Yield shoppers' events ready to be sent; their own time ends at about `end_ms`."""
    plan = NO_PLAN if change_at is None else Plan((Change("sudden", change_at),))
    simulation = Simulation(Order(events, seed, plan=plan, market=market or MARKET), end_ms)
    return simulation.wire(simulation.columns())


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of the shoppers."""

    events: int
    seed: int
    rate: float = 0.0
    """Events a second; 0: as fast as the broker takes them. The mean, where a plan makes them burst."""
    plan: Plan = NO_PLAN
    closed_loop: bool = False
    withdraw: bool = False
    """Tell the items topic of items that are no longer to be had."""
    market: Market = MARKET


class Simulation:
    """One stream of shoppers: its events, and what is known of it so far, `truth` and `uplift`.

    Its own time ends at about `end_ms`; with a season it begins at midnight, UTC. `form` encodes an event.
    """

    def __init__(
        self, order: Order, end_ms: int, form: Callable[[ShopEvent], bytes] = msgspec.json.encode
    ) -> None:
        self.order, self.truth, self._form = order, Truth(), form
        self.uplift = Uplift(order.market.users, order.events)
        start_ms = end_ms - span_ms(order.events, order.market, order.plan)
        day_ms = DAY_HOURS * HOUR_MS
        self.start_ms = start_ms - start_ms % day_ms if order.plan.season else start_ms

    def columns(self, chunk: int = 8_192) -> Iterator[Columns]:
        """Yield the events of shoppers who see no lists, in chunks."""
        order = self.order
        return shoppers(
            order.events, order.seed, market=order.market, chunk=chunk, plan=order.plan, truth=self.truth
        )

    def visited(self, lists: Lists) -> Iterator[Columns]:
        """Yield the events of shoppers who see lists; those of a moment, when they are asked for."""
        order = self.order
        shop = Shop(order.market, order.events, order.seed, order.plan, self.truth)
        return ClosedLoop(shop, lists, self.uplift, order.seed, self.start_ms).rounds(order.events)

    def wire(
        self, chunks: Iterator[Columns], withdrawn: Callable[[str], None] | None = None
    ) -> Iterator[WireEvent]:
        """Yield events ready to be sent; `withdrawn` is called with each item that is no longer to be had."""
        told = 0
        for columns in chunks:
            if withdrawn is not None:
                for item, _, _ in self.truth.retired_items[told:]:
                    withdrawn(item_name(item))
                told = len(self.truth.retired_items)
            for event in wire_events(columns, self.start_ms):
                yield WireEvent(event.timestamp_ms, event.user_id.encode(), self._form(event))

    def truth_json(self, sent: int) -> dict[str, Any]:
        """Return what happened, as JSON values. A stream that was ended early may have been made further than
        it was sent."""
        about = {"events": self.order.events, "sent": sent, "seed": self.order.seed}
        return about | self.truth.as_json(self.start_ms, user_name, item_name)


class Sender:
    """Send a simulation into the first events topic of the configuration."""

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
        self.simulation = Simulation(order, time.time_ns() // 1_000_000, wire_form(events))

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
                chunks = simulation.visited(lists)
            else:
                # a round at a time where something is told at the moment at which it happens
                chunks = simulation.columns(1) if order.withdraw else simulation.columns()

            def withdrawn(item_id: str) -> None:
                value = withdrawal(item_id, self._items)
                producer.send(self._topics.items, key=item_id.encode(), value=value)

            events = simulation.wire(chunks, withdrawn if order.withdraw else None)
            send_events(
                producer, self.topic, events, self.sending, **_pace(order), wait=wait,
                flush_s=self._kafka.broker_timeout_s,
            )  # fmt: skip

    def progress(self) -> dict[str, Any]:
        """Return how many are sent, and what came of each arm so far."""
        return {"sent": self.sending.sent, **self.simulation.uplift.so_far()}

    def figures(self) -> dict[str, Any]:
        """Return what came of it."""
        figures: dict[str, Any] = {"sent": self.sending.sent, "seconds": round(self.sending.seconds, 3)}
        if self.simulation.order.closed_loop:
            figures["uplift"] = self.simulation.uplift.figures()
        return figures


def wire_form(settings: EventsConfig) -> Callable[[ShopEvent], bytes]:
    """Return how an event is encoded: names and unit of time as the configuration reads them.

    >>> event = ShopEvent("shopper-1", "tea-1", "buy", 1_500, "s3")
    >>> wire_form(EventsConfig(fields={"item_id": "product.sku", "user_id": "$key"}, time_unit="s"))(event)
    b'{"product":{"sku":"tea-1"},"event_type":"buy","timestamp_ms":1.5,"session_id":"s3"}'
    """
    encode = msgspec.json.Encoder().encode
    if not settings.fields and settings.time_unit in ("ms", "auto"):
        return encode

    in_unit, names = IN_UNIT[settings.time_unit], field_names(settings)

    def form(event: ShopEvent) -> bytes:
        record: dict[str, Any] = {}
        for field, value in msgspec.structs.asdict(event).items():
            put_at(record, names[field], in_unit(value) if field == "timestamp_ms" else value)
        return encode(record)

    return form


def until_stdin_closes(seconds: float) -> bool:
    """Wait; say True once the other end of standard input is gone.

    A parent that holds it open for as long as it lives can't leave this process behind, however it dies.
    """
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def order_of(args: argparse.Namespace) -> Order:
    """Return what the options ask for. Raise `UsageError` for a plan that can't be."""
    rate = rate_of(args)
    market = busy_market(rate) if args.closed_loop else MARKET
    return Order(args.events, args.seed, rate, plan_of(args), args.closed_loop, args.withdraw, market)


def write_truth(path: Path, simulation: Simulation, sent: int) -> None:
    """Write what happened to a JSON file; `sent` events went out. Raise `UsageError` if the disk refuses."""
    try:
        path.write_text(json.dumps(simulation.truth_json(sent), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"--truth {path}: {error.strerror or error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = _parser().parse_args(arguments)
    limit_threads(1)
    wait = until_stdin_closes if args.until_stdin_closes else pause
    try:
        if args.truth is not None:
            check_folder("--truth", args.truth)
        if args.change_at is not None:
            args.change.append(Change("sudden", args.change_at))
        order = order_of(args)
        topics = TopicsConfig([args.topic], items=args.items, recommendations=args.recommendations)
        # the demo starts this process when its broker is there
        kafka = KafkaConfig(bootstrap_servers=args.bootstrap_servers, start_timeout_s=3.0)
        sender = Sender(order, kafka, topics, EventsConfig())
        sender.send(_telling(sender, wait) if args.closed_loop else wait)
        if args.truth is not None:
            write_truth(args.truth, sender.simulation, sender.sending.sent)
    except AfreshError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(sender.figures()))
    return 0


def _telling(sender: Sender, wait: Callable[[float], bool]) -> Callable[[float], bool]:
    """Make a `wait` that prints the progress now and then."""
    due_s = time.monotonic() + TELL_S

    def tell(seconds: float) -> bool:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + TELL_S
            print(json.dumps({"progress": sender.progress()}), flush=True)
        return wait(seconds)

    return tell


def _pace(order: Order) -> dict[str, float]:
    """Return the rate; where the plan makes events burst or rest, their own gaps at a speed of that mean."""
    uneven = order.plan.season is not None or any(burst.kind == "rate" for burst in order.plan.bursts)
    if not (uneven and order.rate):
        return {"rate": order.rate}
    return {"speed": order.rate * span_ms(order.events, order.market, order.plan) / order.events / 1000}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m producers.simulator.simulate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", default="events")
    parser.add_argument("--recommendations", default="recommendations", metavar="TOPIC")
    parser.add_argument("--items", default="items", metavar="TOPIC")
    add_stream_options(parser)
    parser.add_argument("--change-at", type=int, metavar="EVENT", help="short for --change sudden@EVENT")
    add_plan_options(parser)
    add_loop_options(parser)
    parser.add_argument("--truth", type=Path, metavar="PATH", help="file for what changed when")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input does")
    return parser


if __name__ == "__main__":
    sys.exit(main())

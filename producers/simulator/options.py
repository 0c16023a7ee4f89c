"""Command-line options of simulated users. Imports nothing heavy."""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from producers.simulator.plan import Plan, Season, parse_burst, parse_change

if TYPE_CHECKING:
    from producers.simulator.simulation import Order

EVENTS, RATE, CLOSED_LOOP_RATE = 60_000, 2_000.0, 400.0


def add_simulation_options(parser: argparse.ArgumentParser) -> None:
    """Declare how many events come, how fast, from which seed, and what happens."""
    parser.add_argument(
        "--events", type=whole(1), default=EVENTS, metavar="N", help=f"how many (default: {EVENTS})"
    )
    parser.add_argument(
        "--rate", type=events_a_second, metavar="R",
        help=f"events a second; 0: no limit (default: {RATE:.0f}; with --closed-loop {CLOSED_LOOP_RATE:.0f})",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="the same seed, the same users (default: 0)"
    )
    parser.add_argument(
        "--closed-loop", action="store_true",
        help="users look at rankings of the recommendations topic, at popular and at random items, and click "
        "by their preferences",
    )  # fmt: skip
    parser.add_argument(
        "--withdraw", action="store_true",
        help="publish items that --retire withdraws to the items topic as unavailable",
    )  # fmt: skip
    _add_plan_options(parser)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what happens; event numbers count from 0")
    group.add_argument(
        "--change", action="append", default=[], type=_parsed(parse_change), metavar="KIND@EVENT[..EVENT]",
        help="preferences change: sudden@30000, gradual@20000..40000, "
        "recurring@20000[..60000][,period=10000], local@30000[,share=0.25][,among=shoppers]; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--burst", action="append", default=[], type=_parsed(parse_burst), metavar="KIND@EVENT..EVENT",
        help="more events or interest for a while: rate@1000..2000[,factor=5], item@...[,share=0.3], "
        "category@...[,share=0.3]; may be repeated",
    )  # fmt: skip
    group.add_argument("--season", type=float, metavar="DAYS", help="length of the stream; nights are quiet")
    group.add_argument(
        "--noise-users", type=float, default=0.0, metavar="SHARE", help="of the users, click at random"
    )
    group.add_argument(
        "--retire", type=float, default=0.0, metavar="SHARE", help="of the items, withdrawn before the end"
    )


def order_of(args: argparse.Namespace) -> "Order":
    """Return the order of these options. Raise `UsageError` for an impossible plan."""
    from producers.simulator.events import DEFAULT_CONFIG, busy_config
    from producers.simulator.simulation import Order  # numpy and the Kafka client are not needed for help

    try:
        season = None if args.season is None else Season(args.season)
        plan = Plan(tuple(args.change), tuple(args.burst), season, args.noise_users, args.retire)
    except ValueError as error:
        raise UsageError(str(error)) from None
    default_rate = CLOSED_LOOP_RATE if args.closed_loop else RATE
    rate = default_rate if args.rate is None else float(args.rate)
    config = busy_config(rate) if args.closed_loop else DEFAULT_CONFIG
    return Order(args.events, args.seed, rate, plan, args.closed_loop, args.withdraw, config)


def whole(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {minimum} or more")
        return number

    return parse


def events_a_second(text: str) -> float:
    """Parse a rate; 0: no limit."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected events a second, or 0 for as fast as possible")
    return rate


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser with ValueErrors that argparse shows as they are."""

    def parse_option(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_option

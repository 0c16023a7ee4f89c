"""The options by which commands are told what happens among the made-up shoppers. Imports nothing heavy."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from pipeline.errors import UsageError
from producers.simulator.plan import Plan, Season, parse_burst, parse_change

EVENTS, RATE, CLOSED_RATE = 60_000, 2_000.0, 400.0


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Declare how many events come, how fast, and from which seed."""
    parser.add_argument(
        "--events", type=whole(1), default=EVENTS, metavar="N", help=f"how many (default: {EVENTS})"
    )
    parser.add_argument(
        "--rate", type=events_a_second, metavar="R",
        help=f"events a second; 0: no limit (default: {RATE:.0f}; with --closed-loop {CLOSED_RATE:.0f})",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="the same seed, the same shoppers (default: 0)"
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is to happen."""
    group = parser.add_argument_group("what happens; event numbers count from 0")
    group.add_argument(
        "--change", action="append", default=[], type=_parsed(parse_change), metavar="KIND@EVENT[..EVENT]",
        help="tastes change: sudden@30000, gradual@20000..40000, recurring@20000[..60000][,period=10000], "
        "local@30000[,share=0.25][,among=shoppers]; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--burst", action="append", default=[], type=_parsed(parse_burst), metavar="KIND@EVENT..EVENT",
        help="hot for a while: rate@1000..2000[,factor=5], item@...[,share=0.3], category@...[,share=0.3]; "
        "may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--season", type=float, metavar="DAYS", help="the stream lasts so many days, with quiet nights"
    )
    group.add_argument(
        "--noise-users", type=float, default=0.0, metavar="SHARE", help="of the users, click at random"
    )
    group.add_argument(
        "--retire", type=float, default=0.0, metavar="SHARE", help="of the items, withdrawn before the end"
    )


def add_loop_options(parser: argparse.ArgumentParser) -> None:
    """Declare what the shoppers and the shop have to do with other topics."""
    parser.add_argument(
        "--closed-loop", action="store_true",
        help="shoppers look at lists out of the recommendations topic, at popular and at random items, and "
        "click by their taste",
    )  # fmt: skip
    parser.add_argument(
        "--withdraw", action="store_true", help="tell the items topic of items that --retire withdraws"
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan of these options. Raise `UsageError` for one that can't be."""
    try:
        season = None if args.season is None else Season(args.season)
        return Plan(tuple(args.change), tuple(args.burst), season, args.noise_users, args.retire)
    except ValueError as error:
        raise UsageError(str(error)) from None


def rate_of(args: argparse.Namespace) -> float:
    """Return the events a second that were asked for, or the usual ones."""
    usual = CLOSED_RATE if args.closed_loop else RATE
    return usual if args.rate is None else float(args.rate)


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a parser whose ValueError argparse shows as it is."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def whole(least: int) -> Callable[[str], int]:
    """Make a reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return number

    return read


def events_a_second(text: str) -> float:
    """Read a rate, 0 for no limit."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected events a second, or 0 for as fast as possible")
    return rate

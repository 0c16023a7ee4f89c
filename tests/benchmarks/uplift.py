"""Measure the uplift: how often simulated users click and buy recommended, popular and random items.

    python tests/benchmarks/uplift.py [--events 60000] [--rate 400] [--set key=value ...]
    python tests/benchmarks/uplift.py --offline [--seeds 5]

Starts the embedded broker, `afresh run` in its default configuration and `afresh simulate --closed-loop` with
a sudden change half-way. Chance decides which of the three slates a user sees; clicks depend on the user's
preferences alone. --offline runs the service's `Recommender` in the loop instead, without a broker and so
without delay, once for each seed. Prints tables with 95 % intervals and one last JSON line; ends with 1 when
the interval of recommended minus popular is not above 0.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import parser_of, print_result
from harness.service import Site
from wired import simulated, step

from pipeline.events.records import DEFAULT_USER
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads
from producers.embedded_broker import EmbeddedBroker
from producers.simulator.closed_loop import Listed
from producers.simulator.events import BUSY_CONFIG, Columns
from producers.simulator.plan import Change, Plan
from producers.simulator.simulation import Order, Simulation
from producers.simulator.uplift import lines

READY_WAIT_S = 120
NOW_MS = 1_780_000_000_000


class LearningLists:
    """The rankings of a `Recommender` that learns every event before the next visit."""

    def __init__(self) -> None:
        self._recommender = Recommender(Settings())
        self._lists: dict[str, Listed] = {}

    def learn(self, columns: Columns, start_ms: int) -> None:
        """Learn events and keep the rankings."""
        for ranking in step(self._recommender, simulated(columns, start_ms), NOW_MS).rankings:
            items = [item.item_id for item in ranking.items]
            self._lists[ranking.user_id] = Listed(items, ranking.event_timestamp_ms)

    def refresh(self) -> None:
        """Do nothing: all rankings are there."""

    def of(self, user_id: str) -> Listed | None:
        """Return the newest ranking of a user, else the default one."""
        return self._lists.get(user_id) or self._lists.get(DEFAULT_USER)


def offline(events: int, seed: int, change_at: int) -> dict[str, Any]:
    """Return the uplift of one seed without delay."""
    plan = Plan((Change("sudden", change_at),))
    simulation = Simulation(Order(events, seed, plan=plan, closed_loop=True, config=BUSY_CONFIG), NOW_MS)
    lists = LearningLists()
    for columns in simulation.closed_loop(lists):
        lists.learn(columns, simulation.start_ms)
    return simulation.uplift.figures()


def live(args: argparse.Namespace, change_at: int) -> dict[str, Any]:
    """Return the uplift of the service, as `afresh simulate` measures it."""
    settings = dict(pair.split("=", 1) for pair in args.set)
    users = ["--events", args.events, "--rate", args.rate, "--seed", args.seed]
    users += ["--change", f"sudden@{change_at}", "--closed-loop", "--json"]
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker() as broker,
        Site(broker.bootstrap_servers, "uplift", Path(folder), settings=settings) as site,
    ):
        site.create_topics()
        service = site.run()
        service.until(lambda: service.state() == "ready", "ready", READY_WAIT_S)
        printed = site.call("simulate", *map(str, users), wait_s=READY_WAIT_S + 2 * args.events / args.rate)
        service.end()
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return figures["uplift"] | {"seconds": figures["seconds"]}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=400.0, help="events a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="configuration of the service")
    parser.add_argument("--offline", action="store_true", help="no broker, no delay")
    parser.add_argument("--seeds", type=int, default=5, help="offline: how many, from --seed on")
    options = parser.parse_args()
    limit_threads(1)
    change_at = options.events // 2
    runs = {}
    for seed in range(options.seed, options.seed + (options.seeds if options.offline else 1)):
        runs[seed] = offline(options.events, seed, change_at) if options.offline else live(options, change_at)
        print(f"seed {seed}", *lines(runs[seed]), "", sep="\n", flush=True)
    gaps = {seed: figures["recommended_minus_popular"] for seed, figures in runs.items()}
    above = all(low > 0 for gap in gaps.values() for _, low, _ in gap.values())
    for seed, gap in gaps.items():
        print(f"seed {seed}, recommended - popular, [value, low, high]: {gap}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    rate = None if options.offline else options.rate
    print_result(events=options.events, rate=rate, change_at=change_at, above_zero=above, runs=runs)
    return 0 if above else 1


if __name__ == "__main__":
    sys.exit(main())

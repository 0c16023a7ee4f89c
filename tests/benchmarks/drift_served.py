"""Alarms of the served model itself, over simulated users with and without a change of taste.

    python tests/benchmarks/drift_served.py [--seeds 4] [--batch 128]

Runs the service's own `Recommender` (default configuration) over 60,000 events a seed, once as they are and
once with all tastes changed at event 30,000. Prints each run's alarms and one JSON line at the end. drift.py
does the same with a small stand-in, over many more streams.
"""

import argparse
import json

from wired import as_columns

from pipeline.events.batch import RawBatch, Span
from pipeline.events.records import DriftAlarm
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads
from producers.simulator.events import wire_events
from producers.simulator.plan import NO_PLAN, Change, Plan
from producers.simulator.users import simulate_users

EVENTS, CHANGE_AT, WITHIN, START_MS = 60_000, 30_000, 3_000, 1_700_000_000_000


def alarms_of(seed: int, change_at: int | None, batch: int) -> list[DriftAlarm]:
    """Return the alarms over one stream."""
    recommender, alarms, start = Recommender(Settings()), [], 0
    plan = NO_PLAN if change_at is None else Plan((Change("sudden", change_at),))
    for columns in simulate_users(EVENTS, seed, plan, chunk=batch):
        wired = list(wire_events(columns, START_MS))
        size = len(wired)
        events = as_columns(wired)
        now_ms = START_MS + 10**12
        raw = RawBatch(recommender.seq, now_ms, (Span("shoppers", 0, start, start + size),), events, [])
        alarms += recommender.step(raw).alarms
        start += size
    return alarms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    limit_threads(1)
    delays, early, steady = [], 0, []
    for seed in range(args.seeds):
        changed = alarms_of(seed, CHANGE_AT, args.batch)
        after = [alarm.at_event - CHANGE_AT for alarm in changed if alarm.at_event > CHANGE_AT]
        early += len(changed) - len(after)
        delays.append(min(after, default=EVENTS))
        steady.append(len(alarms_of(seed, None, args.batch)))
        alarms = ", ".join(f"{alarm.signal} at {alarm.at_event:,}" for alarm in changed) or "none"
        print(
            f"seed {seed}: without a change {steady[-1]} alarms; with one at {CHANGE_AT:,}: {alarms}",
            flush=True,
        )
    found = sum(delay <= WITHIN for delay in delays)
    print(f"found within {WITHIN:,} events: {found} of {args.seeds}; before the change: {early} alarms")
    print(json.dumps({"delays": delays, "false_alarms_steady": steady, "false_alarms_before": early}))


if __name__ == "__main__":
    main()

"""Alarms of the served model itself, over simulated users with and without a change of preferences.

    python tests/benchmarks/drift_served.py [--seeds 4] [--batch 128]

Runs the service's own `Recommender` (default configuration) over 60,000 events a seed, once as they are and
once with all preferences changed at event 30,000. Prints each run's alarms and one JSON line at the end.
drift.py does the same with a small stand-in, over many more streams.
"""

from bench import parser_of, print_result
from wired import END_MS, simulated, step

from pipeline.events.records import DriftAlarm
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads
from producers.simulator.plan import Change, Plan
from producers.simulator.users import simulate_users

EVENTS, CHANGE_AT, WITHIN = 60_000, 30_000, 3_000


def alarms_of(seed: int, plan: Plan, batch: int) -> list[DriftAlarm]:
    """Return the alarms over one stream."""
    recommender = Recommender(Settings())
    chunks = simulate_users(EVENTS, seed, plan, chunk=batch)
    return [alarm for chunk in chunks for alarm in step(recommender, simulated(chunk), END_MS).alarms]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    limit_threads(1)
    delays, early, steady = [], 0, []
    for seed in range(options.seeds):
        changed = alarms_of(seed, Plan((Change("sudden", CHANGE_AT),)), options.batch)
        after = [alarm.at_event - CHANGE_AT for alarm in changed if alarm.at_event > CHANGE_AT]
        early += len(changed) - len(after)
        delays.append(min(after, default=EVENTS))
        steady.append(len(alarms_of(seed, Plan(), options.batch)))
        alarms = ", ".join(f"{alarm.signal} at {alarm.at_event:,}" for alarm in changed) or "none"
        print(
            f"seed {seed}: without a change {steady[-1]} alarms; with one at {CHANGE_AT:,}: {alarms}",
            flush=True,
        )
    found = sum(delay <= WITHIN for delay in delays)
    print(f"found within {WITHIN:,} events: {found} of {options.seeds}; before the change: {early} alarms")
    print_result(delays=delays, false_alarms_steady=steady, false_alarms_before=early)


if __name__ == "__main__":
    main()

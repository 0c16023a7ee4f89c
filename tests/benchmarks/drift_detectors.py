"""Would another detector beside ADWIN earn its place? Delay and false alarms of river's, on the same figures.

    python tests/benchmarks/drift_detectors.py [--seeds 6]

Feeds each detector with the hits of the small learner of drift.py over simulated users, with a change
of taste at event 20,000 of 60,000, or without: ADWIN, Page-Hinkley and KSWIN with means of ten tests, as
the service's own watch is, DDM with single tests. All skip the first 5,000 tests and start again
after an alarm; only a fall is counted. Prints a table, and one JSON line at the end. An alarm is found when
it comes in time: within 10,000 events of the change.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from drift import learn
from drift_streams import BATCH, CHANGE_AT, EVENTS, KINDS
from river.drift import ADWIN, KSWIN, PageHinkley
from river.drift.binary import DDM

from pipeline.evaluation.drift import DELTA, TESTS_PER_VALUE, WARM_UP_VALUES, DriftWatch
from pipeline.evaluation.rank_metrics import gains_of
from pipeline.models.model import RankResult
from producers.simulator.events import DEFAULT_CONFIG, Columns
from producers.simulator.plan import Plan
from producers.simulator.users import simulate_users

IN_TIME = 10_000
STREAMS = ("none", "sudden", "gradual", "local, 1/2")


def falling(make: Callable[[], Any], block: int, sign: float) -> Callable[[np.ndarray], list[int]]:
    """Return what runs a detector over hits and names the events of its alarms, those of a fall alone."""

    def alarms(hit_N: np.ndarray) -> list[int]:
        place = np.flatnonzero(np.isfinite(hit_N))
        count = len(place) // block
        values = hit_N[place[: count * block]].reshape(count, block).mean(1)
        detector, since, found = make(), WARM_UP_VALUES * TESTS_PER_VALUE // block, []
        for at in range(since, count):
            detector.update(sign * values[at] + (sign < 0))
            if detector.drift_detected:
                fresh = values[max(since, at - 50) : at + 1]
                if fresh.mean() < values[since : at + 1].mean():
                    found.append(int(place[at * block + block - 1]) + 1)
                detector, since = make(), at + 1
        return found

    return alarms


def watch(hit_N: np.ndarray) -> list[int]:
    """Run the service's own watch."""
    none_N = np.full_like(hit_N, np.nan)
    alarms = DriftWatch().update(hit_N, none_N, none_N, 0, 0)
    return [alarm.at_event for alarm in alarms]


# Page-Hinkley and DDM look for a rise: they are given misses
DETECTORS: dict[str, Callable[[np.ndarray], list[int]]] = {
    "the watch (ADWIN, cut where it differs most)": watch,
    "ADWIN": falling(lambda: ADWIN(delta=DELTA, clock=1, min_window_length=5), TESTS_PER_VALUE, 1),
    "Page-Hinkley, threshold 5": falling(lambda: PageHinkley(threshold=5, mode="up"), TESTS_PER_VALUE, -1),
    "Page-Hinkley, threshold 10": falling(lambda: PageHinkley(threshold=10, mode="up"), TESTS_PER_VALUE, -1),
    "KSWIN, alpha .0001": falling(lambda: KSWIN(alpha=1e-4, seed=0), TESTS_PER_VALUE, 1),
    "KSWIN, alpha .000001": falling(lambda: KSWIN(alpha=1e-6, seed=0), TESTS_PER_VALUE, 1),
    "DDM, 3 deviations": falling(DDM, 1, -1),
    "DDM, 4 deviations": falling(lambda: DDM(drift_threshold=4.0), 1, -1),
}


@dataclass
class Row:
    """One line of the table: a detector on all seeds of one kind of stream."""

    detector: str
    kind: str
    false_alarms_per_100k: float
    found: int
    delays: list[int]


def hits(kind: str, seed: int) -> np.ndarray:
    """Return the hits of the learner over one stream, NaN where an event is no test."""
    chunks = simulate_users(EVENTS, seed, Plan(KINDS[kind].changes))
    stream = Columns(*(np.concatenate(column) for column in zip(*chunks, strict=True)))
    tested = RankResult(
        *learn(stream.user_B, stream.item_B, DEFAULT_CONFIG.users, DEFAULT_CONFIG.items, BATCH)
    )
    # DDM takes yes or no: where scores are equal, a hit in more than half of the orders is one
    return np.where(np.isnan(gains_of(tested).hit_B), np.nan, gains_of(tested).hit_B > 0.5)


def row(detector: str, kind: str, streams: list[np.ndarray]) -> Row:
    """Run one detector over all seeds."""
    calm = EVENTS if kind == "none" else CHANGE_AT
    found = [DETECTORS[detector](hit_N) for hit_N in streams]
    false = sum(at <= calm for alarms in found for at in alarms)
    delays = [min((at - CHANGE_AT for at in alarms if at > calm), default=EVENTS) for alarms in found]
    in_time = sorted(delay for delay in delays if delay <= IN_TIME)
    return Row(detector, kind, 1e5 * false / (calm * len(streams)), len(in_time), in_time)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    began, rows = time.perf_counter(), []
    streams = {kind: [hits(kind, seed) for seed in range(options.seeds)] for kind in STREAMS}
    print("| detector | change | false alarms per 100,000 | found | delay, median (most) |")
    print("|---|---|---|---|---|")
    for detector in DETECTORS:
        for kind in STREAMS:
            rows.append(of := row(detector, kind, streams[kind]))
            delay = f"{median(of.delays):,.0f} ({of.delays[-1]:,})" if of.delays else ""
            found = "" if kind == "none" else f"{of.found} of {options.seeds}"
            print(f"| {detector} | {kind} | {of.false_alarms_per_100k:.1f} | {found} | {delay} |", flush=True)
    print(json.dumps({
        "events": EVENTS, "change_at": CHANGE_AT, "seeds": options.seeds,
        "rows": [asdict(each) for each in rows], "seconds": round(time.perf_counter() - began, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

"""Delay and false alarms of river's other detectors beside ADWIN, on the same hits.

    python tests/benchmarks/drift_detectors.py [--seeds 6]

Feeds each detector with the hits of the small learner of drift.py over simulated users, with a change of
preferences at event 20,000 of 60,000, or without: ADWIN, Page-Hinkley and KSWIN with means of ten tests, as
the service does, DDM with single tests. All skip the first 5,000 tests and start again after an alarm; only a
fall is counted. A change is found if an alarm comes within 10,000 events. Prints a table, and one JSON line
at the end.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from bench import parser_of, print_head, print_result, print_row
from drift import ranks_of
from drift_streams import CHANGE_AT, EVENTS, KINDS
from river.drift import ADWIN, KSWIN, PageHinkley
from river.drift.binary import DDM
from wired import whole_stream

from pipeline.evaluation.drift import DELTA, TESTS_PER_VALUE, WARM_UP_VALUES, DriftWatch
from pipeline.evaluation.rank_metrics import gains_of

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
    hit_B = gains_of(ranks_of(whole_stream(EVENTS, seed, KINDS[kind].changes))).hit_B
    # DDM takes yes or no: where scores are equal, a hit in more than half of the orders is one
    return np.where(np.isnan(hit_B), np.nan, hit_B > 0.5)


def row(detector: str, kind: str, streams: list[np.ndarray]) -> Row:
    """Run one detector over all seeds."""
    calm = EVENTS if kind == "none" else CHANGE_AT
    found = [DETECTORS[detector](hit_N) for hit_N in streams]
    false = sum(at <= calm for alarms in found for at in alarms)
    delays = [min((at - CHANGE_AT for at in alarms if at > calm), default=EVENTS) for alarms in found]
    in_time = sorted(delay for delay in delays if delay <= IN_TIME)
    return Row(detector, kind, 1e5 * false / (calm * len(streams)), len(in_time), in_time)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    rows = []
    streams = {kind: [hits(kind, seed) for seed in range(seeds)] for kind in STREAMS}
    print_head("detector", "change", "false alarms per 100,000", "found", "delay, median (most)")
    for detector in DETECTORS:
        for kind in STREAMS:
            rows.append(of := row(detector, kind, streams[kind]))
            delay = f"{median(of.delays):,.0f} ({of.delays[-1]:,})" if of.delays else ""
            found = "" if kind == "none" else f"{of.found} of {seeds}"
            print_row(detector, kind, f"{of.false_alarms_per_100k:.1f}", found, delay)
    print_result(events=EVENTS, change_at=CHANGE_AT, seeds=seeds, rows=[asdict(each) for each in rows])


if __name__ == "__main__":
    main()

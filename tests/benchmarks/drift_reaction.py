"""How soon quality is back after a change of taste, with the reaction to drift alarms and without it.

    OMP_NUM_THREADS=1 python tests/benchmarks/drift_reaction.py [--seeds 5] [--kinds KINDS] [--parts all]

Runs the service's own `Recommender` in batches of 128 (default configuration, but that no lists are made)
over simulated shoppers, whose taste changes at event 20,000 of 60,000, or never does, once with
`drift.reaction` and once without it. Prints one table, and one JSON line at the end.

- delay: events from the change to the first alarm after it, the median over the streams with one.
- false alarms: on the stream without a change, and before the change on the others, per 100,000 events. The
  rows "false alarm" are the stream without a change, with an alarm made up at event 20,000 that says that a
  fifth of the hits is gone, or half of them: what a reaction to nothing costs.
- events until quality is back: m(t) is the mean NDCG@10 of the 2,000 tests from event t on, and the level
  that of the last 5,000 tests before the change. Quality is back at the first t after the lowest m(t) for
  which m(t) is at least nine tenths of the level, counted from the change; 0 where m(t) never falls below;
  all events after the change where it doesn't come back in the run (told as "> ": the mean is then too low).
  Where the taste turns time and again, each turn is a change of its own, up to the next turn.
- NDCG@10 after: of all tests from the change on; from event 20,000 on where there is none.

`--parts` adds rows: parts of the reaction alone, or set otherwise.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from pipeline.event.batch import Events, RawBatch, Span
from pipeline.event.records import DriftAlarm
from pipeline.measure import reaction
from pipeline.measure.quality import gains_of
from pipeline.recommender import Recommender
from pipeline.settings import DriftConfig, Settings
from pipeline.state.successors import Successors
from pipeline.train.build import build_model
from producers.market_plan import Change, Plan
from producers.shoppers import shoppers, wire_events

EVENTS, CHANGE_AT, PERIOD, BATCH, START_MS = 60_000, 20_000, 10_000, 128, 1_700_000_000_000
TESTS, BEFORE, SHARE = 2_000, 5_000, 0.9
KINDS: dict[str, Plan] = {
    "none": Plan(),
    "false alarm, a fifth": Plan(),
    "false alarm, half": Plan(),
    "sudden": Plan((Change("sudden", CHANGE_AT),)),
    "gradual": Plan((Change("gradual", CHANGE_AT, CHANGE_AT + 10_000),)),
    "recurring": Plan((Change("recurring", CHANGE_AT, period=PERIOD),)),
    "local": Plan((Change("local", CHANGE_AT, share=0.25),)),
    "local, half": Plan((Change("local", CHANGE_AT, share=0.5),)),
    "shoppers": Plan((Change("local", CHANGE_AT, share=0.5, among="shoppers"),)),
}
PLANTED = {
    "false alarm, a fifth": DriftAlarm("planted", "hit_rate", CHANGE_AT, 0.3, 0.24, 0),
    "false alarm, half": DriftAlarm("planted", "hit_rate", CHANGE_AT, 0.3, 0.15, 0),
}
STEADY = ("none", *PLANTED)


def nothing(*args: Any) -> None:
    """Weaken no memory."""


def fades(weakening: bool, contexts: bool) -> Callable[..., None]:
    whole = Successors.fade

    def part(self: Successors, by: float, kept: int) -> None:
        whole(self, by if weakening else 0.0, kept if contexts else self.context.data.shape[1])

    return part


# what is switched off or set otherwise, by the name of the row
PARTS: dict[str, tuple[Any, ...]] = {
    "whole": (),
    "steps alone": ((Successors, "fade", nothing),),
    "memories alone": ((reaction, "PACE", 0.0),),
    "successors' weights alone": ((reaction, "PACE", 0.0), (Successors, "fade", fades(True, False))),
    "contexts alone": ((reaction, "PACE", 0.0), (Successors, "fade", fades(False, True))),
    "steps three times as long": ((reaction, "PACE", 3.0),),
    "for 10,000 events": ((reaction, "LASTS", 10_000),),
    "half as much forgotten": ((reaction, "WEIGHT", 48.0),),
    "twice as much forgotten": ((reaction, "WEIGHT", 12.0),),
}


@dataclass(frozen=True)
class Run:
    """One stream, as the served model met it: NDCG@10 of each event, NaN where it was no test."""

    ndcg: np.ndarray
    hits: np.ndarray
    alarms: list[DriftAlarm]


class Watched(Recommender):
    """The service's recommender, which keeps each event's gains and makes no lists."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, lambda state, each: [build_model("attention", state, each)])
        self.kept: list[Any] = []

    def _measure(self, batch: Any, queries: Any, targets: Any, lessons: Any) -> list[DriftAlarm]:
        self.kept.append(gains_of(lessons[0].tested))
        return super()._measure(batch, queries, targets, lessons)

    def _rank(self, *args: Any) -> list[Any]:
        return []

    def _default_ranking(self, *args: Any) -> list[Any]:
        return []


def batches(kind: str, seed: int) -> Iterator[tuple[int, Events]]:
    """Yield the first event's number and the events of each batch."""
    wired, start = [], 0
    for columns in shoppers(EVENTS, seed, chunk=BATCH, plan=KINDS[kind]):
        wired += wire_events(columns, START_MS)
        while len(wired) >= BATCH or (wired and start + len(wired) == EVENTS):
            part, wired = wired[:BATCH], wired[BATCH:]
            size = len(part)
            yield (
                start,
                Events(
                    user_ids=[event.user_id for event in part],
                    item_ids=[event.item_id for event in part],
                    types=[event.event_type for event in part],
                    event_ids=[None] * size,
                    time_ms_B=np.array([event.timestamp_ms for event in part], np.int64),
                    append_ms_B=np.zeros(size, np.int64),
                    value_B=np.full(size, np.nan),
                    source_B=np.zeros(size, np.int32),
                ),
            )
            start += size


def run(kind: str, seed: int, part: str, on: bool) -> Run:
    """Learn one stream."""
    torch.set_num_threads(1)
    settings = Settings(drift=DriftConfig(reaction=on))
    alarms: list[DriftAlarm] = []
    with patched(part):
        learner = Watched(settings)
        for start, events in batches(kind, seed):
            raw = RawBatch(
                learner.seq, START_MS + 10**12, (Span("shoppers", 0, start, start + len(events)),), events, []
            )
            alarms += learner.step(raw).alarms
            if kind in PLANTED and start < CHANGE_AT <= start + len(events):
                learner.drift.answer([PLANTED[kind]])
    gains = learner.kept
    return Run(np.concatenate([g.ndcg_B for g in gains]), np.concatenate([g.hit_B for g in gains]), alarms)


@contextmanager
def patched(part: str) -> Iterator[None]:
    """Set what the part sets."""
    patches = [patch.object(*each) for each in PARTS[part]]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def back(ndcg: np.ndarray, change: int, stop: int, level: float) -> tuple[int, bool]:
    """Return the events from the change until quality is back, and whether it is back before `stop`."""
    place = change + np.flatnonzero(np.isfinite(ndcg[change:]))
    total = np.concatenate(([0.0], np.cumsum(ndcg[place])))
    begins = np.flatnonzero(place[: len(place) - TESTS + 1] < stop)
    means = (total[begins + TESTS] - total[begins]) / TESTS
    if means.min() >= SHARE * level:
        return 0, True
    later = np.arange(len(means)) > means.argmin()
    good = np.flatnonzero(later & (means >= SHARE * level))
    return (int(place[good[0]] - change), True) if good.size else (stop - change, False)


@dataclass(frozen=True)
class Figures:
    """What one run comes to."""

    delay: int | None
    false_alarms: int
    calm_events: int  # in which an alarm is a false one
    back: float
    whole: bool
    after: float


def figures(kind: str, one: Run) -> Figures:
    steady = kind in STEADY
    calm = EVENTS if steady else CHANGE_AT
    false = sum(alarm.at_event <= calm for alarm in one.alarms)
    delays = [alarm.at_event - CHANGE_AT for alarm in one.alarms if alarm.at_event > CHANGE_AT]
    after = float(np.nanmean(one.ndcg[CHANGE_AT:]))
    level = float(np.nanmean(one.ndcg[CHANGE_AT - BEFORE : CHANGE_AT]))
    step = PERIOD if kind == "recurring" else EVENTS
    turns = [
        back(one.ndcg, change, min(EVENTS, change + step), level)
        for change in range(CHANGE_AT, EVENTS - 2 * TESTS, step)
    ]
    return Figures(
        None if steady or not delays else delays[0], false, calm, mean(t for t, _ in turns),
        all(whole for _, whole in turns), after,
    )  # fmt: skip


@dataclass
class Row:
    """One line of the table: all seeds of one kind, without the reaction (first) and with it."""

    kind: str
    part: str
    delay: float | None
    delay_most: int | None
    found: int
    false_alarms_per_100k: float
    back: tuple[float, float]
    spread: tuple[tuple[float, float], tuple[float, float]]
    whole: tuple[bool, bool]
    ratio: float | None
    ratios: list[float]  # of each seed
    after: tuple[float, float]
    gain: float


def row(kind: str, part: str, without: list[Figures], reacted: list[Figures]) -> Row:
    both = (without, reacted)
    delays = [each.delay for each in reacted if each.delay is not None]
    false, calm = sum(f.false_alarms for f in reacted), sum(f.calm_events for f in reacted)
    times = [mean(f.back for f in arm) for arm in both]
    after = [mean(f.after for f in arm) for arm in both]
    return Row(
        kind, part, median(delays) if delays else None, max(delays, default=None), len(delays),
        false / calm * 1e5, (times[0], times[1]),
        tuple((min(f.back for f in arm), max(f.back for f in arm)) for arm in both),  # type: ignore[arg-type]
        (all(f.whole for f in without), all(f.whole for f in reacted)),
        times[1] / times[0] if times[0] else None,
        [r.back / w.back for w, r in zip(without, reacted, strict=True) if w.back],
        (after[0], after[1]), after[1] / after[0] - 1,
    )  # fmt: skip


HEAD = (
    "| change | reaction | delay, median (most) | found | false alarms per 100,000 "
    "| back without (least to most) | back with (least to most) | ratio "
    "| NDCG@10 after, without | with | gain |"
)


def line(of: Row, seeds: int) -> str:
    told = [
        f"{'' if whole else '> '}{times:,.0f} ({least:,.0f} to {most:,.0f})"
        for times, whole, (least, most) in zip(of.back, of.whole, of.spread, strict=True)
    ]
    delay = "" if of.delay is None else f"{of.delay:,.0f} ({of.delay_most:,})"
    ratio = "" if of.ratio is None else f"{of.ratio:.2f}"
    steady = of.kind in STEADY
    return (
        f"| {of.kind} | {of.part} | {delay} | {'' if steady else f'{of.found} of {seeds}'} "
        f"| {of.false_alarms_per_100k:.1f} | {'' if steady else told[0]} | {'' if steady else told[1]} "
        f"| {'' if steady else ratio} | {of.after[0]:.4f} | {of.after[1]:.4f} | {100 * of.gain:+.1f}% |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", default="|".join(KINDS), help="parted by |")
    parser.add_argument("--parts", default="whole", help="parted by |, or all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    kinds = options.kinds.split("|")
    parts = list(PARTS) if options.parts == "all" else options.parts.split("|")
    began, rows = time.perf_counter(), []
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|", flush=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        seeds = range(options.seeds)
        arms = [(kind, "whole", False) for kind in kinds] + [(k, p, True) for k, p in product(kinds, parts)]
        futures = {
            (*arm, seed): pool.submit(run, arm[0], seed, arm[1], arm[2])
            for kind in kinds for arm in arms if arm[0] == kind for seed in seeds
        }  # fmt: skip
        for kind, part in product(kinds, parts):
            without, reacted = [
                [figures(kind, futures[kind, name, on, seed].result()) for seed in seeds]
                for name, on in (("whole", False), (part, True))
            ]
            rows.append(row(kind, part, without, reacted))
            print(line(rows[-1], options.seeds), flush=True)
    print(json.dumps({
        "events": EVENTS, "change_at": CHANGE_AT, "seeds": options.seeds, "batch": BATCH,
        "rows": [asdict(each) for each in rows], "seconds": round(time.perf_counter() - began, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

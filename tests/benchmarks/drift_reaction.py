"""How soon quality recovers after a change of preferences, with the reaction to drift alarms and without it.

    python tests/benchmarks/drift_reaction.py [--seeds 5] [--data FOLDER]

Runs the service's own `Recommender` (default configuration, but that no lists are made) in batches of 128
over simulated users, with a change of preferences at event 20,000 of 60,000, once with `drift.reaction` and
once without it; with --data (or AFRESH_DATA) over the first 40,000 events of recorded streams too. Prints one
table, and one JSON line at the end.

- signal: the first alarm after the change, by signal, and its delay in events, median (most).
- false alarms: on streams without a change, and before the change on the others, per 100,000 events. Of
  recorded streams it is unknown which alarms are false: all are counted.
- back: m(t) is the mean NDCG@10 of 2,000 tests from event t on, and the level that of the last 5,000 events
  before the change. Quality is back at the first t after the lowest m(t) for which m(t) is at least nine
  tenths of the level; counted from the change. 0: no m(t) lies below that. "> ": in some stream it was not
  back at the end, which then counts. Each turn of a recurring change is a change of its own.
- NDCG@10 after: of all tests from event 20,000 on; of the whole of a recorded stream. The gain is the mean of
  the seeds' gains, and in brackets the least and the most.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from bench import parser_of, print_head, print_result, print_row
from recorded import BY_NAME, NOW_MS, add_data, events_of, settings_for
from wired import END_MS, START_MS, as_columns, step

from pipeline.evaluation.rank_metrics import gains_of
from pipeline.events.batch import Events
from pipeline.events.records import DriftAlarm
from pipeline.models.registry import variant_of
from pipeline.recommender import Recommender
from pipeline.settings import DriftConfig, Settings
from pipeline.thread_limits import limit_threads
from producers.simulator.events import wire_events
from producers.simulator.plan import Change, Plan
from producers.simulator.users import simulate_users

EVENTS, CHANGE_AT, PERIOD, BATCH = 60_000, 20_000, 10_000, 128
RECORDED_EVENTS = 40_000
TESTS, BEFORE, SHARE = 2_000, 5_000, 0.9


@dataclass(frozen=True)
class Stream:
    """One kind of stream."""

    changes: tuple[Change, ...] = ()
    fall: float = 0.0
    """The share of the hits that a false alarm at event 20,000 reports as lost; 0: no false alarm."""
    recorded: str = ""
    """The name of a recorded stream, in the place of simulated users."""

    @property
    def steady(self) -> bool:
        """Whether nothing changes."""
        return not self.changes

    @property
    def alarm(self) -> DriftAlarm | None:
        """The false alarm."""
        after = 0.4 * (1 - self.fall)
        return DriftAlarm("false alarm", "hit_rate", CHANGE_AT, 0.4, after, 0) if self.fall else None


KINDS: dict[str, Stream] = {
    "none": Stream(),
    "sudden": Stream((Change("sudden", CHANGE_AT),)),
    "gradual": Stream((Change("gradual", CHANGE_AT, CHANGE_AT + 10_000),)),
    "recurring": Stream((Change("recurring", CHANGE_AT, period=PERIOD),)),
    "local, 1/4": Stream((Change("local", CHANGE_AT, share=0.25),)),
    "local, 1/2": Stream((Change("local", CHANGE_AT, share=0.5),)),
    "none, false alarm of 1/5": Stream(fall=0.2),
    "none, false alarm of 1/2": Stream(fall=0.5),
}
for _name in BY_NAME:
    KINDS[_name] = Stream(recorded=_name)
    KINDS[f"{_name}, false alarm of 1/2"] = Stream(fall=0.5, recorded=_name)


def settings_of(stream: Stream, settings: Settings) -> Settings:
    """Return the settings for a stream."""
    return settings_for(BY_NAME[stream.recorded], settings) if stream.recorded else settings


def now_ms(stream: Stream) -> int:
    """Return the wall-clock time of all batches."""
    return NOW_MS if stream.recorded else END_MS


def batches(stream: Stream, seed: int, data: Path | None) -> Iterator[Events]:
    """Yield the events in batches of 128."""
    if stream.recorded:
        assert data is not None
        yield from events_of(data, BY_NAME[stream.recorded], RECORDED_EVENTS, BATCH)
        return
    chunks = simulate_users(EVENTS, seed, Plan(stream.changes))
    wired = [event for columns in chunks for event in wire_events(columns, START_MS)]
    for start in range(0, EVENTS, BATCH):
        yield as_columns(wired[start : start + BATCH])


class Run(NamedTuple):
    """The results of one stream: NDCG@10 of each event, NaN where it was no test."""

    ndcg: np.ndarray
    alarms: list[DriftAlarm]


class Watched(Recommender):
    """The service's recommender, which keeps each event's gain and makes no lists."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, [variant_of(settings.model, "attention")])
        self.kept: list[np.ndarray] = []

    def _evaluate(self, batch: Any, queries: Any, results: Any) -> list[DriftAlarm]:
        self.kept.append(gains_of(results["attention"].ranks).ndcg_B)
        return super()._evaluate(batch, queries, results)

    def _publish(self, *args: Any) -> list[Any]:
        return []

    def _default_ranking(self, *args: Any) -> list[Any]:
        return []


def run(kind: str, seed: int, on: bool, data: Path | None) -> Run:
    """Learn one stream."""
    limit_threads(1)
    stream, alarms = KINDS[kind], []
    learner = Watched(settings_of(stream, Settings(drift=DriftConfig(reaction=on))))
    for events in batches(stream, seed, data):
        before = learner.events_learned
        alarms += step(learner, events, now_ms(stream)).alarms
        if stream.alarm and before < CHANGE_AT <= learner.events_learned:
            learner.react(learner.evaluator.reaction.respond([stream.alarm], learner.events_learned))
    return Run(np.concatenate(learner.kept), alarms)


class Return(NamedTuple):
    """The events until quality was back, and whether it was."""

    events: int
    back: bool


def until_back(ndcg: np.ndarray, change: int, stop: int, level: float) -> Return:
    """Return the events from the change until quality is back, those until `stop` where it is not."""
    place = change + np.flatnonzero(np.isfinite(ndcg[change:stop]))
    total = np.concatenate(([0.0], np.cumsum(ndcg[place])))
    means = (total[TESTS:] - total[:-TESTS]) / TESTS
    if means.min() >= SHARE * level:
        return Return(0, True)
    good = np.flatnonzero((np.arange(len(means)) > means.argmin()) & (means >= SHARE * level))
    return Return(int(place[good[0]] - change), True) if good.size else Return(stop - change, False)


class Summary(NamedTuple):
    """One run in numbers."""

    first: tuple[str, int] | None  # signal and delay
    false_alarms: int
    calm_events: int  # in which an alarm is a false one
    back: float
    whole: bool  # it was back in every turn
    after: float


def summary(kind: str, one: Run) -> Summary:
    stream, total = KINDS[kind], len(one.ndcg)
    calm = total if stream.steady else CHANGE_AT
    later = [(alarm.signal, alarm.at_event - CHANGE_AT) for alarm in one.alarms if alarm.at_event > calm]
    false = sum(alarm.at_event <= calm for alarm in one.alarms)
    after = float(np.nanmean(one.ndcg[0 if stream.recorded else CHANGE_AT :]))
    if stream.recorded:
        return Summary(None, false, calm, 0.0, True, after)
    level = float(np.nanmean(one.ndcg[CHANGE_AT - BEFORE : CHANGE_AT]))
    step = PERIOD if kind == "recurring" else EVENTS
    turns = [until_back(one.ndcg, at, min(total, at + step), level) for at in range(CHANGE_AT, EVENTS, step)]
    return Summary(
        later[0] if later else None, false, calm, mean(turn.events for turn in turns),
        all(turn.back for turn in turns), after,
    )  # fmt: skip


@dataclass
class Row:
    """One line of the table: all seeds of one kind. Tuples are without the reaction, with it."""

    kind: str
    seeds: int
    signals: dict[str, int]  # streams by the signal of the first alarm
    delays: list[int]
    false_alarms_per_100k: float
    back: tuple[list[float], ...]  # by seed
    whole: tuple[bool, ...]
    ratio: float | None
    after: tuple[float, ...]
    gains: list[float]


def row(kind: str, without: list[Summary], reacted: list[Summary]) -> Row:
    """Combine all seeds."""
    firsts = [each.first for each in reacted if each.first]
    calm, arms = sum(each.calm_events for each in reacted), (without, reacted)
    back = tuple([each.back for each in arm] for arm in arms)
    return Row(
        kind=kind,
        seeds=len(reacted),
        signals={signal: sum(each[0] == signal for each in firsts) for signal, _ in sorted(firsts)},
        delays=sorted(delay for _, delay in firsts),
        false_alarms_per_100k=1e5 * sum(each.false_alarms for each in reacted) / calm,
        back=back,
        whole=tuple(all(each.whole for each in arm) for arm in arms),
        ratio=mean(back[1]) / mean(back[0]) if mean(back[0]) else None,
        after=tuple(mean(each.after for each in arm) for arm in arms),
        gains=[b.after / a.after - 1 for a, b in zip(without, reacted, strict=True)],
    )


HEAD = (
    "change", "signal, of streams", "delay, median (most)", "false alarms per 100,000",
    "back without it (least to most)", "back with it (least to most)", "ratio", "NDCG@10 after, without",
    "with", "gain",
)  # fmt: skip


def cells(of: Row) -> list[str]:
    """Return the cells of a row of the table."""
    middle = ["", "", f"{of.false_alarms_per_100k:.1f}", "", "", ""]
    if not KINDS[of.kind].steady:
        first = ", ".join(f"{signal} {count}" for signal, count in of.signals.items()) or "none"
        delay = f"{median(of.delays):,.0f} ({of.delays[-1]:,})" if of.delays else ""
        back = [
            f"{'' if whole else '> '}{mean(by_seed):,.0f} ({min(by_seed):,.0f} to {max(by_seed):,.0f})"
            for whole, by_seed in zip(of.whole, of.back, strict=True)
        ]
        middle = [f"{first} of {of.seeds}", delay, middle[2], *back, f"{of.ratio:.2f}" if of.ratio else ""]
    gain = f"{100 * mean(of.gains):+.1f}%"
    if len(of.gains) > 1:
        gain += f" ({100 * min(of.gains):+.1f} to {100 * max(of.gains):+.1f})"
    return [of.kind, *middle, f"{of.after[0]:.4f}", f"{of.after[1]:.4f}", gain]


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = parser_of(__doc__)
    add_data(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", help=f"separated by ; of {'; '.join(KINDS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    known = [kind for kind, stream in KINDS.items() if options.data or not stream.recorded]
    options.kinds = options.kinds.split(";") if options.kinds else known
    if unknown := set(options.kinds) - set(known):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}; expected some of {'; '.join(known)}")
    return options


def main() -> None:
    options = parsed()
    print_head(*HEAD)
    rows: list[Row] = []
    runs: dict[tuple[str, int, bool], Future[Run]] = {}
    with ProcessPoolExecutor(options.jobs) as pool:

        def started(kind: str, seed: int, on: bool) -> Future[Run]:
            if not on and KINDS[kind].fall:  # no reaction to the alarm
                kind = KINDS[kind].recorded or "none"
            key = kind, seed, on
            if key not in runs:
                runs[key] = pool.submit(run, *key, options.data)
            return runs[key]

        wanted = []
        for kind in options.kinds:
            seeds = range(1 if KINDS[kind].recorded else options.seeds)
            wanted.append((kind, [[started(kind, seed, on) for seed in seeds] for on in (False, True)]))
        for kind, arms in wanted:
            rows.append(row(kind, *([summary(kind, each.result()) for each in arm] for arm in arms)))
            print_row(*cells(rows[-1]))
    print_result(
        events=EVENTS, change_at=CHANGE_AT, seeds=options.seeds, rows=[asdict(each) for each in rows]
    )


if __name__ == "__main__":
    main()

"""How soon a change of preferences raises an alarm, and how many alarms there are without one.

    python tests/benchmarks/drift.py [--seeds 20] [--deltas 0.05,0.002,0.0001]

Feeds ADWIN as the product does with the hits and losses of a small learner (successors of the last items,
backed off to popularity) over simulated users, with and without a change in mid-stream, and with hits
drawn at random. Prints a table, and one JSON line at the end.
"""

from dataclasses import asdict, dataclass
from statistics import median

import numba
import numpy as np
from bench import parser_of, print_head, print_result, print_row
from wired import whole_stream

from pipeline.evaluation import drift
from pipeline.evaluation.rank_metrics import gains_of
from pipeline.events.records import DriftAlarm
from pipeline.models.model import RankResult
from producers.simulator.events import DEFAULT_CONFIG, Columns
from producers.simulator.plan import Change

EVENTS, CHANGE_AT, BATCH = 60_000, 30_000, 128
RECENT = 5  # items of a history that the learner looks at
IID_RATES = (0.02, 0.1, 0.3, 0.6)
PARTS = {
    "before the change": slice(CHANGE_AT - 5_000, CHANGE_AT),
    "in the 2,000 events after it": slice(CHANGE_AT, CHANGE_AT + 2_000),
    "at the end": slice(EVENTS - 5_000, EVENTS),
}


@dataclass
class Row:
    """One line of the table: a detector's alarms over all seeds."""

    delta: float
    signal: str
    false_alarms: int  # all streams without a change together
    false_alarms_most: int  # in one stream
    found: int  # streams with a change and an alarm within 3,000 events
    delay_median: float
    delay_most: float
    alarms_a_change: float


@numba.njit(cache=True)
def learn(user_B, item_B, users, items, batch):  # plain loops: this is a benchmark's stand-in for a model
    """Predict, then learn, batch by batch; return the columns of `RankResult`."""
    n = len(user_B)
    follows, totals, popular = np.zeros((items, items), np.float32), np.zeros(items), np.zeros(items)
    history, met = np.full((users, RECENT), -1), np.zeros((users, items), np.bool_)
    greater, equal, candidates = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    tested, known, loss = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.full(n, np.nan, np.float32)
    before, score, counted = np.full((n, RECENT), -1), np.zeros(items), 0.0
    for start in range(0, n, batch):
        stop = min(n, start + batch)
        live = np.count_nonzero(popular)
        for b in range(start, stop):
            user, target = user_B[b], item_B[b]
            before[b] = history[user]
            tested[b], known[b] = not met[user, target], popular[target] > 0
            if tested[b] and known[b]:
                support, mass = 20.0, 0.0
                for k in range(RECENT):
                    if before[b, k] >= 0:
                        support += 0.6**k * totals[before[b, k]]
                for item in range(items):
                    score[item] = -1.0
                    if popular[item] > 0 and not met[user, item]:
                        weight = 20 * (popular[item] + 0.02) / (counted + 0.02 * live)
                        for k in range(RECENT):
                            if before[b, k] >= 0:
                                weight += 0.6**k * follows[before[b, k], item]
                        score[item] = weight / support
                        mass += score[item]
                        candidates[b] += 1
                greater[b] = np.count_nonzero(score > score[target])
                equal[b] = np.count_nonzero(score == score[target]) - 1
                loss[b] = -np.log(score[target] / mass)
            if tested[b]:
                history[user, 1:] = history[user, :-1].copy()
                history[user, 0] = target
                met[user, target] = True
        for b in range(start, stop):
            popular[item_B[b]] += 1
            counted += 1
            for k in range(RECENT):
                if tested[b] and before[b, k] >= 0:
                    follows[before[b, k], item_B[b]] += 0.7**k
                    totals[before[b, k]] += 0.7**k
    return greater, equal, candidates, tested, known, np.full(n, np.nan, np.float32), loss


def ranks_of(stream: Columns) -> RankResult:
    """Return the ranks and losses of the learner over a stream."""
    return RankResult(*learn(stream.user_B, stream.item_B, DEFAULT_CONFIG.users, DEFAULT_CONFIG.items, BATCH))


def signals_of(seed: int, changes: tuple[Change, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits and scaled losses of the learner over one simulated stream, and which items are new."""
    stream = whole_stream(EVENTS, seed, changes)
    ranks = ranks_of(stream)
    _, first_I, place_B = np.unique(stream.item_B, return_index=True, return_inverse=True)
    new_B = (np.arange(EVENTS) - first_I[place_B] < drift.NEW_ITEM_EVENTS).astype(np.float64)
    return gains_of(ranks).hit_B, drift.scaled_loss(ranks), new_B


def alarms_of(hit_B: np.ndarray, loss_B: np.ndarray, new_B: np.ndarray) -> list[DriftAlarm]:
    """Return the alarms of new detectors."""
    return drift.DriftWatch().update(hit_B, loss_B, new_B, 0, 0)


def row(delta: float, signal: str, steady: list[list[DriftAlarm]], changed: list[list[DriftAlarm]]) -> Row:
    """Count the alarms of one signal."""
    false = [sum(alarm.signal == signal for alarm in alarms) for alarms in steady]
    false += [sum(a.signal == signal and a.at_event <= CHANGE_AT for a in alarms) for alarms in changed]
    true = [
        [a.at_event - CHANGE_AT for a in alarms if a.signal == signal and a.at_event > CHANGE_AT]
        for alarms in changed
    ]
    delays = [min(found, default=EVENTS) for found in true]
    within = sum(delay <= 3_000 for delay in delays)
    each = sum(map(len, true)) / len(true)
    return Row(delta, signal, sum(false), max(false), within, median(delays), max(delays), each)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--deltas", default="0.05,0.002,0.0001")
    options = parser.parse_args()
    seeds = range(options.seeds)
    steady = [signals_of(seed, ()) for seed in seeds]
    changed = [signals_of(seed, (Change("sudden", CHANGE_AT),)) for seed in seeds]
    rng, nothing = np.random.default_rng(0), np.full(EVENTS, np.nan)
    random_hits = [(rng.random(EVENTS) < rate) * 1.0 for rate in IID_RATES for _ in seeds]
    rows, at_random = [], {}
    print_head(
        "delta", "signal", "false alarms (most in a stream)", "found within 3,000", "delay, median", "most",
        "alarms a change",
    )  # fmt: skip
    for delta in map(float, options.deltas.split(",")):
        drift.DELTA = delta
        without, with_change = [alarms_of(*each) for each in steady], [alarms_of(*each) for each in changed]
        for signal in drift.SIGNALS:
            rows.append(of := row(delta, signal, without, with_change))
            print_row(
                delta, signal, f"{of.false_alarms} ({of.false_alarms_most})",
                f"{of.found} of {options.seeds}", f"{of.delay_median:.0f}", f"{of.delay_most:.0f}",
                f"{of.alarms_a_change:.1f}",
            )  # fmt: skip
        at_random[delta] = sum(len(alarms_of(hits, nothing, nothing)) for hits in random_hits)
    print(
        f"\nhits at random, {len(IID_RATES)} rates, {options.seeds} streams each, "
        f"false alarms by delta: {at_random}"
    )
    for name, part in PARTS.items():
        rate = np.nanmean(np.concatenate([hit_B[part] for hit_B, _, _ in changed]))
        print(f"hit rate of the learner {name}: {rate:.3f}")
    print_result(
        events=EVENTS, change_at=CHANGE_AT, seeds=options.seeds, rows=[asdict(each) for each in rows],
        false_alarms_at_random=at_random,
    )  # fmt: skip


if __name__ == "__main__":
    main()

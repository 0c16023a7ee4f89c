"""How long one step of the core takes, from decoded events to ranking records, without Kafka.

    python tests/benchmarks/step.py [--against REV] [--rounds 2] [--items 10000,340000]
        [--data FOLDER --streams globo,movietweetings] [--batches 512,64,16,1]

Made-up streams: every item has had an event and every user 32 before the clock starts; items are drawn by a
Zipf law, users evenly. Recorded streams: the clock starts after --warm events. `--against`: a commit, or the
folder of a checkout; both run in turns, a process a stream and round, with one BLAS thread, and ratios are of
the lowest processor times. Prints a table of microseconds an event with the stages' shares, and a JSON line.
"""

import argparse
import csv
import gzip
import itertools
import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from bench import HERE, checkout, integers, parser_of, print_head, print_result, print_row, run_on

START_MS = 1_700_000_000_000
STEP_MS = 200  # between two made-up events: a session of a made-up user has about 9
EVENTS_A_USER = 32
FLAT = 100  # the item of rank r is drawn with weight 1 / (r + FLAT)
TIMED = {512: 12, 64: 40, 16: 100, 1: 400}  # batches that are timed together
REPEATS = 3


class Columns(NamedTuple):
    """Events as columns."""

    users: list[str]
    items: list[str]
    types: list[str]
    times_ms: Any


def made_up(items: int, timed: int) -> Columns:
    """Return a stream in which all but the last `timed` events give every item one and every user 32."""
    rng = np.random.default_rng(0)
    users = max(1024, -(-items // EVENTS_A_USER))
    warm = users * EVENTS_A_USER
    weight = 1 / (np.arange(items) + FLAT)
    drawn = rng.choice(items, warm - items + timed, p=weight / weight.sum())
    item_B = np.concatenate([rng.permutation(items), drawn])
    user_B = np.concatenate(
        [rng.permutation(np.repeat(np.arange(users), EVENTS_A_USER)), rng.integers(users, size=timed)]
    )
    return Columns(
        [f"user-{row}" for row in user_B.tolist()],
        [f"item-{row}" for row in item_B.tolist()],
        ["click"] * user_B.size,
        START_MS + STEP_MS * np.arange(user_B.size),
    )


def recorded(path: str, events: int) -> Columns:
    """Return the first events of a file."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), events))
    times_ms = np.array([float(row["timestamp"]) * 1000 for row in rows], np.int64)
    users, items, types = ([row[name] for row in rows] for name in ("user", "item", "event"))
    return Columns(users, items, types, np.maximum.accumulate(times_ms))


class Steps:
    """Feeds a recommender with the events of a stream, batch by batch; works with older checkouts too."""

    def __init__(self, columns: Columns, repeats: bool) -> None:
        try:
            self._batch = import_module("pipeline.events.batch")
        except ModuleNotFoundError:
            self._batch = import_module("pipeline.event.batch")
        settings = import_module("pipeline.settings")
        rank = {"exclude_event_types", "exclude"} & set(settings.RankConfig.__struct_fields__)
        chosen = settings.Settings(rank=settings.RankConfig(**{rank.pop(): [] if repeats else None}))
        self.recommender = import_module("pipeline.recommender").Recommender(chosen)
        self.columns, self.at = columns, 0

    def step(self, size: int, *marks: Any) -> None:
        """Learn the next events."""
        chunk = slice(self.at, self.at + size)
        users, items, types, times_ms = (column[chunk] for column in self.columns)
        size, now_ms = len(users), int(times_ms[-1])
        events = self._batch.Events(
            users, items, types, [None] * size, times_ms, np.full(size, now_ms), np.full(size, np.nan),
            np.zeros(size, np.int32),
        )  # fmt: skip
        span = self._batch.Span("events", 0, self.at, self.at + size)
        raw = self._batch.RawBatch(self.recommender.seq, now_ms, (span,), events, [])
        self.at += size
        self.recommender.step(raw, *marks)

    def run(self, size: int, *marks: Any) -> tuple[float, float]:
        """Return the processor time and the wall time of TIMED batches, in microseconds an event."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(TIMED[size]):
            self.step(size, *marks)
        scale = 1e6 / (TIMED[size] * size)
        return (time.process_time() - cpu_s) * scale, (time.perf_counter() - wall_s) * scale

    def timed(self, size: int) -> dict[str, Any]:
        """Return microseconds an event in batches of this size: the lowest of some repeats, and the stages'
        shares of one more (a look at the clock is not free).
        """
        for _ in range(4):
            self.step(size)
        cpu, wall = (min(times) for times in zip(*(self.run(size) for _ in range(REPEATS)), strict=True))
        stage_s, last_s = Counter[str](), time.perf_counter()

        def mark(stage: str) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            stage_s[stage] += now_s - last_s
            last_s = now_s

        self.run(size, mark)
        shares = {stage: seconds / stage_s.total() for stage, seconds in stage_s.items()}
        return {"cpu": cpu, "wall": wall, "shares": shares}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Return the times of this process's checkout, by batch size."""
    import torch

    torch.set_num_threads(1)
    sizes = task["batches"]
    timed = sum(size * (4 + TIMED[size] * (REPEATS + 1)) for size in sizes)
    columns = made_up(task["items"], timed) if task["items"] else recorded(task["path"], task["warm"] + timed)
    steps = Steps(columns, task["repeats"])
    while steps.at < len(columns.users) - timed:
        steps.step(min(512, len(columns.users) - timed - steps.at))
    return {str(size): steps.timed(size) for size in sizes}


def tasks_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what to measure, by the streams' names."""
    from recorded import BY_NAME, path_of  # not in the process of an older checkout

    common = {"batches": options.batches, "warm": options.warm, "repeats": False}
    tasks = {f"{items} items": common | {"items": items} for items in options.items}
    for name in options.streams.split(",") if options.data else ():
        path = str(path_of(options.data, BY_NAME[name]))
        tasks[name] = common | {"items": 0, "path": path, "repeats": BY_NAME[name].repeats}
    return tasks


def best_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the measurement of least processor time, by batch size."""
    return {size: min((each[size] for each in rounds), key=lambda one: one["cpu"]) for size in rounds[0]}


def show(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Print the tables."""
    stages = sorted({stage for sizes in new.values() for one in sizes.values() for stage in one["shares"]})
    print_head("stream", "batch", "us an event", "wall", "before", "wall", "times as fast", *stages)
    for name, sizes in new.items():
        for size, one in sizes.items():
            before = old.get(name, {}).get(size)
            times = [f"{one['cpu']:.1f}", f"{one['wall']:.1f}", "", "", ""]
            if before:
                times[2:] = [
                    f"{before['cpu']:.1f}", f"{before['wall']:.1f}", f"{before['cpu'] / one['cpu']:.2f}",
                ]  # fmt: skip
            print_row(name, size, *times, *(f"{one['shares'].get(stage, 0.0):.0%}" for stage in stages))


def compared(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the times of this checkout, `new`, and with --against those of the `old` one."""
    with ExitStack() as stack:
        codes = {"new": HERE}
        if options.against:
            codes = {"old": stack.enter_context(checkout(options.against)), **codes}
        found: dict[str, dict[str, Any]] = {version: {} for version in codes}
        for name, task in tasks_of(options).items():
            rounds: dict[str, list[Any]] = {version: [] for version in codes}
            for _ in range(options.rounds):
                for version, code in codes.items():
                    rounds[version].append(run_on(code, [__file__, "--measure", json.dumps(task)]))
            for version, each in rounds.items():
                found[version][name] = best_of(each)
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--against", help="a commit, or the folder of a checkout")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--items", type=integers, default=[10_000, 340_000], help="of the made-up streams; empty: none"
    )
    parser.add_argument("--data", default=os.environ.get("AFRESH_DATA"))
    parser.add_argument("--streams", default="globo,movietweetings")
    parser.add_argument("--warm", type=int, default=20_000, help="events before the clock")
    parser.add_argument("--batches", type=integers, default=[512, 64, 16, 1])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    found = compared(options)
    new, old = found["new"], found.get("old", {})
    show(new, old)
    speedup = {
        f"{size}@{name.removesuffix(' items')}": round(old[name][size]["cpu"] / one["cpu"], 3)
        for name, sizes in new.items() if name in old for size, one in sizes.items()
    }  # fmt: skip
    print_result(speedup=speedup, us_per_event=new, before=old)


if __name__ == "__main__":
    main()

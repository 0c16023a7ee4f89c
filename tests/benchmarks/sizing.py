"""What a user, an item and an event cost in memory, disk and time; and from that, a table of sizes.

    python tests/benchmarks/sizing.py [--rows 65000] [--rate EVENTS_PER_S]

Fills recommenders of the default configuration in processes of their own: few users and items, many users,
many items, many of both. Weighs the state's columns (`pipeline.state.store.nbytes`), the process (resident,
and its peak with a checkpoint being saved), the checkpoint's files, the journal and the rankings. The first
three give the cost of a row; the fourth is predicted from them and compared. --rate is what one worker
takes (throughput.py; default 8,900). Tables double: rows count up to the next power of two. Prints tables
in Markdown and one last JSON line.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bench import parser_of, print_head, print_result, print_row
from harness.streams import START_MS, Batches, Event

from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.journal import Entry, Journal
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads
from pipeline.warm_up import warm_up

FEW, EACH, BATCH, TIMED = 1_000, 3, 512, 20
SHARE = 0.6  # of what a worker can take: room for a burst, and to catch up after a restart
SIZES = (  # users, items, events a second
    (10_000, 1_000, 100),
    (100_000, 10_000, 1_000),
    (1_000_000, 50_000, 5_000),
    (1_000_000, 500_000, 5_000),
    (5_000_000, 100_000, 20_000),
)
MIB, GIB = 2**20, 2**30
TABLE = (  # title, key of `fill`, unit, format
    ("rows of users", "user_rows", 1, ",.0f"),
    ("rows of items", "item_rows", 1, ",.0f"),
    ("columns of users, MiB", "user_columns", MIB, ".1f"),
    ("columns of items, MiB", "item_columns", MIB, ".1f"),
    ("resident, MiB", "resident", MIB, ".0f"),
    ("peak, MiB", "peak", MIB, ".0f"),
    ("checkpoint, MiB", "checkpoint", MIB, ".1f"),
    ("saving it, s", "checkpoint_s", 1, ".2f"),
    ("journal, bytes an event", "journal_per_event", 1, ".2f"),
    ("ranking, bytes", "ranking", 1, ".0f"),
    ("steps alone, events/s", "events_per_s", 1, ",.0f"),
)


def events_of(users: int, items: int, batches: int, rng: np.random.Generator) -> list[list[Event]]:
    """Return batches in which every user and every item comes about equally often."""
    count = batches * BATCH
    who = np.concatenate([rng.permutation(users) for _ in range(math.ceil(count / users))])
    what = np.concatenate([rng.permutation(items) for _ in range(math.ceil(count / items))])
    made = [
        Event(f"user-{user:08d}", f"item-{item:08d}", time_ms=START_MS + n)
        for n, (user, item) in enumerate(zip(who[:count].tolist(), what[:count].tolist(), strict=True))
    ]
    return [made[start : start + BATCH] for start in range(0, count, BATCH)]


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def fill(users: int, items: int) -> dict[str, Any]:
    """Fill a recommender; return what it weighs."""
    limit_threads(1)
    settings = Settings()
    warm_up(settings)
    recommender, batches = Recommender(settings), Batches()
    rng = np.random.default_rng(0)
    for events in events_of(users, items, math.ceil(EACH * users / BATCH), rng):
        recommender.catch_up(batches(events))  # users' state is the same as after a step, and sooner
    batches.seq = recommender.seq
    filling = math.ceil(items / BATCH)  # a step for every item: its counts and embedding are written to
    rankings = 0.0
    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        journal.lock()
        journal.open(0)
        for number, events in enumerate(events_of(users, items, filling + TIMED, rng)):
            if number == filling:
                began = time.perf_counter()
            raw = batches(events)
            journal.append(Entry(raw.seq, raw.now_ms, raw.spans, [(0, len(events))]))
            outcome = recommender.step(raw)
            if number >= filling:
                rankings += sum(len(encode(ranking)) for ranking in outcome.rankings) / len(outcome.rankings)
        seconds = time.perf_counter() - began
        journaled = sum(path.stat().st_size for path in journal.segments())
        journal.close()
        before = resident()
        began = time.perf_counter()
        Checkpoints(UrlFolder(f"{folder}/state"), settings).save(recommender, 0, START_MS)
        saved_s = time.perf_counter() - began
        saved = sum(path.stat().st_size for path in Path(folder, "state").rglob("*") if path.is_file())
    state = recommender.state
    columns_bytes = Counter[str]()
    for store in (*state.stores.values(), state.users, state.items):
        for column in store.columns().values():
            columns_bytes[column.axis] += column.data.nbytes
    return {
        "user_rows": state.users.capacity,
        "item_rows": state.items.capacity,
        "user_columns": columns_bytes["user"],
        "item_columns": columns_bytes["item"],
        "resident": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "checkpoint": saved,
        "checkpoint_s": saved_s,
        "journal_per_event": journaled / ((filling + TIMED) * BATCH),
        "ranking": rankings / TIMED,
        "events_per_s": TIMED * BATCH / seconds,
    }


def measured(users: int, items: int) -> dict[str, Any]:
    """Fill one in a process of its own."""
    command = [sys.executable, __file__, "--fill", str(users), str(items)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows(count: int) -> int:
    """Return how many rows a table has that holds so many ids."""
    return max(1024, 1 << math.ceil(math.log2(count + 1)))


class Costs:
    """Linear costs, of rows of users and of items, from three measurements."""

    def __init__(self, few: dict[str, Any], users: dict[str, Any], items: dict[str, Any], what: str) -> None:
        self.user = (users[what] - few[what]) / (users["user_rows"] - few["user_rows"])
        self.item = (items[what] - few[what]) / (items["item_rows"] - few["item_rows"])
        self.base = few[what] - self.user * few["user_rows"] - self.item * few["item_rows"]

    def of(self, user_rows: int, item_rows: int) -> float:
        """Return the cost of tables with so many rows."""
        return self.base + self.user * user_rows + self.item * item_rows


def show_sizes(peak: Costs, saved: Costs, journal: float, ranking: float, rate: float) -> None:
    """Print the table of sizes."""
    settings = Settings().checkpoint
    print()
    print_head(
        "users", "items", "events/s", "workers", "memory each", "cores", "disk", "rankings", "partitions"
    )
    for users, items, speed in SIZES:
        workers = max(1, math.ceil(speed / (rate * SHARE)))
        memory = 1.2 * peak.of(rows(math.ceil(users / workers)), rows(items)) / GIB
        kept = settings.keep + 1  # one more while the newest is being written
        model, shards = saved.of(0, rows(items)), saved.user * users
        disk = kept * (workers * model + shards) + kept * settings.interval_s * speed * journal
        print_row(
            f"{users:,}", f"{items:,}", f"{speed:,}", workers, f"{memory:.1f} GiB", f"{1.25 * workers:g}",
            f"{disk / GIB:.1f} GiB", f"{speed * ranking / MIB:.1f} MiB/s", max(12, 2 * workers),
        )  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=65_000)
    parser.add_argument("--rate", type=float, default=8_900.0)
    parser.add_argument("--fill", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        print(json.dumps(fill(*options.fill)))
        return
    many = options.rows
    measured(FEW, FEW)  # compiles kernels, where they are not kept: that takes 100 MiB once
    sizes = ((FEW, FEW), (many, FEW), (FEW, many), (many, many))
    few, users, items, both = found = [measured(*size) for size in sizes]
    print_head("", "few", "many users", "many items", "many of both")
    for title, key, unit, form in TABLE:
        print_row(title, *(format(one[key] / unit, form) for one in found))
    costs = {what: Costs(few, users, items, what) for what in ("resident", "peak", "checkpoint")}
    columns = {
        "user": users["user_columns"] / users["user_rows"],
        "item": items["item_columns"] / items["item_rows"],
    }
    print()
    print_head("bytes a row", "user", "item", "beside them, MiB")
    print_row("columns", f"{columns['user']:,.0f}", f"{columns['item']:,.0f}", "")
    for what, cost in costs.items():
        print_row(what, f"{cost.user:,.0f}", f"{cost.item:,.0f}", f"{cost.base / MIB:,.0f}")
    predicted = costs["peak"].of(both["user_rows"], both["item_rows"])
    print(f"\npeak of many of both: {both['peak'] / MIB:.0f} MiB, predicted {predicted / MIB:.0f}")
    show_sizes(costs["peak"], costs["checkpoint"], few["journal_per_event"], few["ranking"], options.rate)
    result = {f"columns_{axis}": round(size) for axis, size in columns.items()}
    for what, cost in costs.items():
        result |= {f"{what}_{part}": round(getattr(cost, part)) for part in ("user", "item", "base")}
    print_result(**result, predicted_over_measured=round(predicted / both["peak"], 3))


if __name__ == "__main__":
    main()

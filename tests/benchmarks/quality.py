"""The default model against the best baseline on recorded streams: the table of what it has to reach.

    python tests/benchmarks/quality.py --data FOLDER [--streams globo,FOLDER:repeats]
        [--events 40000] [--batch 128] [--models markov,item_knn] [--skip alone,batches]

Of each stream: (1) all models on the same events, each event predicted before it is learned; a baseline gets
the best setting of its printed grid in hindsight, once for all users, once for cold and once for warm ones
(five or more earlier events), whichever is best there; (2) the default model alone, for its speed, lists
included, in two threads as `afresh evaluate` has it; (3) the default model in batches of 1, 16, 128 and 512
on the first 20,000 events, NDCG@10 over popularity's in the same batches. Progress goes to stderr; the last
line is JSON. Exit code 0 whatever the figures say: what is missed is told.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.app.cpu_count import use_threads
from recorded import NOW_MS, Stream, add_options, chosen, events_of, settings_for

from pipeline.service.clock import SystemClock
from pipeline.service.prequential import BASELINES, Evaluation, Line, Result, compared
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads

SEGMENTS = ("all", "cold", "warm")
BATCHES, BATCH_EVENTS = (1, 16, 128, 512), 20_000
EACH, MEAN, COLD, WARM, EVENTS_PER_S, SPREAD = 1.05, 1.16, 0.98, 1.0, 5_000, 0.05  # the bars
PROGRESS_S = 20


def ndcg(line: Line, segment: str = "all") -> float:
    """Return a model's NDCG@10 in a segment."""
    figures: Any = line.figures if segment == "all" else line.figures[segment]  # type: ignore[literal-required]
    return float(figures["ndcg@10"])


def run(data: Path, stream: Stream, models: list[str], events: int, batch: int) -> Result:
    """Judge these models on a stream."""
    settings = settings_for(stream, Settings())
    evaluation = Evaluation(settings, compared(settings, models), SystemClock())
    told_s, what = time.monotonic(), f"{stream.name}, batches of {batch}"

    def watch(done: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            print(f"{what}: {done:,} events", file=sys.stderr, flush=True)

    evaluation.learn(events_of(data, stream, events, batch), NOW_MS, watch)
    return evaluation.result()


def table_row(stream: str, result: Result) -> dict[str, Any]:
    """Return what a stream's run says of the default model and of what it is compared with."""
    served, rivals = result.lines[0], result.lines[1:]
    best = {segment: max(rivals, key=lambda line: ndcg(line, segment)) for segment in SEGMENTS}
    return {
        "stream": stream,
        "events": result.events,
        "default": {segment: ndcg(served, segment) for segment in SEGMENTS},
        "best": {
            segment: {"name": line.variant.name, "ndcg@10": ndcg(line, segment)}
            for segment, line in best.items()
        },
        "ratio": {s: ndcg(served, s) / max(ndcg(best[s], s), 1e-9) for s in SEGMENTS},
        "last_quarter": served.quarters[-1]["ndcg@10"] / max(best["all"].quarters[-1]["ndcg@10"], 1e-9),
        "baselines": {
            name: {"ndcg@10": ndcg(line), "settings": line.settings}
            for name, line in result.best().items()
            if line is not served
        },
        "grid": {line.variant.name: [round(ndcg(line, s), 5) for s in SEGMENTS] for line in rivals},
        "seconds": round(result.seconds, 1),
    }


def by_batch(data: Path, stream: Stream, events: int) -> dict[str, float]:
    """Return NDCG@10 over popularity's by the size of batches."""
    shares = {}
    for batch in BATCHES:
        lines = run(
            data, stream, ["attention", "popularity"], min(events or BATCH_EVENTS, BATCH_EVENTS), batch
        )
        best = lines.best()
        shares[str(batch)] = ndcg(best["attention"]) / max(ndcg(best["popularity"]), 1e-9)
    return shares


def spread(shares: dict[str, float]) -> float:
    """Return by how much the largest share passes the smallest.

    >>> round(spread({"1": 1.0, "16": 1.04}), 2)
    0.04
    """
    return max(shares.values()) / max(min(shares.values()), 1e-9) - 1


def missed(rows: list[dict[str, Any]], mean: float) -> list[str]:
    """Say which bars are missed, one line each."""
    out = []
    for row in rows:
        stream, ratio = row["stream"], row["ratio"]
        for segment, bar in (("all", EACH), ("cold", COLD), ("warm", WARM)):
            if not ratio[segment] > bar:
                best = row["best"][segment]["name"]
                out.append(f"{stream}, {segment} users: {ratio[segment]:.3f} of {best}, expected above {bar}")
        if row.get("alone", EVENTS_PER_S) < EVENTS_PER_S:
            out.append(f"{stream}: {row['alone']:,.0f} events/s alone, expected {EVENTS_PER_S:,}")
        if spread(row.get("batches", {"": 1.0})) > SPREAD:
            out.append(f"{stream}: batches differ by {spread(row['batches']):.1%}, expected {SPREAD:.0%}")
    if mean < MEAN:
        out.append(f"geometric mean {mean:.3f}, expected {MEAN}")
    return out


def show_grid(result: Result) -> None:
    """Print every setting of every baseline, the best first."""
    print("\n| baseline and setting | NDCG@10 | cold | warm | HR@10 | events/s |")
    print("|---|---|---|---|---|---|")
    for line in sorted(result.lines[1:], key=lambda line: -ndcg(line)):
        figures = [f"{ndcg(line, segment):.4f}" for segment in SEGMENTS]
        rate = result.events / max(line.seconds, 1e-9)
        print(f"| {line.variant.name} | {' | '.join(figures)} | {line.figures['hr@10']:.4f} | {rate:,.0f} |")
    print(flush=True)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        "| stream | events | NDCG@10 | best baseline | its NDCG@10 | ratio | last quarter | cold | warm "
        "| events/s alone | over popularity, batches of " + ", ".join(map(str, BATCHES)) + " |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        best, ratio, alone = row["best"]["all"], row["ratio"], row.get("alone")
        shares = ", ".join(f"{share:.3f}" for share in row.get("batches", {}).values())
        print(
            f"| {row['stream']} | {row['events']:,} | {row['default']['all']:.4f} | {best['name']} "
            f"| {best['ndcg@10']:.4f} | {ratio['all']:.3f} | {row['last_quarter']:.3f} "
            f"| {ratio['cold']:.3f} | {ratio['warm']:.3f} | {'-' if alone is None else f'{alone:,.0f}'} "
            f"| {shares or '-'} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, events=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--models", default=",".join(BASELINES), help="baselines (default: all)")
    parser.add_argument("--skip", default="", help="alone,batches: leave these parts out")
    options = parser.parse_args()
    skipped = set(filter(None, options.skip.split(",")))
    if skipped - {"alone", "batches"}:
        parser.error(f"--skip {options.skip}: expected alone, batches, or both")
    limit_threads(1)
    began_s, rows = time.perf_counter(), []
    for stream in chosen(options, parser):
        names = ["attention", *options.models.split(",")]
        result = run(options.data, stream, names, options.events, options.batch)
        row = table_row(stream.name, result)
        print(f"\n{stream.name}: {result.events:,} events, {result.seconds:.0f} s", end="")
        show_grid(result)
        if "alone" not in skipped:
            use_threads(2)
            alone = run(options.data, stream, ["attention"], options.events, options.batch)
            use_threads(1)
            row["alone"] = round(alone.events / alone.seconds, 1)
        if "batches" not in skipped:
            row["batches"] = by_batch(options.data, stream, options.events)
        rows.append(row)
    mean = math.exp(sum(math.log(max(row["ratio"]["all"], 1e-9)) for row in rows) / len(rows))
    show(rows)
    print(f"\ngeometric mean of the ratios: {mean:.3f}")
    for line in missed(rows, mean):
        print(f"missed: {line}")
    print(json.dumps({
        "batch": options.batch, "geometric_mean": mean, "rows": rows, "missed": missed(rows, mean),
        "seconds": round(time.perf_counter() - began_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

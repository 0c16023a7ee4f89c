"""Quality of the default model on recorded streams: beside the best baseline, or beside an older commit.

    python tests/benchmarks/quality.py --data FOLDER [--streams globo,FOLDER:repeats]
        [--events 40000] [--batch 128] [--models markov,item_knn] [--skip alone,batches]
    python tests/benchmarks/quality.py --data FOLDER --against REV [--seeds 0,1,2] [--batches 1,16,128,512]

The first form, of each stream: (1) all models on the same events, each event predicted before it is learned;
a baseline gets the best setting of its printed grid in hindsight, once for all users, once for cold and once
for warm ones (five or more earlier events); (2) the default model alone, for its speed, lists included; (3)
the default model in batches of several sizes on the first 20,000 events, NDCG@10 over popularity's in the
same batches. The second form runs `evaluate` on both commits in turns, each in a process with one BLAS
thread, and prints NDCG@10 of the default model before and now and the ratio of each model; with --batches
also those of the first 20,000 events in batches of these sizes. The last line is JSON. Exit code 0 whatever
the ratios are: missed bars are printed.
"""

import argparse
import json
import math
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from recorded import NOW_MS, Stream, add_options, chosen, events_of, path_of, settings_for
from versions import HERE, checkout, run_on

from pipeline.service.clock import SystemClock
from pipeline.service.prequential import BASELINES, Evaluation, Line, Result, compared
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads

SEGMENTS = ("all", "cold", "warm")
BATCHES, BATCH_EVENTS = "1,16,128,512", 20_000
EACH, MEAN, COLD, WARM, EVENTS_PER_S, SPREAD = 1.05, 1.16, 0.98, 1.0, 5_000, 0.05  # the bars
PROGRESS_S = 20


class Run(NamedTuple):
    """One run of `evaluate` in a comparison of commits. `events`: 0 for the whole stream."""

    events: int
    batch: int
    seed: int
    models: tuple[str, ...]


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean.

    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def ndcg(line: Line, segment: str = "all") -> float:
    """Return a model's NDCG@10 in a segment."""
    figures: Any = line.figures if segment == "all" else line.figures[segment]  # type: ignore[literal-required]
    return float(figures["ndcg@10"])


def run(data: Path, stream: Stream, models: list[str], events: int, batch: int) -> Result:
    """Evaluate these models on a stream."""
    settings = settings_for(stream, Settings())
    evaluation = Evaluation(settings, compared(settings, models), SystemClock())
    logged_s, what = time.monotonic(), f"{stream.name}, batches of {batch}"

    def watch(done: int) -> None:
        nonlocal logged_s
        if time.monotonic() - logged_s > PROGRESS_S:
            logged_s = time.monotonic()
            print(f"{what}: {done:,} events", file=sys.stderr, flush=True)

    evaluation.learn(events_of(data, stream, events, batch), NOW_MS, watch)
    return evaluation.result()


def table_row(stream: str, result: Result) -> dict[str, Any]:
    """Return the metrics of the default model and of what it is compared with on a stream."""
    served, baselines = result.lines[0], result.lines[1:]
    best = {segment: max(baselines, key=lambda line: ndcg(line, segment)) for segment in SEGMENTS}
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
        "grid": {line.variant.name: [round(ndcg(line, s), 5) for s in SEGMENTS] for line in baselines},
        "seconds": round(result.seconds, 1),
    }


def by_batch(data: Path, stream: Stream, events: int, sizes: list[int]) -> dict[str, float]:
    """Return NDCG@10 over popularity's by the size of batches."""
    shares = {}
    for batch in sizes:
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
    """Return which bars are missed, one line each."""
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
        "| events/s alone | over popularity, batches of " + " " + ", ".join(rows[0].get("batches", {})) + " |"
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


def evaluated(code: Path, path: Path, stream: Stream, run: Run) -> dict[str, Any]:
    """Return the document of `evaluate` on the code of a checkout."""
    command = [
        "-m", "pipeline.app.cli", "evaluate", str(path), "--json", "--batch", str(run.batch),
        "--set", f"model.seed={run.seed}", "--models", ",".join(run.models),
    ]  # fmt: skip
    command += ["--events", str(run.events)] if run.events else []
    document: dict[str, Any] = run_on(code, command + ["--repeats"] * stream.repeats)
    return document


def against(options: argparse.Namespace, streams: list[Stream]) -> None:
    """Compare with an older commit, in turns; print NDCG@10 by stream, seed and batch size."""
    models = ("attention", *options.models.split(","))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sizes = [int(size) for size in filter(None, options.batches.split(","))]
    few = min(options.events or BATCH_EVENTS, BATCH_EVENTS)
    runs = [Run(options.events, options.batch, seed, models) for seed in seeds]
    runs += [Run(few, size, seeds[0], ("attention", "popularity")) for size in sizes]
    rows: list[dict[str, Any]] = []
    print(
        "| stream | seed | batch | NDCG@10 before | now | ratio | baselines |\n|---|---|---|---|---|---|---|"
    )
    with checkout(options.against) as old:
        for stream, each in product(streams, runs):
            run = each._replace(events=each.events or stream.whole)
            path = path_of(options.data, stream).resolve()
            before, now = (evaluated(code, path, stream, run)["models"] for code in (old, HERE))
            ndcg = {name: (before[name]["ndcg@10"], now[name]["ndcg@10"]) for name in run.models}
            ratio = {name: late / max(early, 1e-9) for name, (early, late) in ndcg.items()}
            rows.append({"stream": stream.name, **run._asdict(), "ndcg@10": ndcg, "ratio": ratio})
            early, late = ndcg["attention"]
            others = ", ".join(f"{name} {value:.4f}" for name, value in ratio.items() if name != "attention")
            print(
                f"| {stream.name} | {run.seed} | {run.batch} | {early:.5f} | {late:.5f} "
                f"| {ratio['attention']:.4f} | {others} |", flush=True,
            )  # fmt: skip
    whole = [row["ratio"] for row in rows if row["models"] == models]
    means = {name: geometric_mean([ratio[name] for ratio in whole]) for name in whole[0]}
    for name, value in means.items():
        print(f"{name}: geometric mean of the ratios {value:.4f}")
    print(json.dumps({"against": options.against, "geometric_mean": means, "rows": rows}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, events=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--models", default=",".join(BASELINES), help="baselines (default: all)")
    parser.add_argument("--skip", default="", help="alone,batches: leave these parts out")
    parser.add_argument("--against", help="a commit, or the folder of a checkout")
    parser.add_argument("--seeds", default="0", help="of a comparison of commits, by comma")
    parser.add_argument("--batches", nargs="?", const=BATCHES, default="", help=f"sizes (alone: {BATCHES})")
    options = parser.parse_args()
    skipped = set(filter(None, options.skip.split(",")))
    if skipped - {"alone", "batches"}:
        parser.error(f"--skip {options.skip}: expected alone, batches, or both")
    if options.against:
        against(options, chosen(options, parser))
        return
    limit_threads(1)
    began_s, rows = time.perf_counter(), []
    for stream in chosen(options, parser):
        names = ["attention", *options.models.split(",")]
        result = run(options.data, stream, names, options.events, options.batch)
        row = table_row(stream.name, result)
        print(f"\n{stream.name}: {result.events:,} events, {result.seconds:.0f} s", end="")
        show_grid(result)
        if "alone" not in skipped:
            alone = run(options.data, stream, ["attention"], options.events, options.batch)
            row["alone"] = round(alone.events / alone.seconds, 1)
        if "batches" not in skipped:
            sizes = [int(size) for size in (options.batches or BATCHES).split(",")]
            row["batches"] = by_batch(options.data, stream, options.events, sizes)
        rows.append(row)
    mean = geometric_mean([row["ratio"]["all"] for row in rows])
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

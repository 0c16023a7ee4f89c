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
also those of the first 20,000 events in batches of these sizes. The last line is JSON.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bench import (
    HERE,
    checkout,
    geometric_mean,
    integers,
    parser_of,
    print_head,
    print_result,
    print_row,
    run_on,
)
from recorded import NOW_MS, Stream, add_options, chosen, events_of, path_of, settings_for

from pipeline.service.clock import SystemClock
from pipeline.service.prequential import BASELINES, Evaluation, Line, Result, compared
from pipeline.settings import Settings
from pipeline.thread_limits import limit_threads

SEGMENTS = ("all", "cold", "warm")
BATCHES, BATCH_EVENTS = "1,16,128,512", 20_000


class Run(NamedTuple):
    """One run of `evaluate` in a comparison of commits. `events`: 0 for the whole stream."""

    events: int
    batch: int
    seed: int
    models: tuple[str, ...]


def ndcg(line: Line, segment: str = "all") -> float:
    """Return a model's NDCG@10 in a segment."""
    figures: Any = line.figures if segment == "all" else line.figures[segment]  # type: ignore[literal-required]
    return float(figures["ndcg@10"])


def ratio_of(value: float, other: float) -> float:
    return value / max(other, 1e-9)


def run(data: Path, stream: Stream, models: list[str], events: int, batch: int) -> Result:
    """Evaluate these models on a stream."""
    settings = settings_for(stream, Settings())
    evaluation = Evaluation(settings, compared(settings, models), SystemClock())
    evaluation.learn(events_of(data, stream, events, batch), NOW_MS)
    return evaluation.result()


def table_row(stream: str, result: Result) -> dict[str, Any]:
    """Return the metrics of the default model and of the baselines on a stream."""
    served, baselines = result.lines[0], result.lines[1:]
    best = {segment: max(baselines, key=lambda line: ndcg(line, segment)) for segment in SEGMENTS}
    last, last_best = (line.quarters[-1]["ndcg@10"] for line in (served, best["all"]))
    return {
        "stream": stream,
        "events": result.events,
        "default": {segment: ndcg(served, segment) for segment in SEGMENTS},
        "best": {
            segment: {"name": line.variant.name, "ndcg@10": ndcg(line, segment)}
            for segment, line in best.items()
        },
        "ratio": {
            segment: ratio_of(ndcg(served, segment), ndcg(best[segment], segment)) for segment in SEGMENTS
        },
        "last_quarter": ratio_of(last, last_best),
        "baselines": {
            name: {"ndcg@10": ndcg(line), "settings": line.settings}
            for name, line in result.best().items()
            if line is not served
        },
        "grid": {line.variant.name: [round(ndcg(line, each), 5) for each in SEGMENTS] for line in baselines},
        "seconds": round(result.seconds, 1),
    }


def by_batch(data: Path, stream: Stream, events: int, sizes: list[int]) -> dict[str, float]:
    """Return NDCG@10 over popularity's by the size of batches."""
    ratios = {}
    for batch in sizes:
        best = run(data, stream, ["attention", "popularity"], few_of(events), batch).best()
        ratios[str(batch)] = ratio_of(ndcg(best["attention"]), ndcg(best["popularity"]))
    return ratios


def few_of(events: int) -> int:
    """Return how many events are read in batches of several sizes."""
    return min(events or BATCH_EVENTS, BATCH_EVENTS)


def show_grid(result: Result) -> None:
    """Print every setting of every baseline, the best first."""
    print_head("baseline and setting", "NDCG@10", "cold", "warm", "HR@10", "events/s")
    for line in sorted(result.lines[1:], key=lambda line: -ndcg(line)):
        values = [f"{ndcg(line, segment):.4f}" for segment in SEGMENTS]
        rate = f"{ratio_of(result.events, line.seconds):,.0f}"
        print_row(line.variant.name, *values, f"{line.figures['hr@10']:.4f}", rate)
    print(flush=True)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print_head(
        "stream", "events", "NDCG@10", "best baseline", "its NDCG@10", "ratio", "last quarter", "cold",
        "warm", "events/s alone", f"over popularity, batches of {', '.join(rows[0].get('batches', {}))}",
    )  # fmt: skip
    for row in rows:
        best, ratio, alone = row["best"]["all"], row["ratio"], row.get("alone")
        ratios = (ratio["all"], row["last_quarter"], ratio["cold"], ratio["warm"])
        print_row(
            row["stream"], f"{row['events']:,}", f"{row['default']['all']:.4f}", best["name"],
            f"{best['ndcg@10']:.4f}", *(f"{value:.3f}" for value in ratios),
            "-" if alone is None else f"{alone:,.0f}",
            ", ".join(f"{value:.3f}" for value in row.get("batches", {}).values()) or "-",
        )  # fmt: skip


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
    runs = [Run(options.events, options.batch, seed, models) for seed in options.seeds]
    runs += [
        Run(few_of(options.events), size, options.seeds[0], ("attention", "popularity"))
        for size in options.batches
    ]
    rows: list[dict[str, Any]] = []
    print_head("stream", "seed", "batch", "NDCG@10 before", "now", "ratio", "baselines")
    with checkout(options.against) as old:
        for stream, each in product(streams, runs):
            run = each._replace(events=each.events or stream.whole)
            path = path_of(options.data, stream).resolve()
            before, now = (evaluated(code, path, stream, run)["models"] for code in (old, HERE))
            ndcg = {name: (before[name]["ndcg@10"], now[name]["ndcg@10"]) for name in run.models}
            ratio = {name: ratio_of(late, early) for name, (early, late) in ndcg.items()}
            rows.append({"stream": stream.name, **run._asdict(), "ndcg@10": ndcg, "ratio": ratio})
            values = [f"{value:.5f}" for value in ndcg["attention"]]
            others = ", ".join(f"{name} {value:.4f}" for name, value in ratio.items() if name != "attention")
            print_row(stream.name, run.seed, run.batch, *values, f"{ratio['attention']:.4f}", others)
    whole = [row["ratio"] for row in rows if row["models"] == models]
    means = {name: geometric_mean(ratio[name] for ratio in whole) for name in models}
    for name, value in means.items():
        print(f"{name}: geometric mean of the ratios {value:.4f}")
    print_result(against=options.against, geometric_mean=means, rows=rows)


def beside_baselines(options: argparse.Namespace, streams: list[Stream]) -> None:
    """Compare with the baselines; print a table of each stream, and one of all."""
    limit_threads(1)
    rows = []
    for stream in streams:
        names = ["attention", *options.models.split(",")]
        result = run(options.data, stream, names, options.events, options.batch)
        row = table_row(stream.name, result)
        print(f"\n{stream.name}: {result.events:,} events, {result.seconds:.0f} s")
        show_grid(result)
        if "alone" not in options.skip:
            alone = run(options.data, stream, ["attention"], options.events, options.batch)
            row["alone"] = round(alone.events / alone.seconds, 1)
        if "batches" not in options.skip:
            sizes = options.batches or integers(BATCHES)
            row["batches"] = by_batch(options.data, stream, options.events, sizes)
        rows.append(row)
    mean = geometric_mean(row["ratio"]["all"] for row in rows)
    show(rows)
    print(f"\ngeometric mean of the ratios: {mean:.3f}")
    print_result(batch=options.batch, geometric_mean=mean, rows=rows)


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser, events=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--models", default=",".join(BASELINES), help="baselines (default: all)")
    parser.add_argument("--skip", default="", help="alone,batches: leave these parts out")
    parser.add_argument("--against", help="a commit, or the folder of a checkout")
    parser.add_argument("--seeds", type=integers, default=[0], help="of a comparison of commits, by comma")
    parser.add_argument(
        "--batches", type=integers, nargs="?", const=integers(BATCHES), default=[],
        help=f"sizes (alone: {BATCHES})",
    )  # fmt: skip
    options = parser.parse_args()
    options.skip = options.skip.split(",") if options.skip else []
    if set(options.skip) - {"alone", "batches"}:
        parser.error(f"--skip {','.join(options.skip)}: expected alone, batches, or both")
    compare = against if options.against else beside_baselines
    compare(options, chosen(options, parser))


if __name__ == "__main__":
    main()

"""The default model against recent popularity and item-kNN on recorded streams.

    OMP_NUM_THREADS=1 python tests/benchmarks/quality.py --data FOLDER [--events 40000] [--batch 128]

Each stream's first events are predicted, then learned, by all models at once; a baseline gets its best
setting in hindsight. Prints a table, and one JSON line at the end. The target: each ratio 1.03 or more,
their geometric mean 1.10.
"""

import argparse
import json
import math
import time
from typing import Any

import torch
from recorded import NOW_MS, add_options, chosen, events_of, settings_for

from pipeline.run.clock import SystemClock
from pipeline.run.evaluate import Evaluation, Line, compared
from pipeline.settings import Settings

RIVALS = ("recent_popularity", "item_knn")


def row(stream: str, lines: dict[str, Line], seconds: float, events: int) -> dict[str, Any]:
    """Return the figures of one stream."""
    served = next(iter(lines.values()))
    rival = max((lines[name] for name in RIVALS), key=lambda line: line.figures["ndcg@10"])
    ndcg, base = served.figures["ndcg@10"], rival.figures["ndcg@10"]
    return {
        "stream": stream,
        "events": events,
        "model": ndcg,
        "best": rival.variant.name,
        "baseline": base,
        "ratio": ndcg / base,
        "cold": served.figures["cold"]["ndcg@10"],
        "warm": served.figures["warm"]["ndcg@10"],
        "last_quarter": served.quarters[-1]["ndcg@10"] / max(rival.quarters[-1]["ndcg@10"], 1e-9),
        "baselines": {name: line.figures["ndcg@10"] for name, line in lines.items()},
        "events_per_s": round(events / seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began_s, rows = time.perf_counter(), []
    print(
        "| stream | attention NDCG@10 | best of recent popularity and item-kNN | its NDCG@10 | ratio "
        "| last quarter | cold | warm | events/s with lists |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for stream in chosen(options, parser):
        settings = settings_for(stream, Settings())
        evaluation = Evaluation(settings, compared(settings), SystemClock())
        evaluation.learn(events_of(options.data, stream, options.events, options.batch), NOW_MS)
        result = evaluation.result()
        got = row(stream.name, result.best(), result.seconds, result.events)
        rows.append(got)
        print(
            "| {stream} | {model:.4f} | {best} | {baseline:.4f} | {ratio:.3f} | {last_quarter:.3f} "
            "| {cold:.4f} | {warm:.4f} | {events_per_s:,.0f} |".format(**got),
            flush=True,
        )
    mean = math.exp(sum(math.log(each["ratio"]) for each in rows) / len(rows))
    print(f"\ngeometric mean of the ratios: {mean:.3f}")
    print(json.dumps({
        "batch": options.batch, "geometric_mean": mean, "rows": rows,
        "seconds": round(time.perf_counter() - began_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

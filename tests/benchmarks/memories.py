"""What the default model's quality owes to each of its parts: one thing is changed at a time.

    OMP_NUM_THREADS=1 python tests/benchmarks/memories.py --data FOLDER [--groups slots,negatives]

Groups: slots (successors an item keeps), negatives (sampled), parts (attention, memories, gate), features
(one left out), batch, seed, size. Each trial predicts, then learns the first events of each stream, in
batches of 128 where it says nothing else. Prints NDCG@10 and the geometric mean of the ratios to the
product's defaults, and one JSON line at the end.
"""

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from recorded import NOW_MS, Stream, add_options, chosen, events_of, settings_for

from pipeline.rank import pools
from pipeline.recommender import Recommender
from pipeline.run.clock import SystemClock
from pipeline.run.evaluate import Evaluation, Variant
from pipeline.settings import ModelConfig, Settings
from pipeline.state import state
from pipeline.state.successors import SLOTS, Successors
from pipeline.train import memories, streaming_attention
from pipeline.train.streaming_attention import StreamingAttention

ALL = 1 << 30  # more rows than any catalogue has
SPARSE_NAMES = {
    "backed-off successors": memories.S_BACKOFF,
    "cosine neighbours": memories.S_COSINE,
    "each newest item's word for itself": memories.S_NAIVE,
    "occurrences of the last item": memories.S_CONTEXT,
    "occurrences, sharper": memories.S_SHARP,
    "stretches like this one": memories.S_NEIGHBOUR,
    "own items, recency": memories.S_OWN,
    "own items, number": memories.S_OFTEN,
    "own returns": memories.S_AGAIN,
}
FEATURES = {
    "popularity share": memories.D_SHARE,
    "recent popularity": memories.D_RECENT,
    "one-day popularity": memories.D_DAY,
    "popularity in the moment's cell": memories.D_CELL,
} | {name: memories.DENSE + feature for name, feature in SPARSE_NAMES.items()}


@dataclass(frozen=True)
class Trial:
    """One change of the defaults. `patches` are (module, name, value) set while it runs."""

    group: str
    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    patches: tuple[tuple[Any, str, Any], ...] = ()
    prepare: Callable[[Recommender], None] = lambda recommender: None
    batch: int = 128


def trials() -> Iterator[Trial]:
    """Yield the trials, the defaults first."""
    yield Trial("defaults", "defaults")
    for slots in (12, 24, 96):
        yield Trial("slots", f"{slots} successors an item", patches=slots_of(slots))
    for negatives in (0, 64, 256, 1024, ALL):
        name = "all (full softmax)" if negatives == ALL else str(negatives)
        yield Trial("negatives", f"{name} negatives", patches=((pools, "NEGATIVES", negatives),))
    yield Trial("parts", "memories and gate, no attention", patches=NO_STEPS, prepare=silence_attention)
    yield Trial("parts", "attention alone (model.memories=none)", ModelConfig(memories="none"))
    yield Trial("parts", "no gate: one blend for all", patches=((memories, "contexts", no_context),))
    for name, feature in FEATURES.items():
        yield Trial("features", f"without {name}", prepare=functools.partial(switch_off, feature=feature))
    for batch in (1, 16, 512):
        yield Trial("batch", f"batches of {batch}", batch=batch)
    for seed in (1, 2):
        yield Trial("seed", f"seed {seed}", ModelConfig(seed=seed))
    for dim, history in ((32, 20), (64, 20), (128, 50)):
        yield Trial("size", f"dim {dim}, history {history}", ModelConfig(dim=dim, history=history))


def slots_of(slots: int) -> tuple[tuple[Any, str, Any], ...]:
    """Return the patch that gives every item's row so many slots."""
    return ((state, "Successors", functools.partial(Successors, slots=slots)),)


NO_STEPS = ((streaming_attention, "EMBEDDING_RATE", 0.0), (streaming_attention, "WEIGHT_RATE", 0.0))


def attention_of(recommender: Recommender) -> StreamingAttention:
    """Return the model behind the stopwatch."""
    model = recommender.models[0]
    inner = getattr(model, "_model", model)
    assert isinstance(inner, StreamingAttention)
    return inner


def silence_attention(recommender: Recommender) -> None:
    """Make every user vector zero; with NO_STEPS it stays so."""
    module = attention_of(recommender).module
    with torch.no_grad():
        module.gamma.zero_()
        module.beta.zero_()


def switch_off(recommender: Recommender, feature: int) -> None:
    """Take one feature out of the logit."""
    gate = attention_of(recommender).gate
    gate.active_F[feature] = 0
    gate.weight.data[feature] = 0


def no_context(user_B: Any, *rest: Any) -> Any:
    """Return a context that tells the gate nothing."""
    return np.zeros((user_B.shape[0], memories.GATE), np.float32)


@contextmanager
def patched(patches: tuple[tuple[Any, str, Any], ...]) -> Iterator[None]:
    """Set module names, and set them back."""
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def run(trial: Trial, stream: Stream, options: argparse.Namespace) -> tuple[float, float]:
    """Return NDCG@10 and the events a second of the model's lessons."""
    settings = settings_for(stream, msgspec.structs.replace(Settings(), model=trial.model))
    # lists have no part in the figures
    settings = msgspec.structs.replace(
        settings, rank=msgspec.structs.replace(settings.rank, k=1, because=False)
    )
    with patched(trial.patches):
        evaluation = Evaluation(settings, [Variant("attention", {})], SystemClock())
        trial.prepare(evaluation.recommender)
        evaluation.learn(events_of(options.data, stream, options.events, trial.batch), NOW_MS)
        (line,) = evaluation.result().lines
    return line.figures["ndcg@10"], options.events / line.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--groups", help="some of them, by comma (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    streams = chosen(options, parser)
    groups = {"defaults", *(options.groups.split(",") if options.groups else [t.group for t in trials()])}
    began_s, rows, base = time.perf_counter(), [], dict[str, float]()
    print(
        "| group | changed | " + " | ".join(stream.name for stream in streams) + " | of defaults | events/s |"
    )
    print("|---|---|" + "---|" * (len(streams) + 2))
    for trial in (each for each in trials() if each.group in groups):
        got = {stream.name: run(trial, stream, options) for stream in streams}
        ndcg = {name: value for name, (value, _) in got.items()}
        base = base or ndcg
        ratio = math.exp(sum(math.log(max(ndcg[name], 1e-9) / base[name]) for name in ndcg) / len(ndcg))
        rate = len(got) / sum(1 / each for _, each in got.values())
        rows.append(
            {"group": trial.group, "trial": trial.name, "ndcg@10": ndcg, "ratio": ratio, "rate": rate}
        )
        cells = " | ".join(f"{value:.4f}" for value in ndcg.values())
        print(f"| {trial.group} | {trial.name} | {cells} | {ratio:.3f} | {rate:,.0f} |", flush=True)
    print(json.dumps({
        "events": options.events, "slots": SLOTS, "negatives": pools.NEGATIVES, "rows": rows,
        "seconds": round(time.perf_counter() - began_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

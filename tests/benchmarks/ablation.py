"""What the default model's quality pending_rankings to each of its parts: one thing is changed at a time.

    python tests/benchmarks/ablation.py --data FOLDER [--groups parts,size] [--seeds 0,1]

Groups: families (one left out), features (one left out), parts (attention, memories, gate), loss (what is
taken for unforeseen), slots (successors an item keeps), negatives (sampled), batch, size. Each predicts,
then learns the first events of each stream, in batches of 128 where it says nothing else, once for each seed;
figures are means over the seeds. Prints NDCG@10 and the geometric mean of the ratios to the product's
defaults; for a family also what its kernel takes, in microseconds a query (an event is two: its lesson and
its user's list), and the share of NDCG@10 that it brings for each. Processor time of the whole run stands
beside. One JSON line at the end.
"""

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from pipeline.features.slots import SHIFT
from pipeline.state.successors import SLOTS, Successors
from recorded import NOW_MS, Stream, add_options, chosen, events_of, settings_for

from pipeline.features import memories, occurrences, own, sessions, successors
from pipeline.features.popularity import dense_columns, priors
from pipeline.models import attention as streaming_attention
from pipeline.models import loss
from pipeline.models.attention import StreamingAttention
from pipeline.ranking import pools
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Variant
from pipeline.settings import ModelConfig, Settings
from pipeline.state import state
from pipeline.state.queries import serving_queries
from pipeline.thread_limits import limit_threads

ALL = 1 << 30  # more rows than any catalogue has
SPARSE_NAMES = {
    "backed-off successors": memories.S_BACKOFF,
    "lift over twenty items": memories.S_LIFT,
    "latest successors": memories.S_LATEST,
    "each newest item's word for itself": memories.S_NAIVE,
    "occurrences of the last item": memories.S_CONTEXT,
    "occurrences, sharper": memories.S_SHARP,
    "sessions that share items": memories.S_SESSION,
    "own items, recency": memories.S_OWN,
    "own items, number": memories.S_OFTEN,
    "own returns": memories.S_AGAIN,
}
FAMILIES = {
    "popularity": (memories.D_LONG, memories.D_RECENT, memories.D_DAY, memories.D_CELL),
    "successors": tuple(
        memories.DENSE + feature
        for feature in (memories.S_BACKOFF, memories.S_LIFT, memories.S_NAIVE, memories.S_LATEST)
    ),
    "occurrences": (memories.DENSE + memories.S_CONTEXT, memories.DENSE + memories.S_SHARP),
    "sessions": (memories.DENSE + memories.S_SESSION,),
    "own": tuple(
        memories.DENSE + feature for feature in (memories.S_OWN, memories.S_OFTEN, memories.S_AGAIN)
    ),
}
FEATURES = {
    "long popularity": memories.D_LONG,
    "recent popularity": memories.D_RECENT,
    "one-day popularity": memories.D_DAY,
    "popularity in the moment's cell": memories.D_CELL,
} | {name: memories.DENSE + feature for name, feature in SPARSE_NAMES.items()}


class Run(NamedTuple):
    """What one trial did on one stream: `event_us` is processor time an event, compilation included."""

    ndcg: float
    event_us: float
    kernel_us: dict[str, float]


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
    for family, features in FAMILIES.items():
        yield Trial("families", f"without {family}", prepare=functools.partial(switch_off, features=features))
    for slots in (12, 24, 96):
        yield Trial("slots", f"{slots} successors an item", patches=slots_of(slots))
    for negatives in (0, 64, 256, 1024, ALL):
        name = "all (full softmax)" if negatives == ALL else str(negatives)
        yield Trial("negatives", f"{name} negatives", patches=((pools, "NEGATIVES", negatives),))
    yield Trial("parts", "memories and gate, no attention", patches=NO_STEPS, prepare=silence_attention)
    yield Trial("parts", "attention alone (model.memories=none)", ModelConfig(memories="none"))
    yield Trial("parts", "no gate: one blend for all", patches=((memories, "contexts", no_context),))
    for name, unforeseen in (("plain cross entropy", 1e-30), (".0003", 3e-4), (".003", 3e-3)):
        yield Trial("loss", f"unforeseen: {name}", patches=((loss, "UNFORESEEN", np.float32(unforeseen)),))
    yield Trial("loss", "unforeseen without a floor", patches=((loss, "FLOOR", np.float32(0)),))
    for name, feature in FEATURES.items():
        yield Trial("features", f"without {name}", prepare=functools.partial(switch_off, features=(feature,)))
    for batch in (1, 16, 512):
        yield Trial("batch", f"batches of {batch}", batch=batch)
    for dim, history in ((32, 20), (64, 20), (128, 50)):
        yield Trial("size", f"dim {dim}, history {history}", ModelConfig(dim=dim, history=history))


def slots_of(slots: int) -> tuple[tuple[Any, str, Any], ...]:
    """Return the patch that gives every item's row so many slots."""
    return ((state, "Successors", functools.partial(Successors, slots=slots)),)


NO_STEPS = ((streaming_attention, "EMBEDDING_RATE", 0.0), (streaming_attention, "WEIGHT_RATE", 0.0))


def attention_of(recommender: Recommender) -> StreamingAttention:
    """Return the model behind the stopwatch."""
    model = recommender.models[0]
    inner = getattr(model, "timed", model)
    assert isinstance(inner, StreamingAttention)
    return inner


def silence_attention(recommender: Recommender) -> None:
    """Make every user vector zero; with NO_STEPS it stays so."""
    module = attention_of(recommender).module
    with torch.no_grad():
        module.gamma.zero_()
        module.beta.zero_()


def switch_off(recommender: Recommender, features: tuple[int, ...]) -> None:
    """Take features out of the logit."""
    gate = attention_of(recommender).gate
    gate.active_F[list(features)] = 0
    gate.weight.data[list(features)] = 0


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


def kernel_us(recommender: Recommender) -> dict[str, float]:
    """Return what each family's kernel takes for a query, over the newest users' moments."""
    state = recommender.state
    users = np.argsort(state.histories.newest_ms.data)[-512:].astype(np.int32)
    queries = serving_queries(state, users)
    counts, held, status, size = (
        state.successors, state.sessions, state.items.status.data, state.items.capacity
    )  # fmt: skip
    tables = [each.data for each in (counts.partner, counts.forward, counts.backward, counts.count)]
    rings = counts.context.data, counts.contexts.data
    latest = state.latest.partner.data, state.latest.stored.data, np.float32(state.latest.scale)
    index = [each.data for each in (held.items, held.number, held.steps, held.visits, held.visited)]
    seen, near = np.zeros(size, np.int64), np.zeros(held.number.data.shape[0], np.float32)
    rows, base = np.zeros(1024, np.int32), itertools.count(1)
    x, prior = np.zeros((1024, memories.SPARSE), np.float32), priors(state.popularity, len(state.items))

    def all_successors(h: Any, at: int) -> None:
        n = successors.speak(0, h, *tables, prior, status, at, seen, rows, x)
        n = successors.speak_of_latest(n, h, *latest, status, at, seen, rows, x)
        successors.speak_from_afar(n, h, *tables, status, at, seen, rows, x)

    found = sessions.scratch(index[3])
    kernels: dict[str, Callable[[Any, int], Any]] = {
        "successors": all_successors,
        "occurrences": lambda h, at: occurrences.speak(0, h, *rings, status, at, seen, rows, x),
        "sessions": lambda h, at: sessions.speak(0, h, -1, *index, near, *found, status, at, seen, rows, x),
        "own": lambda h, at: own.speak(0, h, status, at, seen, rows, x),
        "call": lambda h, at: own.speak(0, h[:0], status, at, seen, rows, x),
    }
    took = {}
    for name, kernel in kernels.items():
        kernel(queries.items_BL[0, : queries.length_B[0]], next(base) << SHIFT)
        began_s = time.process_time()
        for b in range(users.size):
            kernel(queries.items_BL[b, : queries.length_B[b]], next(base) << SHIFT)
        took[name] = (time.process_time() - began_s) * 1e6 / users.size
    call_us = took.pop("call")
    table = np.zeros((size, memories.COLUMNS), np.float32)
    began_s = time.process_time()
    for _ in range(8):
        dense_columns(state.popularity, table)
    popularity_us = (time.process_time() - began_s) * 1e6 / 8 / 128
    took["successors"] -= 2 * call_us  # three kernels
    return {"popularity": popularity_us} | {name: max(us - call_us, 0.0) for name, us in took.items()}


def run(trial: Trial, stream: Stream, options: argparse.Namespace, seed: int) -> Run:
    """Return NDCG@10, the processor time an event, and the families' cost."""
    model = msgspec.structs.replace(trial.model, seed=seed)
    settings = settings_for(stream, msgspec.structs.replace(Settings(), model=model))
    # lists have no part in the figures
    settings = msgspec.structs.replace(
        settings, rank=msgspec.structs.replace(settings.rank, k=1, explain=False)
    )
    with patched(trial.patches):
        evaluation = Evaluation(settings, [Variant("attention", {})], SystemClock())
        trial.prepare(evaluation.recommender)
        began_s = time.process_time()
        evaluation.learn(events_of(options.data, stream, options.events, trial.batch), NOW_MS)
        took_s = time.process_time() - began_s
        result = evaluation.result()
        kernels = kernel_us(evaluation.recommender) if trial.group == "defaults" else {}
    return Run(result.lines[0].figures["ndcg@10"], took_s * 1e6 / result.events, kernels)


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--groups", help="some of them, by comma (default: all)")
    parser.add_argument("--seeds", default="0", help="by comma (default: 0)")
    options = parser.parse_args()
    limit_threads(1)
    streams, seeds = chosen(options, parser), [int(seed) for seed in options.seeds.split(",")]
    groups = {"defaults", *(options.groups.split(",") if options.groups else [t.group for t in trials()])}
    began_s, rows, base = time.perf_counter(), [], dict[str, float]()
    names = " | ".join(stream.name for stream in streams)
    print(f"| group | changed | {names} | of defaults | us an event | kernel, us a query | lost a us |")
    print("|---|---|" + "---|" * (len(streams) + 4))
    kernels: dict[str, float] = {}
    for trial in (each for each in trials() if each.group in groups):
        got = {stream.name: [run(trial, stream, options, seed) for seed in seeds] for stream in streams}
        ndcg = {name: mean([each.ndcg for each in runs]) for name, runs in got.items()}
        base = base or ndcg
        ratio = math.exp(mean([math.log(max(ndcg[name], 1e-9) / base[name]) for name in ndcg]))
        every = [each for runs in got.values() for each in runs]
        if trial.group == "defaults":
            kernels = {name: mean([each.kernel_us[name] for each in every]) for name in every[0].kernel_us}
        cost = kernels.get(trial.name.removeprefix("without ")) if trial.group == "families" else None
        rows.append({
            "group": trial.group, "trial": trial.name, "ndcg@10": ndcg, "ratio": ratio,
            "seeds": {name: [each.ndcg for each in runs] for name, runs in got.items()},
            "event_us": mean([each.event_us for each in every]), "kernel_us": cost,
        })  # fmt: skip
        cells = " | ".join(f"{value:.4f}" for value in ndcg.values())
        told = f"{cost:.1f} | {(1 - ratio) / cost:.4f}" if cost else " | "
        event_us = mean([each.event_us for each in every])
        print(
            f"| {trial.group} | {trial.name} | {cells} | {ratio:.3f} | {event_us:.0f} | {told} |", flush=True
        )
    print(json.dumps({
        "events": options.events, "slots": SLOTS, "negatives": pools.NEGATIVES, "seeds": seeds,
        "kernel_us": kernels, "rows": rows, "seconds": round(time.perf_counter() - began_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

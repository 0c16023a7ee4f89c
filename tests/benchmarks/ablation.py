"""What each part of the default model adds to its quality: one thing is changed at a time.

    python tests/benchmarks/ablation.py --data FOLDER [--groups parts,size] [--seeds 0,1]

Groups: families and features (their gate coefficients are held at 0), parts (attention, count features, gate
inputs), loss (its background probability), slots (partners that transitions keep of an item), negatives
(sampled), batch, size. Each predicts, then learns the first events of each stream, in batches of 128 unless
the trial changes that, once for each seed. Prints NDCG@10 (mean of the seeds), the geometric mean of the
ratios to the defaults and the processor time of the whole run. One JSON line at the end.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from bench import Patch, geometric_mean, integers, parser_of, patched, print_head, print_result, print_row
from recorded import NOW_MS, Stream, add_options, chosen, events_of, settings_for

from pipeline.features import transitions
from pipeline.models import attention, training
from pipeline.models.attention import AttentionModel
from pipeline.models.gate import Gate
from pipeline.models.loss import softmax_loss
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Variant
from pipeline.settings import ModelConfig, Settings
from pipeline.thread_limits import limit_threads

ALL = 1 << 30  # more rows than any catalogue has


class Run(NamedTuple):
    """One trial on one stream: `event_us` is processor time an event, compilation included."""

    ndcg: float
    event_us: float


@dataclass(frozen=True)
class Trial:
    """One change of the defaults: settings of the model, patched names, or a change of the recommender."""

    group: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    prepare: Callable[[Recommender], None] = lambda recommender: None
    batch: int = 128


def trials() -> Iterator[Trial]:
    """Yield the trials, the defaults first."""
    yield Trial("defaults", "defaults")
    bank = Recommender(Settings()).bank
    for name, family in bank.families.items():
        yield Trial("families", f"without {name}", prepare=partial(leave_out, features=family.features))
    for slots in (12, 24, 96):
        yield Trial("slots", f"{slots} partners an item", patches=((transitions, "SLOTS", slots),))
    for negatives in (0, 64, 256, 1024, ALL):
        name = "all (full softmax)" if negatives == ALL else str(negatives)
        yield Trial("negatives", f"{name} negatives", patches=((training, "NEGATIVES", negatives),))
    yield Trial("parts", "count features and gate, no attention", prepare=leave_out_attention)
    yield Trial("parts", "attention alone (count_features=false)", {"count_features": False})
    yield Trial("parts", "no gate inputs: one blend for all", prepare=leave_out_gate_inputs)
    for name, background in (("none (plain cross entropy)", 1e-30), (".0003", 3e-4), (".003", 3e-3)):
        yield Trial("loss", f"background {name}", patches=(loss_with(background=np.float32(background)),))
    yield Trial("loss", "background without a floor", patches=(loss_with(floor=np.float32(0)),))
    for feature in bank.names:
        yield Trial("features", f"without {feature}", prepare=partial(leave_out, features=(feature,)))
    for batch in (1, 16, 512):
        yield Trial("batch", f"batches of {batch}", batch=batch)
    for dim, history in ((32, 20), (64, 20), (128, 50)):
        yield Trial("size", f"dim {dim}, history {history}", {"dim": dim, "history": history})


def loss_with(**form: np.float32) -> Patch:
    """Return the patch that gives the loss another form."""
    return attention, "softmax_loss", partial(softmax_loss, **form)


def model_of(recommender: Recommender) -> Any:
    """Return the served model behind the stopwatch."""
    model: Any = recommender.models[0]
    inner = getattr(model, "timed", model)
    assert isinstance(inner, AttentionModel)
    return inner


def leave_out(recommender: Recommender, features: tuple[str, ...]) -> None:
    """Hold the gate coefficients of features at 0."""
    gate, names = model_of(recommender).gate, recommender.bank.names
    used_F = np.array([name not in features for name in names], np.float32)
    gate.coefficients = lambda inputs_BG: Gate.coefficients(gate, inputs_BG) * used_F


def leave_out_gate_inputs(recommender: Recommender) -> None:
    """Give the gate inputs of 0."""
    gate = model_of(recommender).gate
    gate.coefficients = lambda inputs_BG: Gate.coefficients(gate, np.zeros_like(inputs_BG))
    gate.update = lambda inputs_BG, *rest: Gate.update(gate, np.zeros_like(inputs_BG), *rest)


def leave_out_attention(recommender: Recommender) -> None:
    """Make every user vector zero, and take no step."""
    model = model_of(recommender)
    with torch.no_grad():
        model.net.gamma.zero_()
        model.net.beta.zero_()
    model.parameters.step = lambda scale: model.parameters.drop_gradients()
    model.items.step = lambda sums, scale: None


def run(trial: Trial, stream: Stream, options: argparse.Namespace, seed: int) -> Run:
    """Return NDCG@10 and the processor time an event."""
    model = ModelConfig(seed=seed, tables={"attention": trial.options})
    settings = settings_for(stream, Settings(model=model))
    # lists have no part in the metrics
    rank = msgspec.structs.replace(settings.rank, k=1, explain=False)
    settings = msgspec.structs.replace(settings, rank=rank)
    with patched(trial.patches):
        evaluation = Evaluation(settings, [Variant("attention", {}, "attention")], SystemClock())
        trial.prepare(evaluation.recommender)
        began_s = time.process_time()
        evaluation.learn(events_of(options.data, stream, options.events, trial.batch), NOW_MS)
        took_s = time.process_time() - began_s
        result = evaluation.result()
    return Run(result.lines[0].figures["ndcg@10"], took_s * 1e6 / result.events)


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser)
    parser.add_argument("--groups", help="some of them, by comma (default: all)")
    parser.add_argument("--seeds", default=[0], type=integers, help="by comma (default: 0)")
    options = parser.parse_args()
    limit_threads(1)
    streams = chosen(options, parser)
    groups = {"defaults", *options.groups.split(",")} if options.groups else None
    rows: list[dict[str, Any]] = []
    names = [stream.name for stream in streams]
    print_head("group", "changed", *names, "of defaults", "us an event")
    for trial in (each for each in trials() if groups is None or each.group in groups):
        runs = {each.name: [run(trial, each, options, seed) for seed in options.seeds] for each in streams}
        ndcg = {name: fmean(each.ndcg for each in found) for name, found in runs.items()}
        base = rows[0]["ndcg@10"] if rows else ndcg
        ratio = geometric_mean(ndcg[name] / base[name] for name in names)
        event_us = fmean(each.event_us for found in runs.values() for each in found)
        rows.append({
            "group": trial.group, "trial": trial.name, "ndcg@10": ndcg, "ratio": ratio,
            "seeds": {name: [each.ndcg for each in found] for name, found in runs.items()},
            "event_us": event_us,
        })  # fmt: skip
        values = [f"{ndcg[name]:.4f}" for name in names]
        print_row(trial.group, trial.name, *values, f"{ratio:.3f}", f"{event_us:.0f}")
    print_result(
        events=options.events, slots=transitions.SLOTS, negatives=training.NEGATIVES, seeds=options.seeds,
        rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()

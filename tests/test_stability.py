"""Steps don't run away, whatever the stream, and the quality of ordinary users comes back."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from harness.streams import ndcg_between
from test_learning import START_MS, Ints, feed, ndcg, people, recommender

from pipeline.models import gate
from pipeline.models.attention import AttentionModel
from pipeline.models.optimizer import BOUND
from pipeline.recommender import Recommender
from pipeline.settings import EventsConfig, ModelConfig, RankConfig, Settings


def attention_of(learner: Recommender) -> AttentionModel:
    model = learner.models[0]
    assert isinstance(model, AttentionModel)
    return model


def test_a_non_finite_parameter_stops_learning_and_publishing_until_it_is_repaired() -> None:
    users, items = people(1000)
    learner = recommender(names=["attention"])
    feed(learner, users[:700], items[:700])
    model = attention_of(learner)
    assert model.gate is not None
    right = model.gate.weight.data.copy()
    model.gate.weight.data[0] = np.nan
    (outcome,) = feed(learner, users[700:800], items[700:800])
    assert outcome.metrics.skipped == "non_finite"
    assert outcome.rankings == []
    assert not np.isfinite(outcome.metrics.gradient_norm)
    assert np.isfinite(ndcg(learner))
    model.gate.weight.data[:] = right
    (outcome,) = feed(learner, users[800:900], items[800:900])
    assert outcome.metrics.skipped == ""
    assert len(outcome.rankings) >= len(set(users[800:900].tolist()))


EVENTS = 1_000
Stream = tuple[Ints, Ints, Ints]  # users, items, times


def one_item(rng: np.random.Generator) -> Stream:
    return rng.integers(0, 30, EVENTS), np.zeros(EVENTS, np.int64), START_MS + np.arange(EVENTS)


def nothing_twice(rng: np.random.Generator) -> Stream:
    return np.arange(EVENTS), np.arange(EVENTS), START_MS + 1000 * np.arange(EVENTS)


def contradictions(rng: np.random.Generator) -> Stream:
    """Two items in turn for hundreds of events each, so that every batch refutes the one before."""
    items = (np.arange(EVENTS) // 250 % 2) * 50 + rng.integers(0, 2, EVENTS)
    return rng.integers(0, 5, EVENTS), items, START_MS + 1000 * np.arange(EVENTS)


def wrong_clocks(rng: np.random.Generator) -> Stream:
    """Times from 1970 to the far future, in no order."""
    times = rng.choice(np.array([0, 1, START_MS, 2 * START_MS, 2**52]), EVENTS)
    return rng.integers(0, 20, EVENTS), rng.integers(0, 60, EVENTS), times


def weighted(dim: int, features: str, weight: float, name: str = "attention") -> Recommender:
    """Return a recommender of one model that counts events of the type heavy so often."""
    table = {"name": name, "tables": {name: {"dim": dim}}, "features": features}
    model = msgspec.convert(table, ModelConfig)
    events = EventsConfig(weights={"heavy": weight})
    rank = RankConfig(exclude_event_types=[], explain=False)
    return Recommender(Settings(model=model, events=events, rank=rank))


@pytest.mark.parametrize(
    ("name", "dim", "features", "batch", "weight", "make"),
    [
        ("attention", 4, "default", 512, 100.0, contradictions),
        ("attention", 4, "none", 512, 100.0, contradictions),
        ("attention", 16, "default", 32, 100.0, one_item),
        ("attention", 16, "default", 64, 1.0, nothing_twice),
        ("attention", 256, "default", 512, 100.0, contradictions),
        ("attention", 256, "none", 512, 1.0, wrong_clocks),
        ("attention", 16, "default", 64, 0.01, wrong_clocks),
        ("attention", 16, "default", 8, 100.0, contradictions),
        ("sasrec", 16, "default", 512, 100.0, contradictions),
        ("sasrec", 16, "none", 64, 100.0, wrong_clocks),
        ("ncf", 8, "default", 64, 100.0, one_item),
        ("ncf", 8, "none", 512, 100.0, contradictions),
    ],
)
def test_no_stream_drives_a_parameter_out_of_its_bound(
    name: str, dim: int, features: str, batch: int, weight: float, make: Callable[..., Stream]
) -> None:
    learner = weighted(dim, features, weight, name)
    users, items, times = make(np.random.default_rng(0))
    outcomes = feed(learner, users, items, batch, "heavy", times)
    assert "non_finite" not in {outcome.metrics.skipped for outcome in outcomes}
    for key, column in learner.models[0].columns().items():
        assert np.isfinite(column.data).all(), key
        if "squares" not in key:
            assert np.abs(column.data).max() <= max(float(BOUND), gate.BOUND), key


@pytest.mark.parametrize(("batch", "weight"), [(512, 100.0), (64, 1.0)])
def test_people_after_a_bad_stream_are_served_as_by_the_best_baseline(batch: int, weight: float) -> None:
    learner = weighted(16, "default", weight)
    for make in (one_item, contradictions, wrong_clocks):
        users, items, times = make(np.random.default_rng(1))
        feed(learner, users, items, batch, "heavy", times)
    before = learner.quality.cumulative()
    users, items = people(3000)
    late = START_MS + 10**8 + 1000 * np.arange(3000)
    outcomes = feed(learner, users + 1000, items + 1000, 128, "click", late)
    assert "non_finite" not in {outcome.metrics.skipped for outcome in outcomes}
    after = learner.quality.cumulative()
    got = {name: ndcg_between(before[name], after[name]) for name in after}
    assert got["attention"] >= max(got.values()) > 0, got

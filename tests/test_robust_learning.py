"""Learning stays within its bounds in every configuration in reach; what follows a bad stream is learned."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from harness.streams import ndcg_between

from pipeline.events.batch import Events, RawBatch, Span, TopicPartition
from pipeline.models import gate
from pipeline.models.attention import StreamingAttention
from pipeline.models.optimizer import BOUND, RowGradients, add_rows, apply
from pipeline.recommender import Recommender
from pipeline.settings import EventsConfig, ModelConfig, RankConfig, Settings
from producers.simulator.events import Columns, SimulatorConfig
from producers.simulator.users import simulate_users

START_MS = 1_700_000_000_000
SOURCE = TopicPartition("events", 0)
EVENTS = 1_000
Ints = npt.NDArray[np.int64]


class Stream(NamedTuple):
    """Users, items and times of a stream."""

    users: Ints
    items: Ints
    times_ms: Ints


def one_item(rng: np.random.Generator) -> Stream:
    return Stream(rng.integers(0, 30, EVENTS), np.zeros(EVENTS, np.int64), START_MS + np.arange(EVENTS))


def strangers(rng: np.random.Generator) -> Stream:
    """Nobody and nothing comes twice."""
    return Stream(np.arange(EVENTS), np.arange(EVENTS), START_MS + 1000 * np.arange(EVENTS))


def liars(rng: np.random.Generator) -> Stream:
    """Two items in turn for hundreds of events each, so that every batch refutes the one before."""
    items = (np.arange(EVENTS) // 250 % 2) * 50 + rng.integers(0, 2, EVENTS)
    return Stream(rng.integers(0, 5, EVENTS), items, START_MS + 1000 * np.arange(EVENTS))


def clocks_gone_wrong(rng: np.random.Generator) -> Stream:
    """Times from 1970 to the far future, in no order."""
    times = rng.choice(np.array([0, 1, START_MS, 2 * START_MS, 2**52]), EVENTS)
    return Stream(rng.integers(0, 20, EVENTS), rng.integers(0, 60, EVENTS), times)


def recommender(dim: int, memories: str, weight: float) -> Recommender:
    model = ModelConfig(dim=dim, history=10, memories=memories)  # type: ignore[arg-type]
    events = EventsConfig(weights={"heavy": weight})
    return Recommender(
        Settings(model=model, events=events, rank=RankConfig(exclude_event_types=[], explain=False))
    )


def feed(learner: Recommender, stream: Stream, batch: int, kind: str = "heavy") -> set[str]:
    """Let it learn a stream; return why steps were not taken."""
    skipped = set()
    for first in range(0, stream.users.size, batch):
        part = slice(first, first + batch)
        users, items = stream.users[part].tolist(), stream.items[part].tolist()
        count, at = len(users), learner.offsets.get(SOURCE, 0)
        events = Events(
            [f"u{user}" for user in users], [f"i{item}" for item in items], [kind] * count, [None] * count,
            stream.times_ms[part], np.full(count, START_MS), np.full(count, np.nan),
            np.zeros(count, np.int32),
        )  # fmt: skip
        span = Span(*SOURCE, at, at + count)
        outcome = learner.step(RawBatch(learner.seq, START_MS + 10**9, (span,), events, []))
        skipped.add(outcome.metrics.skipped)
    return skipped


def largest(learner: Recommender) -> float:
    """Return the largest parameter; all columns must be finite."""
    model = learner.models[0]
    assert isinstance(model, StreamingAttention)
    most = 0.0
    for name, column in model.columns().items():
        assert np.isfinite(column.data).all(), name
        if name == "table":
            most = max(most, float(np.abs(column.data[:, : model.dim]).max()))
        elif name.startswith(("module", "gate")) and not name.endswith("squares"):
            most = max(most, float(np.abs(column.data).max()))
    return most


@pytest.mark.parametrize(
    ("dim", "memories", "batch", "weight", "make"),
    [
        (4, "default", 512, 100.0, liars),
        (4, "none", 512, 100.0, liars),
        (16, "default", 32, 100.0, one_item),
        (16, "default", 64, 1.0, strangers),
        (256, "default", 512, 100.0, liars),
        (256, "none", 512, 1.0, clocks_gone_wrong),
        (16, "default", 64, 0.01, clocks_gone_wrong),
        (16, "default", 8, 100.0, liars),
    ],
)
def test_no_stream_drives_a_parameter_out_of_its_bound(
    dim: int, memories: str, batch: int, weight: float, make: Callable[[np.random.Generator], Stream]
) -> None:
    learner = recommender(dim, memories, weight)
    assert "non_finite" not in feed(learner, make(np.random.default_rng(0)), batch)
    assert largest(learner) <= max(float(BOUND), gate.BOUND)


@pytest.mark.parametrize(("batch", "weight"), [(512, 100.0), (64, 1.0)])
def test_ordinary_people_after_a_bad_stream_are_served_as_by_the_best_baseline(
    batch: int, weight: float
) -> None:
    learner = recommender(16, "default", weight)
    for make in (one_item, liars, clocks_gone_wrong):
        feed(learner, make(np.random.default_rng(1)), batch)
    before = learner.quality.cumulative()
    config = SimulatorConfig(users=300, items=300, sessions=32)
    columns = Columns(
        *(np.concatenate(column) for column in
          zip(*simulate_users(3000, 0, config=config), strict=True))
    )  # fmt: skip
    ordinary = Stream(columns.user_B + 1000, columns.item_B + 1000, START_MS + 10**8 + 1000 * np.arange(3000))
    assert "non_finite" not in feed(learner, ordinary, 128, "click")
    after = learner.quality.cumulative()
    got = {name: ndcg_between(before[name], after[name]) for name in after}
    assert got["attention"] >= max(got.values()) > 0, got


def test_an_item_row_that_is_pulled_one_way_for_ever_ends_at_the_bound() -> None:
    table, squares = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    gradients = RowGradients(4)
    row, pull = np.array([1], np.int32), np.full((1, 4), -1, np.float32)
    for _ in range(60):
        gradients.begin(3, 3)
        add_rows(row, pull, np.ones(1, np.float32), *gradients.scratch)
        apply(table, squares, np.float32(1), *gradients.scratch)
    assert (table[1] == BOUND).all()
    assert (table[[0, 2]] == 0).all()

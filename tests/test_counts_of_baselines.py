"""What baselines count, against slow loops over a plain log of all events."""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from harness.streams import MINUTE_MS, Batches, Event, move_on, new_state, shoppers, small_settings
from pipeline.models.baselines.counts import FadingModel
from pipeline.state.popularity import GAP_MS, P300
from pipeline.state.sessions import PLACES, Sessions
from test_baselines import pools_of, targets_of

from pipeline.events.batch import Batch
from pipeline.models.baselines import session_knn
from pipeline.models.baselines.neighbours import KNN_FADE, Neighbours
from pipeline.models.model import Model
from pipeline.models.registry import KNN_FADE as COUNTED_FADE
from pipeline.models.registry import KNN_REACH, Value, build_model
from pipeline.state.queries import Queries
from pipeline.state.state import State

GAP = 45  # minutes; pauses of the made-up shoppers lie on both sides of it


class Seen(NamedTuple):
    """One positive event of the log; `before`: the user's items just before it, newest first."""

    user: int
    item: int
    time_ms: int
    before: list[int]


Log = list[Seen]
Scores = dict[int, float]


def lived(
    name: str, setting: dict[str, Value], check: Callable[[Model, State, Queries, Log], None], **stream: int
) -> None:
    """Let a model learn made-up shoppers, and check it before each batch of the second half."""
    state, log = new_state(small_settings(exclude=[], history=12)), Log()
    model = build_model(name, state, small_settings(), setting)
    state.register("model", model)

    def learn(batch: Batch, queries: Queries) -> None:
        if batch.seq >= 5:
            check(model, state, queries, log)
        pool = pools_of(state, True).lesson(queries, model.lists, batch.seq)
        model.learn(queries, pool, targets_of(queries, batch))
        for b in range(batch.user_B.size):
            before = queries.items_BL[b, : queries.length_B[b]].tolist()
            log.append(Seen(int(batch.user_B[b]), int(batch.item_B[b]), int(batch.moment_ms_B[b]), before))

    sizes = {"size": 30, "users": 6, "window": 30, **stream}
    for raw in shoppers(np.random.default_rng(8), Batches(), 10, **sizes):  # type: ignore[arg-type]
        move_on(state, raw, learn)
    assert len(log) == 300


def hold(model: Model, queries: Queries, b: int, expected: Scores) -> None:
    """Hold what the model's entries say of all items against a slow sum."""
    assert isinstance(model, Neighbours)
    spoken = model.spoken(queries)
    found: Scores = defaultdict(float)
    for e in range(spoken.border_B[b], spoken.border_B[b + 1]):
        found[int(spoken.row_E[e])] += float(spoken.value_E[e])
    assert {m for m, value in found.items() if value > 0} == {m for m, value in expected.items() if value > 0}
    for m, value in expected.items():
        assert found[m] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("half_life", ["40", "all"])
@pytest.mark.parametrize(("name", "directed"), [("markov", True), ("item_knn", True), ("item_knn", False)])
def test_pairs_are_counted_as_a_loop_over_the_log_counts_them(
    name: str, directed: bool, half_life: str
) -> None:
    reach, fade = (1, 1.0) if name == "markov" else (KNN_REACH, COUNTED_FADE)
    kept = 1.0 if half_life == "all" else 0.5 ** (1 / float(half_life))

    def check(model: Model, state: State, queries: Queries, log: Log) -> None:
        pairs: dict[int, Scores] = defaultdict(lambda: defaultdict(float))
        for age, event in enumerate(reversed(log), 1):
            for k, h in enumerate(event.before[:reach]):
                pairs[h][event.item] += kept**age * fade**k
                if not directed:
                    pairs[event.item][h] += kept**age * fade**k
        for b in range(queries.user_B.size):
            expected: Scores = defaultdict(float)
            for k, h in enumerate(queries.items_BL[b, : queries.length_B[b]].tolist()[:reach]):
                for m, count in pairs[h].items():
                    expected[m] += KNN_FADE**k * count
            hold(model, queries, b, expected)

    setting: dict[str, Value] = {"half_life": half_life}
    lived(name, setting | ({} if name == "markov" else {"directed": directed}), check)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("gap", [GAP, 0])
def test_sessions_speak_as_a_loop_over_the_log_says(gap: int, after: bool) -> None:
    def check(model: Model, state: State, queries: Queries, log: Log) -> None:
        sessions: list[list[int]] = []
        of_user: dict[int, int] = {}
        newest: dict[int, int] = {}
        for event in log:
            pause_ms = event.time_ms - newest.get(event.user, event.time_ms)
            if event.user not in of_user or (gap and pause_ms >= gap * MINUTE_MS):
                of_user[event.user] = len(sessions)
                sessions.append([])
            sessions[of_user[event.user]].append(event.item)
            newest[event.user] = event.time_ms
        for b in range(queries.user_B.size):
            mine = list(
                dict.fromkeys(queries.items_BL[b, : queries.length_B[b]].tolist()[: session_knn.REACH])
            )
            window = queries.items_BL[b].tolist()
            expected: Scores = defaultdict(float)
            for number, whole in enumerate(sessions):
                items = whole[-PLACES:]
                shared = [m for m in mine if m in whole]  # an item keeps its visit when its place is gone
                if not shared or number == of_user.get(int(queries.user_B[b])):
                    continue
                near = sum(session_knn.FADE ** window.index(m) for m in shared)
                start = 0
                if after and shared[0] in items:
                    start = len(items) - items[::-1].index(shared[0])
                for j, m in enumerate(items[start:]):
                    if after or m != shared[0]:
                        expected[m] += near * (session_knn.STEP**j if after else 1)
            hold(model, queries, b, expected)

    lived("session_knn", {"gap_minutes": gap, "after": after}, check, users=14)


def test_popularity_fades_with_the_half_life_asked_for() -> None:
    def check(model: Model, state: State, queries: Queries, log: Log) -> None:
        assert isinstance(model, FadingModel)
        expected = np.zeros(state.items.capacity)
        for age, event in enumerate(reversed(log), 1):
            expected[event.item] += 0.5 ** (age / 20)
        np.testing.assert_allclose(model.values(), expected, rtol=1e-4)

    lived("recent_popularity", {"half_life": "20"}, check)


def test_a_baseline_says_popularity_where_neighbours_are_silent() -> None:
    def check(model: Model, state: State, queries: Queries, log: Log) -> None:
        assert isinstance(model, Neighbours)
        share = model.back_off.base(state.popularity)
        counts = state.popularity.stored.data[:, P300].astype(np.float64)
        np.testing.assert_allclose(share, 7 * counts / counts.sum(), rtol=1e-4)

    lived("markov", {"popularity": "300", "weight": 7}, check)


def test_counts_go_on_when_their_weights_are_brought_back_to_one() -> None:
    """A half-life of one event doubles each weight: float32 would be full after 128."""
    state = new_state(small_settings(exclude=[]))
    models = [
        build_model(n, state, small_settings(), {"half_life": "1"}) for n in ("recent_popularity", "markov")
    ]
    for n, model in enumerate(models):
        state.register(f"model.{n}", model)

    def learn(batch: Batch, queries: Queries) -> None:
        for model in models:
            pool = pools_of(state, True).lesson(queries, model.lists, batch.seq)
            model.learn(queries, pool, targets_of(queries, batch))

    batches = Batches()
    for _ in range(5):
        move_on(state, batches([Event("u", f"i{n % 3}") for n in range(60)]), learn)
    rows = state.items.rows(["i0", "i1", "i2"])
    popularity, markov = models
    assert isinstance(popularity, FadingModel)
    np.testing.assert_allclose(popularity.values()[rows], [1 / 7, 2 / 7, 4 / 7], rtol=1e-5)
    columns = markov.columns()
    held = columns["partner"].data[rows[2]]
    assert held[held >= 0].tolist() == [rows[0]]
    value = columns["stored"].data[rows[2], 0] / columns["gain"].data[0]
    assert value == pytest.approx(1 / 8 / (1 - 1 / 8), rel=1e-5)


def test_a_session_of_another_worker_is_not_gone_on_with() -> None:
    """Its number means another session here: somebody else's."""
    state = new_state(small_settings(exclude=[]))
    model = build_model("session_knn", state, small_settings())
    state.register("model", model)
    batches = Batches()

    def learn(batch: Batch, queries: Queries) -> None:
        pool = pools_of(state, True).lesson(queries, model.lists, batch.seq)
        model.learn(queries, pool, targets_of(queries, batch))

    move_on(state, batches([Event("ann", "a"), Event("bob", "b", time_ms=Event("", "").time_ms + 5)]), learn)
    columns = model.columns()
    bob = state.users.row_of["bob"]
    columns["current"].data[bob] = columns["current"].data[state.users.row_of["ann"]]  # as if brought along
    move_on(state, batches([Event("bob", "c", time_ms=Event("", "").time_ms + 9)]), learn)
    assert columns["last"].data[0] == 3
    assert columns["items"].data[1].max() == state.items.row_of["a"]  # ann's session is hers


def test_a_session_that_another_worker_numbered_is_nobodys_own_here() -> None:
    sessions = Sessions(4, 3, GAP_MS)
    sessions.add(np.array([0, 1]), np.array([1, 2]), np.array([10, 20]))
    who = np.array([0, 1, 2])
    assert sessions.own(who).tolist() == [1, 2, 0]
    sessions.current_ms.data[1] = 7  # as it comes with a user whose session number 2 lies elsewhere
    assert sessions.own(who).tolist() == [1, 0, 0]

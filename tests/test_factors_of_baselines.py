"""Factor models: ranks against brute force, steps against plain arithmetic, and no step runs away."""

from collections.abc import Callable

import numpy as np
import pytest
from harness.streams import Batches, Event, move_on, new_state, shoppers, small_settings
from river import optim, reco
from test_baselines import pools_of, targets_of

from pipeline.events.batch import Batch
from pipeline.models.baselines.biased_mf import L2, BiasedMfModel
from pipeline.models.baselines.isgd import DECAY, MOST, TYPICAL_STEP, IsgdModel
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import Model, Targets
from pipeline.models.registry import build_model
from pipeline.settings import LimitsConfig
from pipeline.state.queries import Queries
from pipeline.state.state import State
from pipeline.state.tables import LIVE

NAMES = ("isgd", "biased_mf")
Watch = Callable[[State, Batch, Queries, Targets, Callable[[], object]], None]


def lived(name: str, watch: Watch, exclude: list[str] | None = None, **setting: float) -> None:
    """Let a model learn made-up shoppers; `watch` is called with what makes it learn a batch."""
    state = new_state(small_settings(exclude=exclude, limits=LimitsConfig(items=35)))
    model = build_model(name, state, small_settings(), dict(setting))
    state.register("model", model)
    state.welcome = model.welcome

    def learn(batch: Batch, queries: Queries) -> None:
        targets = targets_of(queries, batch)
        pool = pools_of(state, exclude is not None).lesson(queries, model.lists, batch.seq)
        watch(state, batch, queries, targets, lambda: (model, pool, model.learn(queries, pool, targets)))

    types = ("click", "buy", "dislike")
    for raw in shoppers(np.random.default_rng(6), Batches(), 12, users=8, window=30, pace=4, types=types):
        move_on(state, raw, learn)


def scores_of(model: Model, queries: Queries) -> np.ndarray:  # type: ignore[type-arg]
    """The scores of all rows [B, M], in float64."""
    if isinstance(model, IsgdModel):
        users, bias = model.vectors(queries.user_B), 0.0
    else:
        assert isinstance(model, BiasedMfModel)
        users, bias = model.users.data[queries.user_B], model.item_bias.data  # type: ignore[assignment]
    return users.astype(np.float64) @ model.items.data.T.astype(np.float64) + bias


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exclude", [None, []], ids=["all bar", "repeats"])
def test_ranks_are_those_of_brute_force(name: str, exclude: list[str] | None) -> None:
    judged = []

    def watch(state: State, batch: Batch, queries: Queries, targets: Targets, learn: object) -> None:
        model = state.stores["model"]
        scores, live = scores_of(model, queries), state.items.status.data == LIVE  # type: ignore[arg-type]
        tested = learn()[2].tested  # type: ignore[operator]
        for b, row in enumerate(targets.row_B.tolist()):
            if row < 0:
                continue
            barred = queries.barred[queries.border_B[b] : queries.border_B[b + 1]]
            shown = [m for m in np.flatnonzero(live).tolist() if m not in barred]
            near = np.abs(scores[b, shown] - scores[b, row]) < 1e-6  # the target itself among them
            above = int((scores[b, shown] > scores[b, row])[~near].sum())
            assert above <= tested.greater_B[b] <= above + near.sum() - 1
            assert above <= tested.greater_B[b] + tested.equal_B[b] <= above + near.sum() - 1
            assert tested.candidates_B[b] == len(shown)
            judged.append(near.sum() == 1)

    lived(name, watch, exclude)
    assert sum(judged) > 40


@pytest.mark.parametrize("negatives", [0, 2])
def test_isgd_steps_as_the_formula_says(negatives: int) -> None:
    rate, moved = 0.1, []

    def watch(state: State, batch: Batch, queries: Queries, targets: Targets, learn: object) -> None:
        model = state.stores["model"]
        assert isinstance(model, IsgdModel)
        users, items = model.users.data.astype(np.float64), model.items.data.astype(np.float64)
        typical, at = model.typical.data.astype(np.float64), 0
        _, pool, _ = learn()  # type: ignore[operator]
        for u, t in zip(batch.user_B.tolist(), targets.counted_B.tolist(), strict=True):
            if t < 0:
                continue
            if not users[u].any():
                users[u] = typical
            for j in range(1 + negatives * (pool.negatives_N.size > 0)):
                m = t
                if j:
                    m, at = int(pool.negatives_N[at % pool.negatives_N.size]), at + 1
                    if m == t:
                        continue
                error = (j == 0) - users[u] @ items[m]
                step = error * items[m] - DECAY * users[u], error * users[u] - DECAY * items[m]
                users[u] += rate * step[0]
                items[m] += rate * step[1]
                moved.append(abs(error))
            typical += TYPICAL_STEP * (users[u] - typical)
        for mine, theirs in ((model.users, users), (model.items, items), (model.typical, typical)):
            np.testing.assert_allclose(mine.data, theirs, rtol=1e-3, atol=1e-5)

    lived("isgd", watch, rate=rate, negatives=negatives, dim=4)
    assert 0.1 < max(moved) < MOST  # the bound on the error has no say in quiet times


def test_biased_mf_is_rivers_own() -> None:
    """Beside river's model with dictionaries of its own: the same events, the same factors, to rounding."""
    plain = reco.BiasedMF(
        4, bias_optimizer=optim.SGD(0.05), latent_optimizer=optim.SGD(0.05), l2_bias=L2, l2_latent=L2
    )
    predicted = []

    def watch(state: State, batch: Batch, queries: Queries, targets: Targets, learn: object) -> None:
        model = state.stores["model"]
        assert isinstance(model, BiasedMfModel)
        first = model.items.data.astype(np.float64)
        _, pool, _ = learn()  # type: ignore[operator]
        at = 0
        for user, item in zip(batch.user_B.tolist(), targets.counted_B.tolist(), strict=True):
            if item < 0:
                continue
            name = state.users.id_of[user]
            if name not in plain.u_latents:
                plain.u_latents[name] = start_of(name)
            others = [int(pool.negatives_N[at % pool.negatives_N.size])] if pool.negatives_N.size else []
            at += len(others)
            for m, wanted in [(item, 1.0), *((m, 0.0) for m in others if m != item)]:
                text = state.items.id_of[m]
                if text not in plain.i_latents:
                    plain.i_latents[text] = first[m].copy()
                plain.learn_one(name, text, wanted)
        for text, row in state.items.row_of.items():
            if text in plain.i_latents:
                np.testing.assert_allclose(model.items.data[row], plain.i_latents[text], rtol=1e-3, atol=1e-5)
        user, item = int(batch.user_B[-1]), int(batch.item_B[-1])
        row = np.array([[item]], np.int32)
        mine = model._predictions(queries.pick(np.array([batch.user_B.size - 1])), row)[0, 0]
        theirs = plain.predict_one(state.users.id_of[user], state.items.id_of[item])
        assert mine == pytest.approx(theirs, rel=1e-3)
        predicted.append(mine)

    def start_of(name: str) -> np.ndarray:  # type: ignore[type-arg]
        return first_embeddings([name], 1, 4)[0].astype(np.float64)

    lived("biased_mf", watch, dim=4, rate=0.05, negatives=1)
    assert len(set(predicted)) > 5


@pytest.mark.parametrize("name", NAMES)
def test_no_stream_in_reach_makes_factors_run_away(name: str) -> None:
    """Long runs of one pair, and of one user with everything: what feeds a vector most."""
    state = new_state(small_settings(exclude=[]))
    model = build_model(name, state, small_settings(), {"rate": 0.2, "dim": 64})
    state.register("model", model)
    state.welcome = model.welcome
    batches, users = Batches(), [["one"] * 120, ["one", "two"] * 60]

    def learn(batch: Batch, queries: Queries) -> None:
        pool = pools_of(state, True).lesson(queries, model.lists, batch.seq)
        model.learn(queries, pool, targets_of(queries, batch))

    for n in range(20):
        items = ["same"] * 120 if n % 2 else [f"i{k % 40}" for k in range(120)]
        move_on(state, batches([Event(u, i) for u, i in zip(users[n % 2], items, strict=True)]), learn)
    for column in ("users", "items"):
        assert np.abs(model.columns()[column].data).max() < 10

"""Matrix factorisation, against the formula and against river's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness.streams import Batches, Event, shoppers, small_settings, spied
from river import optim, reco
from test_baselines import exact_scores, learn

from pipeline.models.baselines import isgd
from pipeline.models.baselines.biased_mf import L2
from pipeline.models.embeddings import first_embeddings
from pipeline.models.model import Targets, TrainingCandidates, TrainResult
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE


def factor_stream(name: str, check: Callable[..., None], **options: Any) -> None:
    """Let a factor model learn; `check` gets the model, what it was before, and the batch."""

    def hook(model: Any, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        before = {key: column.data.astype(np.float64) for key, column in model.columns().items()}
        result: TrainResult = model.learn(queries, training, targets)
        check(recommender, model, before, queries, training, targets)
        return result

    recommender = spied(small_settings(limits=LimitsConfig(items=35)), name, hook, **options)
    types = ("click", "buy", "dislike")
    for raw in shoppers(np.random.default_rng(6), Batches(), 12, users=8, window=30, pace=4, types=types):
        recommender.step(raw)


@pytest.mark.parametrize("negatives", [0, 2])
def test_isgd_steps_as_the_formula_says(negatives: int) -> None:
    moved = []

    def check(_: Any, model: Any, before: Any, queries: Queries, *given: Any) -> None:
        training, targets = given
        users, items, typical, at = before["users"], before["items"], before["typical"], 0
        others = training.negatives_S.tolist()
        for u, t in zip(queries.user_B.tolist(), targets.counted_B.tolist(), strict=True):
            if t < 0:
                continue
            if not users[u].any():
                users[u] = typical
            for j in range(1 + negatives * bool(others)):
                m = t
                if j:
                    m, at = others[at % len(others)], at + 1
                    if m == t:
                        continue
                error = (j == 0) - users[u] @ items[m]
                step = error * items[m] - isgd.DECAY * users[u], error * users[u] - isgd.DECAY * items[m]
                users[u] += 0.1 * step[0]
                items[m] += 0.1 * step[1]
                moved.append(abs(error))
            typical += isgd.TYPICAL_STEP * (users[u] - typical)
        for name, value in before.items():
            np.testing.assert_allclose(model.columns()[name].data, value, rtol=1e-3, atol=1e-5)

    factor_stream("isgd", check, rate=0.1, negatives=negatives, dim=4)
    assert 0.1 < max(moved) < isgd.MOST  # the bound on the error has no effect in quiet times


def test_biased_mf_is_that_of_river() -> None:
    """Beside river's model with dictionaries of its own: the same events, the same factors, to rounding."""
    sgd = {"bias_optimizer": optim.SGD(0.05), "latent_optimizer": optim.SGD(0.05)}
    plain = reco.BiasedMF(4, **sgd, l2_bias=L2, l2_latent=L2)
    predicted = set()

    def check(recommender: Recommender, model: Any, before: Any, queries: Queries, *given: Any) -> None:
        training, targets = given
        at, others = 0, training.negatives_S.tolist()
        ids, users = recommender.state.items.id_of, recommender.state.users.id_of
        for user, item in zip(queries.user_B.tolist(), targets.counted_B.tolist(), strict=True):
            if item < 0:
                continue
            if users[user] not in plain.u_latents:
                plain.u_latents[users[user]] = first_embeddings([users[user]], 1, 4)[0].astype(np.float64)
            drawn = [others[at % len(others)]] if others else []
            at += len(drawn)
            for m, wanted in [(item, 1.0), *((m, 0.0) for m in drawn if m != item)]:
                if ids[m] not in plain.i_latents:
                    plain.i_latents[ids[m]] = before["items"][m].copy()
                plain.learn_one(users[user], ids[m], wanted)
        for text, row in recommender.state.items.row_of.items():
            if text in plain.i_latents:
                np.testing.assert_allclose(model.items.data[row], plain.i_latents[text], rtol=1e-3, atol=1e-5)
        b = queries.user_B.size - 1
        item = int(np.flatnonzero(recommender.state.items.status.data == LIVE)[0]) if others else -1
        if item >= 0 and ids[item] in plain.i_latents and users[queries.user_B[b]] in plain.u_latents:
            mine = exact_scores(model, recommender, queries, b)[item]
            assert mine == pytest.approx(plain.predict_one(users[queries.user_B[b]], ids[item]), rel=1e-3)
            predicted.add(float(mine))

    factor_stream("biased_mf", check, dim=4, rate=0.05, negatives=1)
    assert len(predicted) > 5


@pytest.mark.parametrize("name", ["isgd", "biased_mf"])
def test_no_stream_in_reach_makes_factors_run_away(name: str) -> None:
    """Long runs of one pair, and of one user with everything: what feeds a vector most."""
    recommender = spied(small_settings(exclude=[]), name, learn, rate=0.2, dim=64)
    batches, users = Batches(), [["one"] * 120, ["one", "two"] * 60]
    for n in range(20):
        items = ["same"] * 120 if n % 2 else [f"i{k % 40}" for k in range(120)]
        recommender.step(batches([Event(u, i) for u, i in zip(users[n % 2], items, strict=True)]))
    for column in ("users", "items"):
        assert np.abs(recommender.models[0].columns()[column].data).max() < 10

"""Figures at several depths and by the age of items, against the figures at one depth."""

import numpy as np
import pytest

from pipeline.evaluation.depths import DEPTHS, Depths
from pipeline.evaluation.quality import Quality, gains_of
from pipeline.models.tested import RankResult


def some_tests(size: int = 400, seed: int = 0) -> tuple[RankResult, np.ndarray]:  # type: ignore[type-arg]
    """Return tests with ties, unknown items and events that are none, and which items are new."""
    rng = np.random.default_rng(seed)
    greater, equal = rng.geometric(0.06, size) - 1, rng.integers(0, 4, size) * rng.integers(0, 2, size)
    tested = RankResult(greater, equal, greater + equal + 30, rng.random(size) < 0.8, rng.random(size) < 0.7)
    return tested, rng.integers(0, 2, size).astype(np.float64)


def test_each_depth_is_what_the_judge_of_one_depth_says() -> None:
    depths, batches = Depths(["a", "b"]), [some_tests(seed=seed) for seed in range(3)]
    for tested, young in batches:
        depths.update("a", tested, young)
    for k in DEPTHS:
        gains = [gains_of(tested, k) for tested, _ in batches]
        for name, place in (("hr", 0), ("ndcg", 1)):
            expected = np.nanmean(np.concatenate([each[place] for each in gains]))
            assert depths.at("a")[f"{name}@{k}"] == pytest.approx(expected)
    assert set(depths.at("b").values()) == {0.0}


def test_new_and_old_items_are_judged_apart() -> None:
    depths = Depths(["a"])
    tested, young = some_tests()
    depths.update("a", tested, young)
    quality = Quality(["a"])
    quality.update("a", tested, young > 0)  # the same split, as the judge of users makes it
    whole = quality.cumulative()["a"]
    assert depths.of_items("a", "new") == pytest.approx(whole["cold"])
    assert depths.of_items("a", "old") == pytest.approx(whole["warm"])
    assert whole["cold"]["tests"] > 50


def test_what_was_saved_goes_on() -> None:
    first, second = Depths(["a"]), Depths(["a", "new"])
    first.update("a", *some_tests())
    second.load(first.arrays())
    for depths in (first, second):
        depths.update("a", *some_tests(seed=1))
    assert second.at("a") == first.at("a")
    second.load({})  # of a version that did not count
    assert second.at("a") == first.at("a")

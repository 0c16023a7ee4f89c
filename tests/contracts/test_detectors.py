"""The contract of drift detectors, over every detector of the registry."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.evaluation.drift import DETECTORS, MAX_WINDOW_VALUES, Change, Detector

Make = Callable[[], Detector]


@pytest.fixture(params=DETECTORS.values(), ids=DETECTORS)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def values(mean: float, count: int, seed: int) -> list[float]:
    """Return means of ten tests that are hits with this probability."""
    drawn: list[float] = np.random.default_rng(seed).binomial(10, mean, count).tolist()
    return [hits / 10 for hits in drawn]


def changes(detector: Detector, of: list[float]) -> list[tuple[int, Change]]:
    found = [(place, detector.update(value)) for place, value in enumerate(of)]
    return [(place, change) for place, change in found if change is not None]


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.15), (0.15, 0.3), (0.6, 0.1), (0.0, 0.5)])
def test_a_change_is_found_soon_with_both_means(make: Make, before: float, after: float) -> None:
    found = changes(make(), values(before, 2_000, 1) + values(after, 1_000, 2))
    assert found
    place, change = found[0]
    assert 2_000 <= place <= 2_160
    assert change.before == pytest.approx(before, abs=0.02)
    assert change.after == pytest.approx(after, abs=0.06)


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.2, 0.6, 1.0])
def test_without_a_change_nearly_none_is_found(make: Make, mean: float) -> None:
    assert max(len(changes(make(), values(mean, 6_000, seed))) for seed in range(3)) <= 1


@pytest.mark.parametrize("restart", [0, 1, 7, 700, 1_005, 1_400])
def test_a_restart_changes_nothing_that_is_found(make: Make, restart: int) -> None:
    stream = values(0.4, 1_000, 3) + values(0.1, 500, 4) + values(0.5, 500, 5)
    whole, first, second = make(), make(), make()
    expected = changes(whole, stream)
    assert len(expected) >= 2
    found = changes(first, stream[:restart])
    second.load(first.arrays())
    found += [(restart + place, change) for place, change in changes(second, stream[restart:])]
    assert found == expected
    for name, array in whole.arrays().items():
        assert array.tobytes() == second.arrays()[name].tobytes()


def test_memory_is_bounded_and_a_fall_is_found_after_it_was_full(make: Make) -> None:
    detector, restored = make(), make()
    assert changes(detector, values(0.3, MAX_WINDOW_VALUES + MAX_WINDOW_VALUES // 4, 21)) == []
    assert sum(array.size for array in detector.arrays().values()) <= MAX_WINDOW_VALUES
    restored.load(detector.arrays())
    fall = values(0.2, 1_000, 22)
    found = changes(detector, fall)
    assert len(found) == 1
    assert changes(restored, fall) == found

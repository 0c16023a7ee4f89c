"""Work in two threads: each half once, and nobody's error is lost."""

import threading
from collections.abc import Iterator

import pytest
from pipeline.app.cpu_count import use_threads
from pipeline.features.halves import LEAST, in_halves


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    use_threads(request.param)
    yield request.param
    use_threads(1)


@pytest.mark.parametrize("count", [0, 1, 2, LEAST - 1, LEAST, LEAST + 1])
def test_everything_is_worked_on_once(threads: int, count: int) -> None:
    calls: list[tuple[int, int, int, int]] = []
    in_halves(lambda half, start, stop: calls.append((half, start, stop, threading.get_ident())), count)
    if threads == 1 or count < LEAST:
        assert calls == [(0, 0, count, threading.get_ident())]
        return
    (half, first, middle, mine), (other, again, last, helper) = sorted(calls)
    assert (half, other) == (0, 1)
    assert (first, again, last) == (0, middle, count)
    assert last - middle <= middle - first <= last - middle + 1
    assert mine == threading.get_ident() != helper


@pytest.mark.parametrize("bad", [0, LEAST - 1])
def test_an_error_in_either_half_is_raised_and_the_next_work_is_done(threads: int, bad: int) -> None:
    def work(half: int, start: int, stop: int) -> None:
        if bad in range(start, stop):
            raise ValueError(f"query {bad}")

    with pytest.raises(ValueError, match=f"query {bad}"):
        in_halves(work, LEAST)
    done: list[int] = []
    in_halves(lambda half, start, stop: done.extend(range(start, stop)), LEAST)
    assert sorted(done) == list(range(LEAST))

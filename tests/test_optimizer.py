"""Row-wise Adagrad, against an obvious loop over events, and the bounds of its steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import gate, optimizer
from pipeline.models.optimizer import AGREE, BOUND, EPSILON, RowGradients, adagrad

ROWS, DIM = 9, 3


class PlainRows:
    """A table with one accumulator a row, moved from a list of (row, gradient) of single events."""

    def __init__(self, table: np.ndarray) -> None:  # type: ignore[type-arg]
        self.table, self.squares = table.astype(np.float64), np.zeros(table.shape[0])

    def apply(self, gradients: list[tuple[int, np.ndarray]], rate: float) -> None:  # type: ignore[type-arg]
        total = np.zeros((self.table.shape[0], DIM))
        for row, gradient in gradients:
            total[row] += gradient
            self.squares[row] += (gradient**2).mean()
        for row in {row for row, _ in gradients}:
            self.table[row] -= rate * total[row] / np.sqrt(self.squares[row] + EPSILON)


batch = st.lists(st.integers(-1, ROWS - 1), max_size=12)


@given(st.lists(batch, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60)
def test_rows_move_as_in_a_plain_loop(batches: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    plain, squares, gradients = PlainRows(table), np.zeros(ROWS, np.float32), RowGradients(DIM)
    for rows in batches:
        sums = gradients.begin(ROWS, 1000)
        single = rng.normal(size=(len(rows), DIM)).astype(np.float32)
        optimizer.add_rows(np.array(rows, np.int32), single, (single**2).mean(1).astype(np.float32), sums)
        events = [(row, single[n]) for n, row in enumerate(rows) if row >= 0]
        summed = np.zeros((ROWS, DIM))
        for row, gradient in events:
            summed[row] += gradient
        assert optimizer.norm_of(sums) == pytest.approx(np.linalg.norm(summed), rel=1e-5, abs=1e-6)
        optimizer.apply(table, squares, np.float32(0.05), sums)
        plain.apply(events, 0.05)
        np.testing.assert_allclose(table, plain.table, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(squares, plain.squares, rtol=1e-4)


def test_equal_gradients_move_a_row_nearly_as_far_in_one_batch_as_in_many() -> None:
    ends = []
    for size in (1, 8, 64):
        table, squares = np.zeros((1, DIM), np.float32), np.zeros(1, np.float32)
        squares[0] = 50  # a row that has been learned for a while: the first steps have no scale yet
        gradients = RowGradients(DIM)
        for _ in range(64 // size):
            sums = gradients.begin(1, size)
            ones = np.ones((size, DIM), np.float32)
            optimizer.add_rows(np.zeros(size, np.int32), ones, ones[:, 0].copy(), sums)
            optimizer.apply(table, squares, np.float32(0.05), sums)
        ends.append(float(table[0, 0]))
        assert squares[0] == 114
    assert ends[2] == pytest.approx(ends[0], rel=0.25)
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


def test_scratch_space_grows_and_forgets_between_batches() -> None:
    gradients = RowGradients(DIM)
    for known in (4, 3000, 5000):
        sums = gradients.begin(known, known)
        rows = np.arange(known, dtype=np.int32)
        ones = np.ones((known, DIM), np.float32)
        optimizer.add_rows(rows, ones, ones[:, 0].copy(), sums)
        assert sums.used[0] == known
        assert optimizer.norm_of(sums) == pytest.approx(np.sqrt(known * DIM), rel=1e-5)


def test_a_dense_parameter_moves_as_in_a_loop_and_never_further_than_allowed() -> None:
    rng = np.random.default_rng(2)
    parameter, accumulator = rng.normal(size=(4, 3)).astype(np.float32), np.zeros((4, 3), np.float32)
    plain, squares = parameter.astype(np.float64), np.zeros((4, 3))
    for _ in range(10):
        events = rng.normal(size=(6, 4, 3)).astype(np.float32)
        events[:, 3, 2] = 0  # a parameter without a gradient
        adagrad(parameter, accumulator, events.sum(0), (events**2).sum(0), 0.3, 0.2, 100.0)
        before = plain.copy()
        for place in np.ndindex(4, 3):
            each = [float(event[place]) for event in events]
            squares[place] += max(sum(g**2 for g in each), sum(each) ** 2 / AGREE)
            move = 0.3 * sum(each) / np.sqrt(squares[place] + EPSILON)
            plain[place] -= min(max(move, -0.2), 0.2)
        assert np.abs(plain - before).max() <= 0.2 + 1e-9
        assert plain[3, 2] == before[3, 2]
        np.testing.assert_allclose(parameter, plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(accumulator, squares, rtol=1e-5)


def test_a_row_that_is_pulled_one_way_without_end_stops_at_the_bound() -> None:
    table, squares = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    gradients = RowGradients(4)
    for _ in range(60):
        sums = gradients.begin(3, 3)
        pull = np.full((1, 4), -1, np.float32)
        optimizer.add_rows(np.array([1], np.int32), pull, np.ones(1, np.float32), sums)
        optimizer.apply(table, squares, np.float32(1), sums)
    assert (table[1] == BOUND).all()
    assert (table[[0, 2]] == 0).all()


def test_the_gate_stays_within_its_bound_and_moves_little_at_once() -> None:
    tested = gate.Gate(14, 9)
    inputs, push = np.ones((3, 9), np.float32), np.full((3, 14), -100.0, np.float32)
    for _ in range(400):
        before = tested.weight.data.copy(), tested.slope.data.copy()
        tested.update(inputs, push)
        for column, held in zip((tested.weight, tested.slope), before, strict=True):
            assert np.abs(column.data - held).max() <= gate.MAX_STEP + 1e-6
            assert np.abs(column.data).max() <= gate.BOUND
    assert tested.weight.data.min() > 1

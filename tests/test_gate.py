"""The gate, against its formula and torch's gradients."""

import numpy as np
import torch

from pipeline.models.gate import BOUND, MAX_STEP, RATE, START, Gate
from pipeline.models.optimizer import AGREE

FEATURES, INPUTS = 14, 9


def random_gate(rng: np.random.Generator) -> Gate:
    gate = Gate(FEATURES, INPUTS)
    for column in (gate.weight, gate.slope):
        column.data[:] = rng.normal(size=column.data.shape)
    for column in (gate.weight_squares, gate.slope_squares):
        column.data[:] = 1 + rng.random(column.data.shape)
    return gate


def test_coefficients_are_linear_in_the_inputs() -> None:
    rng = np.random.default_rng(0)
    gate, inputs = random_gate(rng), rng.normal(size=(5, INPUTS)).astype(np.float32)
    found = gate.coefficients(inputs)
    for b, f in np.ndindex(5, FEATURES):
        slope = sum(float(gate.slope.data[f, g]) * float(inputs[b, g]) for g in range(INPUTS))
        np.testing.assert_allclose(found[b, f], gate.weight.data[f] + slope, rtol=1e-4, atol=1e-5)
    fresh = Gate(FEATURES, INPUTS).coefficients(np.ones((2, INPUTS), np.float32))
    assert (fresh == np.float32(START)).all()


def test_a_step_follows_the_gradient_of_single_events() -> None:
    rng = np.random.default_rng(1)
    gate, inputs = random_gate(rng), rng.normal(size=(7, INPUTS)).astype(np.float32)
    upstream = rng.normal(size=(7, FEATURES)).astype(np.float32) * 0.3
    held, accumulators = [gate.weight, gate.slope], [gate.weight_squares, gate.slope_squares]
    before = [column.data.copy() for column in held]
    squares = [column.data.copy() for column in accumulators]
    totals, added = ([np.zeros_like(array, np.float64) for array in before] for _ in range(2))
    for b in range(7):  # each event's own gradient, by autograd
        weight, slope = (torch.tensor(array, requires_grad=True) for array in before)
        coefficients = weight + slope @ torch.from_numpy(inputs[b])
        (coefficients * torch.from_numpy(upstream[b])).sum().backward()
        for place, parameter in enumerate((weight, slope)):
            gradient = parameter.grad.double().numpy()
            totals[place] += gradient
            added[place] += gradient**2
    gate.update(inputs, upstream, 1.5)
    for place, (column, start, total) in enumerate(zip(held, before, totals, strict=True)):
        square = squares[place] + np.maximum(added[place], total**2 / AGREE)
        move = np.clip(1.5 * RATE * total / np.sqrt(square), -MAX_STEP, MAX_STEP)
        np.testing.assert_allclose(column.data, np.clip(start - move, -BOUND, BOUND), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(accumulators[place].data, square, rtol=1e-4)


def test_parameters_stay_within_their_bound_and_move_little_at_once() -> None:
    gate = Gate(FEATURES, INPUTS)
    inputs, push = np.ones((3, INPUTS), np.float32), np.full((3, FEATURES), -100.0, np.float32)
    for _ in range(400):
        before = gate.weight.data.copy(), gate.slope.data.copy()
        gate.update(inputs, push)
        for column, held in zip((gate.weight, gate.slope), before, strict=True):
            assert np.abs(column.data - held).max() <= MAX_STEP + 1e-6
            assert np.abs(column.data).max() <= BOUND
    assert gate.weight.data.min() > 1

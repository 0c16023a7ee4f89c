"""The gate, against its formula and torch's gradients."""

import numpy as np
import torch
from pipeline.features.memories import FEATURES, GATE

from pipeline.models.gate import BOUND, MOST, RATE, START, Gate

ALL = np.ones(FEATURES, np.float32)


def random_gate(rng: np.random.Generator, active: np.ndarray = ALL) -> Gate:  # type: ignore[type-arg]
    gate = Gate(active)
    gate.weight.data[:] = rng.normal(size=FEATURES) * active
    gate.slope.data[:] = rng.normal(size=(FEATURES, GATE)) * active[:, None]
    gate.weight_squares.data[:] = 1 + rng.random(FEATURES)
    gate.slope_squares.data[:] = 1 + rng.random((FEATURES, GATE))
    return gate


def test_coefficients_are_linear_in_the_context() -> None:
    rng = np.random.default_rng(0)
    gate, context = random_gate(rng), rng.normal(size=(5, GATE)).astype(np.float32)
    found = gate.coefficients(context)
    for b in range(5):
        for f in range(FEATURES):
            slope = sum(float(gate.slope.data[f, g]) * float(context[b, g]) for g in range(GATE))
            np.testing.assert_allclose(found[b, f], gate.weight.data[f] + slope, rtol=1e-4, atol=1e-5)


def test_a_fresh_gate_gives_every_memory_the_same_small_weight() -> None:
    assert (Gate(ALL).coefficients(np.ones((2, GATE), np.float32)) == np.float32(START)).all()


def test_a_step_follows_the_gradient_of_single_events() -> None:
    rng = np.random.default_rng(1)
    gate, context = random_gate(rng), rng.normal(size=(7, GATE)).astype(np.float32)
    upstream = rng.normal(size=(7, FEATURES)).astype(np.float32) * 0.3
    held = [gate.weight, gate.slope]
    before = [column.data.copy() for column in held]
    squares = [gate.weight_squares.data.copy(), gate.slope_squares.data.copy()]
    totals = [np.zeros_like(array, np.float64) for array in before]
    for b in range(7):  # each event's own gradient, by autograd
        weight, slope = (torch.tensor(array, requires_grad=True) for array in before)
        coefficients = weight + slope @ torch.from_numpy(context[b])
        (coefficients * torch.from_numpy(upstream[b])).sum().backward()
        for place, parameter in enumerate((weight, slope)):
            gradient = parameter.grad.double().numpy()
            totals[place] += gradient
            squares[place] = squares[place] + gradient**2
    gate.update(context, upstream)
    for column, start, total, square in zip(held, before, totals, squares, strict=True):
        move = np.clip(RATE * total / np.sqrt(square), -MOST, MOST)
        np.testing.assert_allclose(column.data, np.clip(start - move, -BOUND, BOUND), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gate.weight_squares.data, squares[0], rtol=1e-4)
    np.testing.assert_allclose(gate.slope_squares.data, squares[1], rtol=1e-4)


def test_parameters_stay_within_their_bound_and_move_little_at_once() -> None:
    gate = Gate(ALL)
    context, push = np.ones((3, GATE), np.float32), np.full((3, FEATURES), -100.0, np.float32)
    for _ in range(400):
        before = gate.weight.data.copy(), gate.slope.data.copy()
        gate.update(context, push)
        assert np.abs(gate.weight.data - before[0]).max() <= MOST + 1e-6
        assert np.abs(gate.slope.data - before[1]).max() <= MOST + 1e-6
        assert max(np.abs(gate.weight.data).max(), np.abs(gate.slope.data).max()) <= BOUND
    assert gate.weight.data.min() > 1


def test_a_switched_off_memory_counts_nothing_and_learns_nothing() -> None:
    rng = np.random.default_rng(2)
    active = ALL.copy()
    active[[1, 4]] = 0
    gate = Gate(active)
    for _ in range(5):
        context = rng.normal(size=(4, GATE)).astype(np.float32)
        gate.update(context, rng.normal(size=(4, FEATURES)).astype(np.float32))
        found = gate.coefficients(context)
        assert (found[:, [1, 4]] == 0).all()
        assert (found[:, [0, 2, 3]] != 0).all()
    assert (gate.slope.data[[1, 4]] == 0).all()

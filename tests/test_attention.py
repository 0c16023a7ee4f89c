"""Attention, against loops in plain Python and torch's gradients."""

import math

import numpy as np
import pytest
import torch
from harness.streams import START_MS
from harness.torch_attention import TorchAttention

from pipeline.models.attention_net import GAPS, TYPES, Attention, Windows, side_buckets
from pipeline.models.optimizer import RowGradients

DIM, LENGTH, ITEMS = 6, 5, 12


def random_attention(heads: int, seed: int = 0) -> Attention:
    """A module with all parameters random, those that start at 0 included."""
    module = Attention(DIM, heads, LENGTH, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def random_windows(lengths: list[int], most: int = LENGTH) -> Windows:
    rng, batch = np.random.default_rng(2), len(lengths)
    items = rng.integers(0, ITEMS, (batch, most)).astype(np.int32)
    items[np.arange(most)[None, :] >= np.array(lengths)[:, None]] = -1
    gaps, types = rng.integers(0, GAPS, (batch, most)), rng.integers(0, TYPES, (batch, most))
    values = rng.normal(size=(ITEMS, DIM)).astype(np.float32)
    return Windows(values, items, np.array(lengths, np.int32), gaps, types)


def plain_user(module: Attention, items: list[list[float]], gaps: list[int], types: list[int]) -> list[float]:
    """One user's vector by the formula of the class, number by number."""
    p = {name: parameter.detach().double().tolist() for name, parameter in module.named_parameters()}
    d, e = range(module.dim), range(module.head_dim)

    def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    z = times(p["newest"], items[0]) if items else [0.0] * module.dim
    for h in range(module.heads):
        if not items:
            break
        query = times(p["query"][h], items[0])
        logits = []
        for place, item in enumerate(items):
            sides = [p["place"][place][i] + p["gap"][gaps[place]][i] + p["kind"][types[place]][i] for i in d]
            key = times(p["key"][h], [a + b for a, b in zip(item, sides, strict=True)])
            logits.append(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(module.head_dim))
        top = max(logits)
        raised = [math.exp(logit - top) for logit in logits]
        alpha = [value / sum(raised) for value in raised]
        pooled = [sum(a * item[i] for a, item in zip(alpha, items, strict=True)) for i in d]
        value = times(p["value"][h], pooled)
        z = [z[i] + sum(p["output"][h][i][j] * value[j] for j in e) for i in d]
    mean = sum(z) / module.dim
    deviation = math.sqrt(sum((x - mean) ** 2 for x in z) / module.dim + 1e-5)
    return [p["gamma"][i] * (z[i] - mean) / deviation + p["beta"][i] for i in d]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_users_vector_is_that_of_the_formula(heads: int) -> None:
    module, lengths = random_attention(heads), [5, 1, 3, 0, 2]
    windows = random_windows(lengths)
    found = module.attend(windows).user_BD
    for b, n in enumerate(lengths):
        items = windows.values[windows.items_BL[b, :n]].tolist()
        gaps, types = windows.gaps_BL[b, :n].tolist(), windows.types_BL[b, :n].tolist()
        np.testing.assert_allclose(found[b], plain_user(module, items, gaps, types), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("most", [LENGTH, 4])
def test_gradients_are_those_of_autograd(heads: int, most: int) -> None:
    """Also with windows shorter than the module's, and with an item in several places."""
    module, windows = random_attention(heads), random_windows([4, 1, 3, 0, 2, 4, 4], most)
    slope = np.random.default_rng(3).normal(size=(7, DIM)).astype(np.float32)
    sums = RowGradients(DIM).begin(ITEMS, ITEMS)
    module.backward(windows, module.attend(windows), slope, sums)
    oracle, items = TorchAttention.of(module), torch.from_numpy(windows.values).double()
    empty = torch.from_numpy(windows.items_BL < 0)
    inputs = items[np.maximum(windows.items_BL, 0)].masked_fill(empty[:, :, None], 0).requires_grad_()
    sides = (torch.from_numpy(windows.gaps_BL), torch.from_numpy(windows.types_BL))
    oracle(inputs, empty, *sides).backward(torch.from_numpy(slope).double())
    for (name, found), wanted in zip(module.named_parameters(), oracle.parameters(), strict=True):
        np.testing.assert_allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-4, err_msg=name)
    single = inputs.grad.numpy()[~empty.numpy()]  # type: ignore[union-attr]
    total, squares = np.zeros((ITEMS, DIM)), np.zeros(ITEMS)
    np.add.at(total, windows.items_BL[windows.items_BL >= 0], single)
    np.add.at(squares, windows.items_BL[windows.items_BL >= 0], (single**2).mean(1))
    rows = sums.rows[: sums.used[0]]
    assert set(rows.tolist()) == set(windows.items_BL[windows.items_BL >= 0].tolist())
    np.testing.assert_allclose(sums.total[: rows.size], total[rows], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sums.squares[: rows.size], squares[rows], rtol=1e-3, atol=1e-4)


def test_an_empty_window_gives_beta_and_finite_gradients() -> None:
    module, windows = random_attention(2), random_windows([0, 0])
    attended = module.attend(windows)
    np.testing.assert_allclose(attended.user_BD, module.arrays["beta"][None].repeat(2, 0), atol=1e-6)
    sums = RowGradients(DIM).begin(ITEMS, ITEMS)
    module.backward(windows, attended, np.ones((2, DIM), np.float32), sums)
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())  # type: ignore[arg-type]
    assert sums.used[0] == 0


def test_padding_never_matters() -> None:
    module, windows = random_attention(2), random_windows([3, 1, 2])
    whole = module.attend(windows).user_BD
    cut = Windows(windows.values, windows.items_BL[:, :3], windows.length_B, *(s[:, :3] for s in windows[3:]))
    np.testing.assert_allclose(whole, module.attend(cut).user_BD, rtol=1e-5, atol=1e-6)
    empty = windows.items_BL < 0
    gaps = np.where(empty, (windows.gaps_BL + 3) % GAPS, windows.gaps_BL)
    types = np.where(empty, (windows.types_BL + 5) % TYPES, windows.types_BL)
    padded = module.attend(windows._replace(gaps_BL=gaps, types_BL=types)).user_BD
    np.testing.assert_array_equal(whole, padded)


@pytest.mark.parametrize("heads", [1, 2])
def test_contributions_sum_to_the_score(heads: int) -> None:
    module, windows = random_attention(heads), random_windows([5, 1, 0, 3])
    shown = np.random.default_rng(9).normal(size=(4, 7, DIM)).astype(np.float32)
    attended = module.attend(windows)
    parts, rest = module.contributions(windows, attended, shown)
    score = np.einsum("bd,bkd->bk", attended.user_BD, shown)
    np.testing.assert_allclose(parts.sum(2) + rest, score, rtol=1e-4, atol=1e-5)
    assert (parts.transpose(0, 2, 1)[windows.items_BL < 0] == 0).all()  # an empty place adds nothing


def test_a_place_that_attention_passes_over_contributes_nothing_but_as_the_newest() -> None:
    module, windows = random_attention(1), random_windows([3])
    with torch.no_grad():
        module.value.zero_()
    shown = np.broadcast_to(np.arange(DIM, dtype=np.float32), (1, 1, DIM)).copy()
    parts, _ = module.contributions(windows, module.attend(windows), shown)
    assert abs(parts[0, 0, 0]) > 1e-3
    np.testing.assert_allclose(parts[0, 0, 1:], 0, atol=1e-6)


def test_gaps_and_types_fall_into_their_buckets() -> None:
    times = np.array([[START_MS, START_MS - 1000, START_MS - 3_600_000, 0, START_MS + 50_000]], np.int64)
    gaps, types = side_buckets(times, np.array([START_MS]), np.array([[0, 15, 16, 65_535, 33]], np.uint16))
    hour = int(math.log2(3601) * 0.6)
    assert gaps.tolist() == [[0, 0, hour, GAPS - 1, 0]]
    assert types.tolist() == [[0, 15, 0, 15, 1]]


def test_the_same_seed_gives_the_same_module_whatever_was_drawn_before() -> None:
    first = Attention(DIM, 2, LENGTH, 4)
    torch.randn(3)
    second, third = Attention(DIM, 2, LENGTH, 4), Attention(DIM, 2, LENGTH, 5)
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.query, third.query)

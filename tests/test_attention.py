"""Attention, against loops in plain Python."""

import math

import numpy as np
import pytest
import torch
from harness.streams import START_MS

from pipeline.models.attention_net import GAPS, TYPES, Attention, side_buckets

DIM, LENGTH = 6, 5


def random_attention(heads: int, seed: int = 0) -> Attention:
    """A module with all parameters random, those that start at 0 included."""
    module = Attention(DIM, heads, LENGTH, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def random_windows(batch: int, lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed + 2)
    items = torch.randn(batch, LENGTH, DIM, generator=generator)
    empty = torch.arange(LENGTH)[None, :] >= torch.tensor(lengths)[:, None]
    items[empty] = 0
    gaps = torch.randint(0, GAPS, (batch, LENGTH), generator=generator)
    types = torch.randint(0, TYPES, (batch, LENGTH), generator=generator)
    return items, empty, gaps, types


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
    items, empty, gaps, types = random_windows(5, lengths)
    found = module(items, empty, gaps, types)
    for b, n in enumerate(lengths):
        expected = plain_user(module, items[b, :n].tolist(), gaps[b, :n].tolist(), types[b, :n].tolist())
        np.testing.assert_allclose(found[b].detach().numpy(), expected, rtol=2e-4, atol=2e-5)


def test_an_empty_window_gives_beta_and_finite_gradients() -> None:
    module = random_attention(2)
    items, *rest = random_windows(2, [0, 0])
    items.requires_grad_()
    vectors = module(items, *rest)
    np.testing.assert_allclose(vectors.detach(), module.beta.detach().expand(2, DIM), atol=1e-6)
    vectors.square().sum().backward()
    assert torch.isfinite(items.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_padding_never_matters() -> None:
    module = random_attention(2)
    items, empty, gaps, types = random_windows(3, [3, 1, 2])
    whole = module(items, empty, gaps, types)
    cut = module(items[:, :3], empty[:, :3], gaps[:, :3], types[:, :3])
    np.testing.assert_allclose(whole.detach(), cut.detach(), rtol=1e-5, atol=1e-6)
    other_gaps, other_types = gaps.clone(), types.clone()
    other_gaps[empty], other_types[empty] = (gaps[empty] + 3) % GAPS, (types[empty] + 5) % TYPES
    padded = module(items, empty, other_gaps, other_types)
    np.testing.assert_array_equal(whole.detach(), padded.detach())


@pytest.mark.parametrize("heads", [1, 2])
def test_contributions_sum_to_the_score(heads: int) -> None:
    module = random_attention(heads)
    inputs = random_windows(4, [5, 1, 0, 3])
    targets = torch.randn(4, 7, DIM, generator=torch.Generator().manual_seed(9))
    alpha = module.weights(*inputs)
    parts, rest = module.contributions(inputs[0], alpha, module.pre_norm(inputs[0], alpha), targets)
    score = torch.einsum("bd,bkd->bk", module(*inputs), targets)
    np.testing.assert_allclose(parts.sum(2) + rest, score.detach(), rtol=1e-4, atol=1e-5)
    assert (parts.permute(0, 2, 1)[inputs[1]] == 0).all()  # an empty place adds nothing


def test_a_place_that_attention_passes_over_contributes_nothing_but_as_the_newest() -> None:
    module = random_attention(1)
    inputs = random_windows(1, [3])
    with torch.no_grad():
        module.value.zero_()
    alpha, targets = module.weights(*inputs), torch.ones(1, 1, DIM) * torch.arange(DIM)
    parts, _ = module.contributions(inputs[0], alpha, module.pre_norm(inputs[0], alpha), targets)
    assert parts[0, 0, 0].abs() > 1e-3
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

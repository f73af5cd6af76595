"""Clamps of units that are learned: value and gradient are torch's, but on a bound."""

import pytest
import torch

from tvmq.reconstruct import pieces
from tvmq.reconstruct.clipping import clipped


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (None, 1.0), (-0.5, None)])
@pytest.mark.parametrize("last", [False, True])
def test_value_and_gradient_are_those_of_clamp(monkeypatch, low, high, last):
    monkeypatch.setattr(pieces, "PIECE", 100)
    x = 4 * torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    own, other = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    y, expected = clipped(own, low, high), torch.clamp(other, low, high)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(y, expected)
    assert torch.equal(own.grad, other.grad)
    assert y.is_contiguous(memory_format=torch.channels_last) == last


def test_nothing_passes_to_what_lies_on_a_bound():
    x = torch.tensor([0.0, 1.0, 6.0, -1.0, 7.0], requires_grad=True)
    clipped(x, 0.0, 6.0).sum().backward()
    assert x.grad.tolist() == [0, 1, 0, 0, 0]


def test_without_a_gradient_it_is_clamp():
    x = torch.tensor([-1.0, 7.0])
    assert clipped(x, 0.0, 6.0).tolist() == [0, 6]

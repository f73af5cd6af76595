"""What a unit is trained with: its loss, the gradient of that, and its mixed inputs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tvmq.reconstruct import pieces
from tvmq.reconstruct.learned_steps import DropMasks
from tvmq.reconstruct.losses import PowerLoss
from tvmq.reconstruct.training import mixed_inputs
from tvmq.reconstruct.unit_cache import Stream


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0, 2.4])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 7, 3), (4, 3)])
def test_value_and_gradient_are_those_of_the_formula(monkeypatch, power, shape):
    monkeypatch.setattr(pieces, "PIECE", 10)
    error = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error.requires_grad_(True)
    loss = PowerLoss(power)(error)
    channels = shape[1] if len(shape) == 4 else shape[-1]
    expected = error.abs().pow(power).mean() * channels
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, error)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, error)[0])


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0])
def test_no_error_has_no_gradient(power):
    error = torch.zeros(2, 3, 4, 5, requires_grad=True)
    PowerLoss(power)(error).backward()
    assert torch.equal(error.grad, torch.zeros_like(error))


def test_gradient_lies_as_the_images_do():
    """Passes over tensors that lie in different orders take many times as long."""
    error = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(True)
    found = []
    error.register_hook(lambda gradient: found.append(gradient))
    PowerLoss(1.7)(error * 1).backward()
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_inputs_are_mixed_element_by_element():
    both = Stream(Path()), Stream(Path())
    images = torch.arange(2 * 3 * 50 * 50.0).reshape(2, 3, 50, 50)
    for stream, sign in zip(both, (1, -1), strict=True):
        stream.put("x", 0, 2, sign * (images + 1))
    cache = SimpleNamespace(exact=both[0], quantized=both[1])
    which = torch.tensor([1, 0, 1])
    masks = DropMasks(0.5, torch.Generator().manual_seed(0))
    mixed = mixed_inputs(cache, "x", which, masks)
    assert torch.equal(mixed.abs(), images[which] + 1)
    assert 0.48 < float((mixed > 0).float().mean()) < 0.52
    assert torch.equal(mixed_inputs(cache, "x", which, None), -(images[which] + 1))

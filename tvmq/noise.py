"""Seeded noise of the shapes and types of a network's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvmq.float_model import TensorSpec


def noise_like(specs: Sequence[TensorSpec], batch: int) -> list[torch.Tensor]:
    """A batch for each input: normal floats, bytes, or whole numbers that any index may be.

    Args:
        specs: of the inputs; axis 0 of their shapes is ignored.
        batch: images.
    """
    generator = torch.Generator().manual_seed(0)
    return [_noise(spec, batch, generator) for spec in specs]


def _noise(spec: TensorSpec, batch: int, generator: torch.Generator) -> torch.Tensor:
    shape = (batch, *spec.shape[1:])
    if spec.dtype == "float32":
        return torch.randn(shape, generator=generator)
    whole = torch.randint(0, below(spec), shape, generator=generator)
    return whole.to(getattr(torch, spec.dtype))


def below(spec: TensorSpec) -> int:
    """What whole numbers of an input stay below: any byte, and an index that all tables have."""
    return 256 if spec.dtype == "uint8" else 2

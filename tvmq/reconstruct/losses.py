"""What a unit is trained with and judged by: losses, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tvmq.float_model import FloatModel
from tvmq.reconstruct.pieces import dense, pieces
from tvmq.reconstruct.units import Unit
from tvmq.settings import Settings


class Loss(Protocol):
    """Of the error of one output of a unit: a mean over its images."""

    def __call__(self, error: torch.Tensor) -> torch.Tensor:
        """float32[], with a gradient; the error is [N, ..., C], or [N, C, H, W] for images."""

    def __str__(self) -> str:
        """For the report."""


@dataclass(frozen=True)
class PowerLoss:
    """Mean over images and places of the sum over channels of ``|error|**power``.

    Attributes:
        power: in [1, 2] for what is learned with.
    """

    power: float

    def __call__(self, error: torch.Tensor) -> torch.Tensor:
        """float32[]."""
        channels = error.shape[1] if error.dim() == 4 else error.shape[-1]
        mean: torch.Tensor = _MeanPower.apply(error, self.power)
        return mean * channels

    def __str__(self) -> str:
        return f"|error|^{self.power:g}"


MSE = PowerLoss(2.0)


def batch_norm_loss(model: FloatModel, unit: Unit, kappa: float) -> PowerLoss:
    """The loss whose exponent follows from the scales of a unit's last batch norm (RAPQ).

    ``1 + kappa * sigmoid((sum(gamma) - 1) / channels)``, to one decimal, as in the public code of
    arXiv 2204.12322; 2 for single layers and for units without batch norm.
    """
    norms = [model.batch_norms[name] for name in unit.nodes if name in model.batch_norms]
    if len(unit.layers) < 2 or not norms:
        return MSE
    gamma = norms[-1].gamma
    mean = (float(gamma.double().sum()) - 1) / len(gamma)
    return PowerLoss(round(1 + kappa / (1 + math.exp(-mean)), 1))


LOSSES: dict[str, Callable[[FloatModel, Unit, Settings], Loss]] = {
    "mse": lambda model, unit, settings: MSE,
    "batch-norm lp": lambda model, unit, settings: batch_norm_loss(model, unit, settings.kappa),
}
"""What the loss of a unit is, by the name that a method gives."""


class _MeanPower(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """The mean of ``|x|**power``, piece by piece."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, power: float) -> torch.Tensor:
        x = dense(x)
        ctx.save_for_backward(x)
        ctx.power = power
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for (error,) in pieces(x):
            if power == 2.0:
                total += torch.dot(error, error)
            else:
                magnitude = error.abs()
                total += torch.dot(magnitude.pow(power - 1), magnitude)
        return (total / x.numel()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = torch.empty_like(x)
        scale = grad * (ctx.power / x.numel())
        for error, change in pieces(x, slope):
            if ctx.power == 2.0:
                torch.mul(error, scale, out=change)
            else:
                torch.abs(error, out=change)
                # the sign last: 0 for 0, also where the power is 0**0
                change.pow_(ctx.power - 1).mul_(scale).mul_(torch.sign(error))
        return slope, None

"""ReLU6 and other clamps with a gradient that is worked out in the caches of a core."""

from __future__ import annotations

from typing import Any

import torch

from tvmq.reconstruct.pieces import dense, pieces


def clipped(x: torch.Tensor, low: float | None = None, high: float | None = None) -> torch.Tensor:
    """``clamp``, whose own gradient takes twice the time of the convolution before it.

    Nothing passes to what lies on a bound.
    """
    if not x.requires_grad or not torch.is_grad_enabled():
        return torch.clamp(x, low, high)
    result: torch.Tensor = _Clip.apply(x, low, high)
    return result


class _Clip(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
        result = torch.clamp(dense(x), low, high)
        ctx.save_for_backward(result)
        ctx.low, ctx.high = low, high
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        result = torch.empty_like(y)
        for value, given, change in pieces(y, dense(grad, like=y), result):
            change.copy_(given)
            if ctx.low is not None:
                change.mul_(value.clone().gt_(ctx.low))
            if ctx.high is not None:
                change.mul_(value.clone().lt_(ctx.high))
        return result, None, None

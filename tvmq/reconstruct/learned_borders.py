"""Borders of activations that are learned: from which fraction on a level is rounded up.

AQuant (arXiv 2208.11945) rounds an activation by a function of its value, learned to reduce the
error of what reads it. Here a table of bytes, by level, for the whole tensor or for each channel,
and what is learned on top of it is a polynomial of the level: ``c0 + c1 v + c2 v^2``, v in (0, 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from targets.rounding import HALF_BORDER, HALF_UP, Rounding, RoundingMode
from tvmq.regions import channel_axis

NEAR = 0.125
"""How far from a border what is rounded by it still tells its gradient."""


class BorderQuantize(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """Round by borders, with straight-through gradients for all but the borders.

    What a border moves is the code of those elements whose fraction it passes, so its gradient is
    made of the elements near it, on either side, for all that it would pass: -1 in the mean over
    fractions. Those farther away are rounded alike whatever it does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        step: torch.Tensor,
        borders: torch.Tensor,
        low: int,
        high: int,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """Arguments as of ``FakeQuantize``; ``borders`` is float32[1 or K, high - low]."""
        scaled = x / step
        whole = scaled.floor()
        level = (whole - low).clamp_(0, high - low - 1).to(torch.int64)
        if len(borders) > 1:
            level += _row_starts(borders, x.dim())
        border = borders.reshape(-1)[level]
        fraction = scaled - whole
        rounded = whole + (fraction >= border)
        code = rounded.clamp(low, high)
        inside = (rounded == code).to(x.dtype)
        y = code * step
        slope = None
        if ctx.needs_input_grad[1]:
            slope = code - scaled * inside
        felt = None
        if ctx.needs_input_grad[2]:
            # Not by what is clamped whichever way it is rounded.
            near = (whole >= low) & (whole < high) & ((fraction - border).abs() < NEAR)
            width = (border + NEAR).clamp_max(1) - (border - NEAR).clamp_min(0)
            felt = near / width
        if keep is not None:
            y = y.lerp_(x, keep)
            felt = None if felt is None else felt * (1 - keep)
            slope = None if slope is None else slope * (1 - keep)
            inside = torch.maximum(inside, keep)
        ctx.save_for_backward(inside, slope, felt, level, step)
        ctx.count, ctx.high, ctx.shape = x.numel(), max(high, 1), borders.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, step (scaled as LSQ's) and borders."""
        inside, slope, felt, level, step = ctx.saved_tensors
        step_grad = border_grad = None
        if slope is not None:
            step_grad = torch.sum(grad * slope).reshape(1) / (ctx.count * ctx.high) ** 0.5
        if felt is not None:
            weights = (grad * felt).reshape(-1)
            sums = torch.bincount(level.reshape(-1), weights, ctx.shape.numel())
            border_grad = -(sums.to(grad.dtype) * step).reshape(ctx.shape)
        return grad * inside, step_grad, border_grad, None, None, None


def _row_starts(borders: torch.Tensor, dims: int) -> torch.Tensor:
    """Where the row of each channel begins in all borders, broadcast against a tensor."""
    rows, levels = borders.shape
    shape = [-1 if axis == channel_axis(dims) else 1 for axis in range(dims)]
    return torch.arange(0, rows * levels, levels, device=borders.device).reshape(shape)


class LearnedBorders(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The borders of one value.

    Attributes:
        table: uint8[1 or K, levels]: what is used while nothing is learned.
        curve: float32[1 or K, degree + 1], the polynomial that is learned on top of the table.
    """

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())
        self.curve: nn.Parameter | None = None

    @staticmethod
    def half_up(rows: int, levels: int) -> LearnedBorders:
        """The borders that round half up."""
        return LearnedBorders(torch.full((rows, levels), HALF_BORDER, dtype=torch.uint8))

    def forward(self) -> torch.Tensor:
        """float32[1 or K, levels], in steps."""
        borders = self.table.float() / 256
        if self.curve is None:
            return borders
        levels = self.table.shape[1]
        v = (torch.arange(levels, device=self.table.device) + 0.5) / (levels + 1)
        powers = torch.stack([v**n for n in range(self.curve.shape[1])])
        moved = borders + self.curve @ powers
        # No gradient is lost at the ends: those who got there come back.
        return moved + (moved.clamp(1 / 256, 255 / 256) - moved).detach()

    def learn(self, degree: int) -> nn.Parameter:
        """Learn a polynomial of a degree on top of what there is."""
        shape = (len(self.table), degree + 1)
        self.curve = nn.Parameter(torch.zeros(shape, device=self.table.device))
        return self.curve

    def harden(self) -> None:
        """Fix the borders where learning left them."""
        if self.curve is not None:
            with torch.no_grad():
                self.table.copy_((self() * 256 + 0.5).floor().clamp(1, 255).to(torch.uint8))
            self.curve = None

    def rounding(self, first: int) -> Rounding:
        """For the plan; half up where all borders are."""
        if bool((self.table == HALF_BORDER).all()):
            return HALF_UP
        rows = tuple(row.numpy().tobytes() for row in self.table)
        return Rounding(RoundingMode.BORDER, rows, first)

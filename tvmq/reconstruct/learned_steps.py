"""Activation steps that are learned, and the fake quantization that they are learned through.

The gradient of a step is LSQ's (arXiv 1902.08153, eq. 3): ``code - x / step`` inside the range,
``code`` outside (codes without zero point), scaled as in its section 2.2. The parameter is
``theta = log2(step)``, so that a free step stays positive and a power of two is
``2**round(theta)``: by the chain rule its gradient is TQT's (arXiv 1903.08066). QDrop (arXiv
2203.05740) leaves elements unquantized at random while training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from targets.code_range import code_range
from targets.errors import UnsupportedError
from targets.rounding import HALF_UP
from tvmq.plan.plan import ValuePlan
from tvmq.reconstruct.learned_borders import BorderQuantize, LearnedBorders
from tvmq.reconstruct.pieces import dense, pieces


class FakeQuantize(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """Round half up to codes, with straight-through and LSQ gradients, piece by piece.

    Only x is kept for the gradients; the codes are worked out anew, in the caches of a core. Masks
    are floats of 0 and 1: where a pass of arithmetic takes 0.1 ms, one that selects by random
    booleans takes 2.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        step: torch.Tensor,
        low: int,
        high: int,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """``low`` and ``high`` are without the zero point; ``keep`` is 1 for what stays float."""
        x = dense(x)
        ctx.save_for_backward(x, step, keep)
        ctx.low, ctx.high = low, high
        result = torch.empty_like(x)
        for value, kept, y in pieces(x, keep, result):
            torch.div(value, step, out=y).add_(0.5).floor_().clamp_(low, high).mul_(step)
            if kept is not None:
                y.lerp_(value, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and step; that of the step is scaled by 1 / sqrt(N * high) as in LSQ."""
        x, step, keep = ctx.saved_tensors
        of_x, of_step = ctx.needs_input_grad[:2]
        grad = dense(grad, like=x)
        result = torch.empty_like(x) if of_x else None
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for value, kept, slope, given in pieces(x, keep, grad, result):
            scaled = value / step
            inside = (scaled + 0.5).floor_()
            code = inside.clamp(ctx.low, ctx.high)
            inside.eq_(code)
            if of_step:
                # LSQ: code outside the range, code - x / step inside it, nothing where x is kept.
                code.addcmul_(scaled, inside, value=-1)
                if kept is not None:
                    code.addcmul_(code, kept, value=-1)
                total += torch.dot(slope, code)
            if of_x:
                if kept is not None:
                    torch.maximum(inside, kept, out=inside)
                torch.mul(slope, inside, out=given)
        scale = 1 / math.sqrt(x.numel() * max(ctx.high, 1))
        step_grad = total.to(step.dtype).reshape(1) * scale if of_step else None
        return result, step_grad, None, None, None


class LearnedStep(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The codes of one value: fake quantization with a step that may be learned.

    Attributes:
        theta: log2 of the step, float32[1].
        drift: log2 of what the step is times ``exact`` just now, float32[1], while the tensor is
            being scaled (``inner_scales.py``).
        drop: masks of what stays float; None outside of training.
        off: nothing is quantized at all.
        borders: by which it is rounded; None: half up. Only a step of one value has some.
    """

    def __init__(self, plan: ValuePlan, *, pot: bool) -> None:
        """Start at the step of a plan; ``pot``: only powers of two are ever used.

        Raises:
            UnsupportedError: the plan rounds the value otherwise than half up.
        """
        super().__init__()
        if plan.rounding != HALF_UP:
            mode = plan.rounding.mode.name
            raise UnsupportedError(
                f"A value rounds by {mode}, but steps are learned half up. Use HALF_UP."
            )
        self.pot = pot
        low, high = code_range(plan.bits, plan.signed)
        self.low, self.high = low - plan.zero_point, high - plan.zero_point
        self.theta = nn.Parameter(torch.tensor([math.log2(plan.step)]), requires_grad=False)
        self.exact = plan.step
        self.drift: torch.Tensor | None = None
        self.drop: DropMasks | None = None
        self.off = False
        self.borders: LearnedBorders | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize."""
        if self.off:
            return x
        keep = None if self.drop is None else self.drop.take(x)
        ends = (self.low, self.high, keep)
        step = self.step()
        if self.drift is not None:
            step = step * torch.exp2(self.drift)
        if self.borders is None:
            result: torch.Tensor = FakeQuantize.apply(x, step, *ends)
        else:
            result = BorderQuantize.apply(x, step, self.borders(), *ends)
        return result

    def step(self) -> torch.Tensor:
        """float32[1], with the gradient that leads to theta."""
        if not self.theta.requires_grad:
            return torch.tensor([self.exact], dtype=torch.float32, device=self.theta.device)
        theta = self.theta
        if self.pot:
            theta = theta + (torch.floor(theta + 0.5) - theta).detach()
        return torch.exp2(theta)

    def learn(self) -> None:
        """Let the step follow its gradient."""
        self.theta.requires_grad_(True)

    def harden(self) -> float:
        """Fix the step where learning left it; exactly a power of two if it must be one."""
        if self.theta.requires_grad:
            theta = float(self.theta.detach())
            self.exact = math.ldexp(1.0, math.floor(theta + 0.5)) if self.pot else 2.0**theta
            self.theta.requires_grad_(False)
        return self.exact

    def fix(self, step: float) -> None:
        """Use this step."""
        self.exact = step
        self.theta.data.fill_(math.log2(step))

    def held(self) -> dict[str, torch.Tensor]:
        """What ``hold`` takes: the step, float64[], and borders, uint8[1 or K, levels], if any."""
        held = {"step": torch.tensor(self.exact, dtype=torch.float64)}
        return held if self.borders is None else held | {"borders": self.borders.table.clone()}

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be what it was."""
        self.fix(float(held["step"]))
        table = held.get("borders")
        self.borders = None if table is None else LearnedBorders(table)


WINDOWS = 2**20
"""At least so many windows of each size."""


class DropMasks:
    """Random masks at no price: windows of one long random sequence of 0 and 1.

    Attributes:
        rate: share of elements that are 1.
    """

    def __init__(
        self,
        rate: float,
        generator: torch.Generator,
        length: int = 2**22,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rate, self.generator, self.device = rate, generator, device
        self.ones = self._draw(length)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """float32 of 0 and 1, the shape and memory order of ``x``."""
        count = x.numel()
        missing = count + WINDOWS - len(self.ones)
        if missing > 0:
            self.ones = torch.cat([self.ones, self._draw(missing)])
        most = len(self.ones) - count
        start = int(torch.randint(most + 1, (1,), generator=self.generator))
        window = self.ones[start : start + count]
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            n, c, h, w = x.shape
            return window.reshape(n, h, w, c).permute(0, 3, 1, 2)
        return window.reshape(x.shape)

    def _draw(self, count: int) -> torch.Tensor:
        return (torch.rand(count, generator=self.generator) < self.rate).float().to(self.device)

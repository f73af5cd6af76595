"""AdaRound: whether each weight is rounded down or up, learned through a soft decision.

Equations 21 to 24 of arXiv 2004.10568, for symmetric weights:

    w^ = step * clamp(floor(w / step) + h(alpha), low, high)
    h(alpha) = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1)

``alpha`` starts where ``w^`` is the float weight. The regularizer ``sum 1 - |2 h - 1|^beta`` draws
h to 0 or 1, weakly at first (beta 20) and for all in the end (beta 2); ``harden`` then takes the
side on which each h lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from targets.arithmetic import MAX_SHIFT_SPREAD
from tvmq.plan.plan import WeightPlan
from tvmq.settings import learned_range

STRETCH = 1.2
MOST_AWAY = 0.45
"""Of a number from the code that it is rounded to, where numbers start."""

BETA_FIRST, BETA_LAST = 20.0, 2.0


class _Height(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """h(alpha) in few passes over the weights."""

    @staticmethod
    def forward(ctx: Any, alpha: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(alpha)
        height = (STRETCH * share).sub_(0.1).clamp_(0.0, 1.0)
        ctx.save_for_backward(share, height)
        return height

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        share, height = ctx.saved_tensors
        slope = torch.addcmul(share, share, share, value=-1).mul_(STRETCH)
        return slope.mul_((height > 0) & (height < 1)).mul_(grad)


class _Undecided(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """``sum(1 - |2 h - 1|**beta)`` with a single power for value and gradient."""

    @staticmethod
    def forward(ctx: Any, height: torch.Tensor, beta: float) -> torch.Tensor:
        side = (2 * height).sub_(1)
        lower = side.abs().pow_(beta - 1)
        ctx.save_for_backward(torch.copysign(lower, side))
        ctx.beta = beta
        return height.numel() - lower.mul_(side.abs_()).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * (-2 * ctx.beta * grad), None


class _Through(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """Numbers rounded to codes half up; the gradient of a code within its range is the number's."""

    @staticmethod
    def forward(
        ctx: Any, numbers: torch.Tensor, low: int | torch.Tensor, high: int | torch.Tensor
    ) -> torch.Tensor:
        rounded = torch.floor(numbers + 0.5)
        codes = rounded.clamp(low, high)
        ctx.save_for_backward(rounded == codes)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class SoftWeight(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The weight of one layer, in codes that are being decided.

    Attributes:
        alpha: float32, shape of the weight: above 0 rounds up.
        low, high: range of the codes; tensors where it is another one for each channel.
        decisions: h(alpha) of the last forward while it is learned.
        steps: float32[K or 1, 1, ...].
        drift: gives what the steps are times ``steps`` just now, float32[1], while what the layer
            makes or reads is being scaled (``inner_scales.py``).
        numbers: float32, in codes, which are these rounded, while codes may move (``move``).
        size: log2 of what the steps are times ``steps`` just now, float32[K or 1, 1, ...], while
            they may be any number and are learned (``resize``).
        frozen: float32, what a forward gives while nothing is being learned.
    """

    frozen: torch.Tensor
    floor: torch.Tensor
    steps: torch.Tensor
    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, plan: WeightPlan) -> None:
        """Start at the float weight, frozen at its nearest codes.

        Args:
            weight: float32[K, ...].
            plan: its steps and bits.
        """
        super().__init__()
        self.bits = plan.bits
        self.low: int | torch.Tensor
        self.high: int | torch.Tensor
        self.low, self.high = learned_range(plan.bits)
        self.soft = False
        self.drift: Callable[[], torch.Tensor] | None = None
        self.numbers: nn.Parameter | None = None
        self.size: nn.Parameter | None = None
        self.decisions = torch.zeros(0)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("frozen", weight.detach().clone())
        self.use_steps(torch.tensor(plan.steps, dtype=torch.float64))
        self.freeze(self.nearest_codes())

    def use_steps(self, steps: torch.Tensor) -> None:
        """Take other steps, float64[K] or [1], and start again at the float weight."""
        self.exact_steps = steps
        column = steps.reshape(-1, *[1] * (self.weight.dim() - 1))
        self.register_buffer("steps", column.float())
        self.start_at_weight()

    def start_at_weight(self, spread: torch.Tensor | float = 1.0) -> None:
        """Decide anew, between the two codes beside the float weight.

        Args:
            spread: factors of products by which the layer multiplies what this module gives.
        """
        self.start_from(torch.floor(self._scaled(spread)), 0.0, spread)

    def start_from(
        self, codes: torch.Tensor, share: float, spread: torch.Tensor | float = 1.0
    ) -> None:
        """Decide anew, between a code and the one beside it on the side of the float weight.

        Args:
            codes: the shape of the weight.
            share: how far from the float weight to the code the soft weight starts, in [0, 1].
            spread: as of ``start_at_weight``.
        """
        scaled = self._scaled(spread)
        codes = codes.double()
        floor = torch.where(scaled >= codes, codes, codes - 1)
        part = (scaled - floor).clamp(0, 1)
        part = torch.lerp(part, codes - floor, share).float().clamp(1e-4, 1 - 1e-4)
        self.alpha = nn.Parameter(-torch.log(STRETCH / (part + 0.1) - 1))
        self.register_buffer("floor", floor.float())

    def nearest_codes(self) -> torch.Tensor:
        """float64: the weight in the present steps, rounded half up."""
        return torch.floor(self._scaled() + 0.5).clamp(self.low, self.high)

    def _scaled(self, spread: torch.Tensor | float = 1.0) -> torch.Tensor:
        """float64: the weight in units of a code."""
        scaled: torch.Tensor = self.weight.double() / self.exact_steps.reshape(self.steps.shape)
        return scaled / spread

    def height(self) -> torch.Tensor:
        """h(alpha), in [0, 1]."""
        height: torch.Tensor = _Height.apply(self.alpha)
        return height

    def forward(self) -> torch.Tensor:
        """The weight with soft decisions, or as it was frozen."""
        weight = self.frozen
        if self.soft:
            self.decisions = self.height()
            weight = (self.floor + self.decisions).clamp(self.low, self.high) * self.steps
        if self.numbers is not None:
            weight = _Through.apply(self.numbers, self.low, self.high) * self.steps
        if self.size is not None:
            weight = weight * torch.exp2(self.size)
        return weight if self.drift is None else weight * self.drift()

    def regularizer(self, beta: float) -> torch.Tensor:
        """How undecided the weights of the last forward are: 0 where all h are 0 or 1."""
        undecided: torch.Tensor = _Undecided.apply(self.decisions, beta)
        return undecided

    def hard_codes(self) -> torch.Tensor:
        """float32: the codes on whose side each decision lies."""
        up = (self.alpha.detach() >= 0).float()
        return (self.floor + up).clamp(self.low, self.high)

    def freeze(self, codes: torch.Tensor) -> None:
        """Hold these codes from now on; ``codes`` gives them back."""
        self.soft = False
        self.decisions = torch.zeros(0)
        self.codes = codes.detach().to(torch.int8)
        memory = torch.channels_last if codes.dim() == 4 else torch.contiguous_format
        self.frozen = (self.codes * self.steps).contiguous(memory_format=memory)

    def move(self, spread: torch.Tensor | float = 1.0) -> None:
        """Let the codes that there are move, from as near to the float weight as rounds to them.

        Args:
            spread: as of ``start_at_weight``.
        """
        codes = self.codes.double()
        away = (self._scaled(spread) - codes).clamp(-MOST_AWAY, MOST_AWAY)
        self.numbers = nn.Parameter((codes + away).float())

    def resize(self, *, alike: bool) -> None:
        """Let the steps follow their gradient; ``alike``: all of the layer by one factor."""
        shape = self.steps[:1].shape if alike else self.steps.shape
        self.size = nn.Parameter(torch.zeros(shape))

    def settle(self) -> None:
        """Hold the codes and steps that learning led to."""
        if self.numbers is None:
            return
        codes = _Through.apply(self.numbers.detach(), self.low, self.high)
        if self.size is not None:
            steps = self.exact_steps * torch.exp2(self.size.detach().double().flatten())
            self.use_steps(torch.maximum(steps, steps.max() * 2.0**-MAX_SHIFT_SPREAD))
        self.numbers = self.size = None
        self.freeze(codes)

    def held(self) -> dict[str, torch.Tensor]:
        """What ``hold`` takes: int8 codes and float64[K or 1] steps."""
        return {"codes": self.codes.clone(), "steps": self.exact_steps.clone()}

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be what it was."""
        if not torch.equal(self.exact_steps, held["steps"]):
            self.use_steps(held["steps"])
        self.freeze(held["codes"])


def annealed_beta(progress: float, warm_up: float) -> float | None:
    """The regularizer's exponent at ``progress`` in [0, 1]; None while it is switched off."""
    if progress < warm_up:
        return None
    left = 1 - (progress - warm_up) / (1 - warm_up)
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * left

"""The factors of one layer's products while they are decided, in a unit's graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from tvmq.plan.plan import ProductPlan


class ProductScale(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Multiplies a layer's weight by the factors of the products with it.

    Attributes:
        channels: input channels of a group.
        outputs: output channels that have their factors in common.
        groups: of the convolution.
        factors: float64[rows, groups of input channels].
        spread: float32, broadcast against the weight.
    """

    spread: torch.Tensor

    def __init__(self, weight: torch.Tensor, channels: int, outputs: int, groups: int) -> None:
        """Start with factors of 1.

        Args:
            weight: float32[K, C / groups, ...].
            channels: of a group.
            outputs: that share a row; 0 for all.
            groups: of the convolution.
        """
        super().__init__()
        self.shape = tuple(weight.shape)
        self.channels, self.groups = channels, groups
        self.outputs, shape = ProductPlan.sizes(weight.shape, channels, outputs, groups)
        self.use(torch.ones(shape, dtype=torch.float64))

    def use(self, factors: torch.Tensor) -> None:
        """Take other factors."""
        self.factors = factors
        spread = self._plan("").spread(self.shape[0], self.shape[1], self.groups)
        shape = (*self.shape[:2], *[1] * (len(self.shape) - 2))
        self.register_buffer(
            "spread", torch.from_numpy(np.ascontiguousarray(spread)).reshape(shape).float()
        )

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that gives the same sums without factors."""
        return weight * self.spread

    def plan(self, reason: str) -> ProductPlan | None:
        """For the plan; None where all factors are 1."""
        return None if bool((self.factors == 1).all()) else self._plan(reason)

    def _plan(self, reason: str) -> ProductPlan:
        rows = tuple(tuple(row) for row in self.factors.tolist())
        return ProductPlan(self.channels, self.outputs, rows, reason)

    def held(self) -> dict[str, torch.Tensor]:
        """What ``hold`` takes."""
        return {"factors": self.factors.clone()}

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be what it was."""
        self.use(held["factors"])

"""The best factors of products for weights that are given: least squares, then the nine there are.

For one output, let P be the sums over its groups of input channels, and Y what the float network
makes. With P and Y centred, since the bias takes the mean, the factors that come closest are

    m = (P'P + r I)^-1 (P'Y + r 1)          r = 0.01 * mean of the diagonal of P'P

where the ridge ``r`` draws to 1 what little data says something about. P'P is ``w_g C w_h`` with C
the covariance of what the layer reads, so no sums are formed. Outputs that share factors add their
equations. Factors are few, so ``m`` is then brought to them group by group, each in turn taking the
best value given all others, until none moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from targets.product_factors import FACTORS
from tvmq.reconstruct.compensation import moments
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit

RIDGE = 0.01
SWEEPS = 20


@dataclass(frozen=True, eq=False)
class Equations:
    """A quadratic of the factors, one for each row of them: ``m' A m - 2 b' m``.

    Attributes:
        matrix: A, float64[rows, groups, groups].
        vector: b, float64[rows, groups].
    """

    matrix: torch.Tensor
    vector: torch.Tensor

    def loss(self, factors: torch.Tensor) -> torch.Tensor:
        """float64[rows]: the error of each row, up to a constant."""
        curved = (factors[:, None] @ self.matrix)[:, 0]
        return ((curved - 2 * self.vector) * factors).sum(dim=1)

    def with_ridge(self) -> Equations:
        """The same, drawn to 1."""
        groups = self.matrix.shape[1]
        ridge = RIDGE * self.matrix.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)
        matrix = self.matrix + ridge[:, None, None] * torch.eye(groups, dtype=torch.float64)
        return Equations(matrix, self.vector + ridge[:, None])


@torch.no_grad()  # type: ignore[untyped-decorator]
def best_factors(
    unit: QuantizedUnit, exact: GraphModule, cache: UnitCache, layer: str, images: int
) -> torch.Tensor:
    """float64[rows, groups]: what brings a layer closest to the float one, its codes as they are.

    Args:
        unit: as it is now.
        exact: the unit in float.
        cache: with the inputs of both.
        layer: with a ``ProductScale``.
        images: the first of the cache may be looked at.
    """
    scale, weight = unit.products[layer], unit.weights[layer].frozen.double()
    covariance, cross = moments(unit, cache, layer, images, exact)
    parts = weight.reshape(scale.groups, len(weight) // scale.groups, weight.shape[1], -1)
    rows = []
    for part, own, other in zip(parts, covariance, cross, strict=True):
        problem = equations(part, own, other, scale.channels, scale.outputs).with_ridge()
        rows.append(project(problem, solve(problem)))
    return torch.cat(rows)


def equations(
    weight: torch.Tensor, covariance: torch.Tensor, cross: torch.Tensor, channels: int, outputs: int
) -> Equations:
    """The equations of one group of a layer.

    Args:
        weight: float64[K, C, taps], quantized.
        covariance: float64[C * taps, C * taps], of what it is multiplied with.
        cross: float64[C * taps, K], of that with what the float network makes.
        channels: of a group of input channels.
        outputs: that share a row.
    """
    K, C, taps = weight.shape
    groups, rows = -(-C // channels), -(-K // outputs)
    size = channels * taps
    padding = groups * size - C * taps
    parts = torch.nn.functional.pad(weight.reshape(K, -1), (0, padding)).reshape(K, groups, size)
    moments = torch.nn.functional.pad(covariance, (0, padding, 0, padding))
    targets = torch.nn.functional.pad(cross, (0, 0, 0, padding)).reshape(groups, size, K)
    moments = moments.reshape(groups, size, groups, size)
    matrix = torch.empty(K, groups, groups, dtype=torch.float64)
    for g in range(groups):
        half = torch.einsum("ks,sht->kht", parts[:, g], moments[g])
        matrix[:, g] = (half * parts).sum(dim=2)
    vector = torch.einsum("kgs,gsk->kg", parts, targets)
    row = torch.arange(K) // outputs
    return Equations(
        torch.zeros(rows, groups, groups, dtype=torch.float64).index_add(0, row, matrix),
        torch.zeros(rows, groups, dtype=torch.float64).index_add(0, row, vector),
    )


def solve(problem: Equations) -> torch.Tensor:
    """float64[rows, groups]: the real factors with the smallest error."""
    result: torch.Tensor = torch.linalg.lstsq(problem.matrix, problem.vector[..., None]).solution
    return result[..., 0]


def project(problem: Equations, start: torch.Tensor) -> torch.Tensor:
    """The same of factors that there are, found from ``start`` by coordinate descent.

    No step makes the error larger; factors of 1 are taken where they are as good.
    """
    known = torch.tensor(FACTORS, dtype=torch.float64)
    factors = known[(start[..., None] - known).abs().argmin(dim=-1)]
    factors = _descend(problem, factors, known)
    ones = _descend(problem, torch.ones_like(factors), known)
    better = problem.loss(factors) < problem.loss(ones)
    return torch.where(better[:, None], factors, ones)


def _descend(problem: Equations, factors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    factors = factors.clone()
    for _ in range(SWEEPS):
        moved = False
        for g in range(factors.shape[1]):
            curve = problem.matrix[:, g, g]
            slope = (problem.matrix[:, g] * factors).sum(dim=1) - curve * factors[:, g]
            slope = slope - problem.vector[:, g]
            losses = curve[:, None] * known**2 + 2 * slope[:, None] * known
            now = curve * factors[:, g] ** 2 + 2 * slope * factors[:, g]
            best = losses.min(dim=1)
            gains = best.values < now - 1e-12 * now.abs()
            moved |= bool(gains.any())
            factors[:, g] = torch.where(gains, known[best.indices], factors[:, g])
        if not moved:
            break
    return factors

"""Codes of a layer whose rounding errors compensate each other.

What counts is not the rounding error ``e`` of a weight but what remains of it in the layer's output
once the roundings of a channel compensate each other and the bias takes the mean: ``e^T C e`` with
``C`` the covariance of what the layer reads. Codes that compensate are found column by column, each
error spread over the columns to come (OPTQ, arXiv 2210.17323), and then by coordinate descent.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule
from torch.nn.functional import unfold

from targets.arithmetic import MAX_SHIFT_SPREAD
from tvmq.execute_graph import GraphRun
from tvmq.reconstruct.soft_rounding import SoftWeight
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit

MAX_IMAGES = 256
MIN_IMAGES = 32
ROWS = 2**16
"""Rows that a covariance is made of: enough for any layer, so fewer images where they are large."""

PATCH_BYTES = 2**26
DAMPING = 0.01
BLOCK = 128
SWEEPS = 8


def compensate_weights(
    unit: QuantizedUnit,
    cache: UnitCache,
    images: int,
    exponents: tuple[int, ...],
) -> None:
    """Give all layers of a unit, in order, compensating codes and the best of some exponents.

    Args:
        unit: changed in place; with one step per layer, the layer's channels decide together.
        cache: with the unit's inputs.
        images: the first of the cache may be looked at.
        exponents: tried, relative to those of the weights' present steps; 0 first.
    """
    for name in unit.weights:
        compensate_layer(unit, cache, name, images, exponents)


def compensate_layer(
    unit: QuantizedUnit, cache: UnitCache, layer: str, images: int, exponents: tuple[int, ...]
) -> None:
    """The same for one layer, whose products count by the factors that they have."""
    weight = unit.weights[layer]
    moments = covariance(unit, cache, layer, min(images, MAX_IMAGES))
    start = weight.exact_steps
    rows = torch.arange(len(weight.weight))
    factors = torch.exp2(torch.tensor(exponents, dtype=torch.float64))
    tried = factors[:, None] * start.expand(len(rows))
    codes, errors = compensated_codes(weight, tried, moments, unit.spread(layer))
    if len(start) == 1:
        errors = errors.sum(dim=1, keepdim=True).expand(-1, len(rows))
    best = errors.argmin(dim=0)
    steps = tried[best, rows]
    least = steps.max() * 2.0**-MAX_SHIFT_SPREAD
    weight.use_steps(steps[:1] if len(start) == 1 else torch.maximum(steps, least))
    picked = codes[best, rows]
    weight.freeze(torch.where((steps < least)[:, None], 0.0, picked).reshape(weight.floor.shape))


def compensated_codes(
    weight: SoftWeight,
    steps: torch.Tensor,
    moments: torch.Tensor,
    spread: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a layer whose rounding errors compensate each other, and what remains of them.

    Args:
        weight: of the layer, [K, ...].
        steps: float64[E, K]: so many times over, with other steps.
        moments: float64[G, D, D], of what each of G groups of channels reads.
        spread: factors of products, broadcast against the weight.

    Returns:
        float32[E, K, D] codes, and the output error of each channel, float64[E, K].
    """
    groups, columns = moments.shape[0], moments.shape[1]
    times = len(steps)
    # All steps of a group's channels side by side: they share its moments.
    exact = weight.weight.double().reshape(groups, -1, columns).repeat(1, times, 1)
    column = steps.reshape(times, groups, -1).movedim(0, 1).reshape(groups, -1, 1)
    wide = torch.as_tensor(spread, dtype=torch.float64).expand_as(weight.weight)
    grid = column * wide.reshape(groups, -1, columns).repeat(1, times, 1)
    damped = moments + DAMPING * torch.diag_embed(
        moments.diagonal(dim1=1, dim2=2)
        .mean(dim=1, keepdim=True)
        .clamp_min(1e-12)
        .expand(-1, columns)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, codes = exact.clone(), torch.empty_like(exact)
    # Views of each column, made once: the loops take as long as it takes to call operators.
    steps_of, codes_of, left_of = (x.unbind(2) for x in (grid, codes, left))
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = torch.empty_like(left[:, :, first:last])
        for j in range(first, last):
            step = steps_of[j]
            code = torch.floor(left_of[j] / step + 0.5).clamp_(weight.low, weight.high)
            codes_of[j].copy_(code)
            error = (left_of[j] - code * step) / upper[:, None, j, j]
            left[:, :, j:last] -= error[:, :, None] * upper[:, None, j, j:last]
            errors[:, :, j - first] = error
        left[:, :, last:] -= errors @ upper[:, first:last, last:]
    # Coordinate descent: each code in turn takes its best value given all others.
    slope = (codes * grid - exact) @ damped
    curvatures = (damped.diagonal(dim1=1, dim2=2)[:, None] * grid).unbind(2)
    slope_of, rows_of = slope.unbind(2), damped[:, None].unbind(2)
    for _ in range(SWEEPS):
        before = codes.clone()
        for j in range(columns):
            code = torch.floor(codes_of[j] - slope_of[j] / curvatures[j] + 0.5)
            change = code.clamp_(weight.low, weight.high).sub_(codes_of[j])
            codes_of[j].add_(change)
            slope += (change * steps_of[j])[:, :, None] * rows_of[j]
        if torch.equal(codes, before):
            break
    difference = codes * grid - exact
    remains = ((difference @ damped) * difference).sum(dim=2)
    codes = codes.reshape(groups, times, -1, columns).movedim(1, 0).reshape(times, -1, columns)
    return codes.float(), remains.reshape(groups, times, -1).movedim(1, 0).reshape(times, -1)


def covariance(unit: QuantizedUnit, cache: UnitCache, layer: str, images: int) -> torch.Tensor:
    """float64[G, D, D]: covariance of what the weights of a layer are multiplied with."""
    found, _ = moments(unit, cache, layer, images, None)
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def moments(
    unit: QuantizedUnit, cache: UnitCache, layer: str, images: int, exact: GraphModule | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariances of what the weights of a layer are multiplied with.

    Args:
        unit: as it is now.
        cache: with its inputs.
        layer: of the unit.
        images: the first of the cache may be looked at.
        exact: the unit in float; None if what its layer makes is not asked for.

    Returns:
        float64[G, D, D] with itself, and float64[G, D, K / G] with what the float layer makes.
    """
    (node,) = (n for n in unit.graph_module.graph.nodes if n.name == layer)
    source = node.args[0].name
    kernel = unit.weights[layer].weight
    per_image = 0
    total, mean, middle, count, first = *(torch.zeros(()) for _ in range(3)), 0, 0
    crossed, made, level = (torch.zeros(()) for _ in range(3))
    while first < images and (count < ROWS or first < MIN_IMAGES):
        chunk = min(images, first + (max(1, PATCH_BYTES // per_image) if per_image else 1))
        rows = slice(first, chunk)
        inputs = tuple(cache.quantized.rows(name, rows) for name in unit.unit.inputs)
        x = GraphRun(unit.graph_module).start(*inputs).result_of(source)
        if kernel.dim() == 4:
            given = [*node.args[3:], *[None] * 4]
            strides, padding, dilation, groups = given[:4]
            groups = groups or 1
            patches = unfold(x, kernel.shape[2:], dilation or 1, padding or 0, strides or 1)
            # [N, C * R * S, P] with C outermost, so that groups are stretches of rows.
            patches = patches.reshape(len(x), groups, -1, patches.shape[2])
            patches = patches.permute(1, 0, 3, 2).flatten(1, 2)
        else:
            groups = 1
            patches = x.reshape(1, -1, x.shape[-1])
        if first == 0:
            middle = patches.double().mean(dim=1, keepdim=True).float()
        # Of what lies far from 0, float32 would keep squares and lose their differences.
        patches = patches - middle
        total = total + (patches.transpose(1, 2) @ patches).double()
        mean = mean + patches.sum(dim=1).double()
        if exact is not None:
            inputs = tuple(cache.exact.rows(name, rows) for name in unit.unit.inputs)
            y = GraphRun(exact).start(*inputs).result_of(layer)
            y = y.movedim(1, -1) if kernel.dim() == 4 else y
            y = y.reshape(-1, groups, y.shape[-1] // groups).transpose(0, 1)
            level = y.double().mean(dim=1, keepdim=True).float() if first == 0 else level
            y = y - level
            crossed = crossed + (patches.transpose(1, 2) @ y).double()
            made = made + y.sum(dim=1).double()
        count += patches.shape[1]
        per_image = max(1, patches.numel() * patches.element_size() // (chunk - first))
        first = chunk
    mean, made = mean / count, made / count
    own = total / count - mean[:, :, None] * mean[:, None, :]
    if exact is None:
        return own, own
    return own, crossed / count - mean[:, :, None] * made[:, None, :]

"""Borders of a unit's values from what can be measured or derived without training."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from tvmq.execute_graph import GraphRun
from tvmq.plan.borders import border_refusal, may_differ_by_channel
from tvmq.reconstruct.learned_borders import LearnedBorders
from tvmq.reconstruct.unit_cache import BATCH, UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, sharing
from tvmq.reconstruct.unit_state import apply_state, state_of
from tvmq.reconstruct.unit_work import UnitWork
from tvmq.regions import channel_axis, shape_of

BINS = 256
"""Fractions that a border can be."""

PRIOR = 64.0
"""Made-up elements of each level and channel that are best rounded half up."""


IMAGES = 512
"""That borders are measured on, at most."""


def values_with_borders(unit: QuantizedUnit, cache: UnitCache) -> list[str]:
    """The values of a unit that may have borders of their own, in order."""
    alone = {names[0] for names in sharing(cache.steps) if len(names) == 1}
    chosen = []
    for name in unit.unit.values:
        levels = unit.steps[name].high - unit.steps[name].low
        if name in alone and not border_refusal(cache.regions, name, levels.bit_length()):
            chosen.append(name)
    return chosen


def search_borders(work: UnitWork) -> float:
    """Give a unit the better of derived and of measured borders, with biases for these.

    Returns:
        The loss on the images that it learns from.
    """
    unit, cache = work.unit, work.cache
    names, before = values_with_borders(unit, cache), state_of(unit)
    rows = min(work.images, IMAGES)
    tried = []
    for derived in (True, False):
        apply_state(unit, before)
        for name in names:  # one after the other: what is measured depends on what was before
            by_channel = may_differ_by_channel(cache.regions, name)
            if not derived:
                table = measured_borders(unit, work.exact, cache, name, rows, by_channel=by_channel)
            elif by_channel and (readers := _readers(work, name)):
                table = derived_borders(unit, name, readers)
            else:
                continue
            unit.steps[name].borders = LearnedBorders(table)
        if all(unit.steps[name].borders is None for name in names):
            continue
        work.correct_biases()
        tried.append((work.learned_loss(), state_of(unit)))
    loss, state = min(tried, key=lambda item: item[0])
    apply_state(unit, state)
    return loss


def _readers(work: UnitWork, name: str) -> list[str]:
    """The layers of the unit that multiply the channels of a value by weights, as they are."""
    unit, layers = work.unit, work.cache.regions.layers.values()
    (node,) = (node for node in work.exact.graph.nodes if node.name == name)
    shape = shape_of(node)
    channels = shape[channel_axis(len(shape))]
    readers = [
        layer.name for layer in layers if name in layer.inputs and layer.name in unit.weights
    ]
    return [reader for reader in readers if unit.weights[reader].weight.shape[1] == channels]


@torch.no_grad()  # type: ignore[untyped-decorator]
def measured_borders(
    unit: QuantizedUnit,
    exact: GraphModule,
    cache: UnitCache,
    name: str,
    images: int,
    *,
    by_channel: bool,
) -> torch.Tensor:
    """The borders that bring a value closest to that of the float network, uint8[1 or K, levels].

    What is rounded has errors of what was quantized before it, so the number between two codes
    from which on the upper one is the better guess is not the middle, as little as it is for any
    estimate of a number by a noisy one. Of each level it is found among all 255 borders.

    Args:
        unit: with the value's step.
        exact: the unit in float.
        cache: with the unit's inputs in both streams.
        name: of the value.
        images: the first of the cache are measured.
        by_channel: a row for each channel instead of one.
    """
    step = unit.steps[name]
    both = ((cache.exact, exact), (cache.quantized, unit.graph_module))
    costs = []
    for first in range(0, images, BATCH):
        rows = slice(first, min(first + BATCH, images))
        target, x = (
            GraphRun(graph).start(*(stream.rows(n, rows) for n in unit.unit.inputs)).result_of(name)
            / step.exact
            for stream, graph in both
        )
        costs.append(rounding_costs(x, target, (step.low, step.high), by_channel=by_channel))
    return cheapest_borders(torch.stack(costs).sum(0))


def rounding_costs(
    x: torch.Tensor, target: torch.Tensor, codes: tuple[int, int], *, by_channel: bool
) -> torch.Tensor:
    """What rounding up costs more than rounding down, float64[1 or K, levels, 256].

    ``(n + 1 - y)^2 - (n - y)^2`` for a number between the codes n and n + 1 that should be y,
    summed by channel, level and fraction in 256ths. What is clamped either way costs nothing.

    Args:
        x: what is rounded, in steps.
        target: what it should be, in steps.
        codes: the lowest and the highest, without zero point.
        by_channel: whether channels are told apart.
    """
    low, high = codes
    levels, axis = high - low, channel_axis(x.dim())
    whole = x.floor()
    felt = (whole >= low) & (whole < high)
    cost = (1 - 2 * (target - whole)).double() * felt
    place = (whole - low).clamp_(0, levels - 1) * BINS + ((x - whole) * BINS).floor()
    channels = x.shape[axis] if by_channel else 1
    if by_channel:
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        place += (torch.arange(channels) * (levels * BINS)).reshape(shape)
    count = channels * levels * BINS
    sums = torch.bincount(place.reshape(-1).to(torch.int64), cost.reshape(-1), count)
    return sums.reshape(channels, levels, BINS)


def cheapest_borders(costs: torch.Tensor) -> torch.Tensor:
    """The borders from which on rounding up costs least, uint8[1 or K, levels].

    Args:
        costs: as of ``rounding_costs``. A few made-up elements are added, which want half up.
    """
    fractions = (torch.arange(BINS) + 0.5) / BINS
    costs = costs + PRIOR / BINS * (1 - 2 * fractions)
    above = costs.flip(-1).cumsum(-1).flip(-1)  # of rounding up from each fraction on
    return (above[..., 1:].argmin(-1) + 1).to(torch.uint8)


def derived_borders(unit: QuantizedUnit, name: str, readers: list[str]) -> torch.Tensor:
    """AQuant's closed form, uint8[K, levels]: what brings products with the weights closest.

    A code q of input channel i stands for u; ``sum (w^ q - w u)^2`` over all weights that read it
    is least if it is rounded up from ``1/2 + (1 - rho_i) u`` on, where ``rho_i = sum w^ w / sum
    w^^2``, w the float weights and w^ the quantized ones.

    Args:
        unit: with the weights.
        name: of the value.
        readers: the layers of the unit that read it.
    """
    step = unit.steps[name]
    crossed = own = torch.zeros(())
    for reader in readers:
        weight = unit.weights[reader]
        held = weight.frozen * unit.spread(reader)
        axes = [axis for axis in range(held.dim()) if axis != 1]
        crossed = crossed + (held * weight.weight).sum(axes)
        own = own + held.square().sum(axes)
    rho = torch.where(own > 0, crossed / own, 1.0)
    u = torch.arange(step.low, step.high) + 0.5
    borders = 0.5 + (1 - rho)[:, None] * u
    return (borders * 256 + 0.5).floor().clamp(1, 255).to(torch.uint8)

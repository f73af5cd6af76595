"""The mean errors of a unit's layers, taken away: what a learned unit is compared with."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from tvmq.plan.bias_correction import Errors, correct_side_by_side, sum_of
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit

CORRECTION_IMAGES = 256


@torch.no_grad()  # type: ignore[untyped-decorator]
def correct_unit_biases(
    cache: UnitCache, unit: QuantizedUnit, exact: GraphModule, images: int
) -> None:
    """Set a unit's corrections, layer by layer in order.

    Args:
        cache: with the unit's inputs in both streams.
        unit: changed in place.
        exact: the unit in float.
        images: the first of the cache may be looked at.
    """
    rows = slice(0, min(images, CORRECTION_IMAGES))
    names = unit.unit.inputs
    exact_inputs = tuple(cache.exact.rows(name, rows) for name in names)
    quantized_inputs = tuple(cache.quantized.rows(name, rows) for name in names)

    def decide(name: str, errors: list[Errors]) -> torch.Tensor:
        correction = sum_of(errors).mean
        unit.biases[name].correction.data.add_(correction)
        return correction

    # Channels are axis 1 of images and the last one of what a linear layer makes.
    axes = {n: 1 if unit.weights[n].weight.dim() == 4 else -1 for n in unit.unit.layers}
    both = (exact, [exact_inputs]), (unit.graph_module, [quantized_inputs])
    correct_side_by_side(*both, axes, decide)

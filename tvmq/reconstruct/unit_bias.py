"""The mean errors of a unit's layers, taken away: what a learned unit is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule

from tvmq.calibrate.calibrate import Inputs
from tvmq.plan.bias_correction import MAX_BYTES, Errors, correct_side_by_side, sum_of
from tvmq.reconstruct.unit_cache import Stream, UnitCache
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
    names, layers = unit.unit.inputs, unit.unit.layers
    if len(layers) > 1:  # all images wait at each layer
        images = min(images, max(1, MAX_BYTES // cache.largest[unit.unit]))
    rows = slice(0, min(images, CORRECTION_IMAGES))

    def inputs(stream: Stream) -> Iterator[Inputs]:
        for some in cache.parts(unit.unit, rows):
            yield tuple(stream.rows(name, some) for name in names)

    def decide(name: str, errors: list[Errors]) -> torch.Tensor:
        correction = sum_of(errors).mean
        unit.biases[name].correction.data.add_(correction)
        return correction

    # Channels are axis 1 of images and the last one of what a linear layer makes.
    axes = {n: 1 if unit.weights[n].weight.dim() == 4 else -1 for n in layers}
    both = (exact, inputs(cache.exact)), (unit.graph_module, inputs(cache.quantized))
    correct_side_by_side(*both, axes, decide)

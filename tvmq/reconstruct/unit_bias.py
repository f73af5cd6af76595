"""The mean errors of a unit's layers, taken away: what a learned unit is compared with."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from tvmq.bias_correction import run_with_stops
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
    names, stops = unit.unit.inputs, set(unit.unit.layers)
    floats = run_with_stops(exact, tuple(cache.exact.rows(n, rows) for n in names), stops)
    codes = run_with_stops(
        unit.graph_module, tuple(cache.quantized.rows(n, rows) for n in names), stops
    )
    replacement: torch.Tensor | None = None
    for done, name in enumerate(unit.unit.layers):
        target = next(floats)
        output = next(codes) if done == 0 else codes.send(replacement)
        # Channels are axis 1 of images and the last one of what a linear layer makes.
        axis = 1 if unit.weights[name].weight.dim() == 4 else -1
        correction = (target - output).movedim(axis, -1).flatten(0, -2).mean(dim=0)
        unit.biases[name].correction.data.add_(correction)
        replacement = (output.movedim(axis, -1) + correction).movedim(-1, axis)

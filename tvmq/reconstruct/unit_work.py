"""What a refinement works on: one unit, what it may look at, and how good it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from tvmq.reconstruct.losses import Loss
from tvmq.reconstruct.training import CPU
from tvmq.reconstruct.unit_bias import correct_unit_biases
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.reconstruct.unit_state import apply_state, state_of
from tvmq.settings import Settings

LEARNED_IMAGES = 512
"""Of those that are learned from, at most so many say what the loss on them is."""


@dataclass
class UnitWork:
    """One unit while it is refined.

    Attributes:
        unit: changed in place.
        exact: the same in float.
        cache: with the unit's inputs in both streams and its outputs in the float one.
        settings: of the plan that is learned from.
        loss: of this unit.
        images: the first of the cache may be learned from; the others are held out.
        generator: of images and masks; every random draw for this unit is from it.
        report: told the iterations done since the refinement began, and the loss.
        iterations: that were done, of all refinements.
        device: to train on; all else is done on the CPU.
    """

    unit: QuantizedUnit
    exact: GraphModule
    cache: UnitCache
    settings: Settings
    loss: Loss
    images: int
    generator: torch.Generator
    report: Callable[[int, float], None]
    iterations: int = 0
    device: torch.device = CPU

    def held_out_loss(self) -> float:
        """Of the unit as it is, on images that nothing is learned from."""
        return unit_loss(self.unit, self.cache, self.loss, slice(self.images, self.cache.count))

    def learned_loss(self) -> float:
        """The same on images that are learned from."""
        rows = slice(0, min(self.images, LEARNED_IMAGES))
        return unit_loss(self.unit, self.cache, self.loss, rows)

    def correct_biases(self) -> None:
        """Take the mean errors of the layers away, if biases may change and the unit gains."""
        if not self.settings.bias_correction:
            return
        before, loss = state_of(self.unit), self.held_out_loss()
        correct_unit_biases(self.cache, self.unit, self.exact, self.images)
        if not self.held_out_loss() < loss:
            apply_state(self.unit, before)


@torch.no_grad()  # type: ignore[untyped-decorator]
def unit_loss(unit: QuantizedUnit, cache: UnitCache, loss: Loss, rows: slice) -> float:
    """Of a unit as it is, on some images; a loss is a mean over images, so it is taken in parts."""
    total = 0.0
    for some in cache.parts(unit.unit, rows):
        outputs = unit(*(cache.quantized.rows(name, some) for name in unit.unit.inputs))
        for name, output in zip(unit.unit.outputs, outputs, strict=True):
            total += float(loss(output - cache.exact.rows(name, some))) * (some.stop - some.start)
    return total / (rows.stop - rows.start)

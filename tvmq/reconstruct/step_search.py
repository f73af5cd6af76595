"""Exponents of a unit, searched by what they do to its output.

A step that may only be a power of two has a handful of candidates, so nothing has to be relaxed:
each is tried. The output channels of a layer are independent of each other, so each takes the
exponent that is best for it once its codes compensate each other; exponents of activations inside
the unit are tried one after the other.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from targets.arithmetic import MAX_SHIFT_SPREAD
from tvmq.plan.weight_steps import choose_weight_steps
from tvmq.reconstruct.compensation import compensate_weights
from tvmq.reconstruct.losses import Loss
from tvmq.reconstruct.unit_bias import correct_unit_biases
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.reconstruct.unit_state import UnitState, apply_state, state_of
from tvmq.reconstruct.unit_work import unit_loss
from tvmq.settings import Settings

WEIGHT_EXPONENTS = (0, -1, 1)
"""Tried for weights, relative to the exponent with the least rounding error; equals stay there."""

ACTIVATION_EXPONENTS = (0, -1, 1, 2)

SEARCH_IMAGES = 256


def search_unit(
    unit: QuantizedUnit,
    exact: GraphModule,
    cache: UnitCache,
    loss: Loss,
    images: int,
    settings: Settings,
) -> None:
    """Of three starts take the one with the smallest unit loss, with compensating codes each.

    The exponents are those of the least rounding error, those nearest to the best free steps, or
    searched around these. None is best everywhere: a search that sees one layer at a time can
    harm the block. Biases are corrected before anything is compared: with those of other codes
    the mean errors would hide what codes and exponents do.
    """
    rows = slice(0, min(images, SEARCH_IMAGES))
    before = state_of(unit)
    nearest = {
        name: nearest_exponents(weight.weight, weight.bits, settings)
        for name, weight in unit.weights.items()
    }
    found: list[tuple[float, UnitState]] = []
    for steps, exponents in (({}, (0,)), (nearest, (0,)), (nearest, WEIGHT_EXPONENTS)):
        apply_state(unit, before)
        for name, given in steps.items():
            unit.weights[name].use_steps(given)
        compensate_weights(unit, cache, images, exponents)
        if settings.bias_correction:
            correct_unit_biases(cache, unit, exact, images)
        found.append((unit_loss(unit, cache, loss, rows), state_of(unit)))
    apply_state(unit, min(found, key=lambda item: item[0])[1])
    search_activation_steps(unit, cache, loss, images)


def nearest_exponents(weight: torch.Tensor, bits: int, settings: Settings) -> torch.Tensor:
    """float64[K or 1]: the powers of two nearest to the best free steps of a layer.

    Args:
        weight: float32[K, ...].
        bits: of a code.
        settings: of the plan; its steps are powers of two.
    """
    # With powers of two, WESS is a step per channel.
    granularity = "channel" if "wess" in settings.method else settings.granularity
    free = choose_weight_steps(weight, bits, settings.with_free_steps(granularity))
    steps = torch.exp2(torch.round(torch.log2(torch.tensor(free.steps, dtype=torch.float64))))
    return torch.maximum(steps, steps.max() * 2.0**-MAX_SHIFT_SPREAD)


def search_activation_steps(unit: QuantizedUnit, cache: UnitCache, loss: Loss, images: int) -> None:
    """Choose the exponents of the values inside a unit, one after the other, by the unit's loss.

    Those of its outputs stay: a unit cannot see what clipping them does to the units behind it, and
    would clip too much.
    """
    rows = slice(0, min(images, SEARCH_IMAGES))
    carried = cache.regions.carried
    outputs = [unit.steps.get(carried.get(name, name)) for name in unit.unit.outputs]
    for step in unit.own_steps(cache.steps):
        if any(step is output for output in outputs):
            continue
        start, losses = step.exact, {}
        for exponent in ACTIVATION_EXPONENTS:
            step.fix(start * 2.0**exponent)
            losses[exponent] = unit_loss(unit, cache, loss, rows)
        step.fix(start * 2.0 ** min(losses, key=losses.__getitem__))

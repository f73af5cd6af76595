"""What it costs that a step must be a power of two: per layer, against the best free step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tvmq.calibrate.calibrate import Calibration
from tvmq.calibrate.observers import choose_codes, relative_error
from tvmq.float_model import FloatModel
from tvmq.plan.plan import Plan, WeightPlan
from tvmq.plan.weight_steps import choose_weight_steps
from tvmq.regions import find_regions
from tvmq.settings import learned_range


@dataclass(frozen=True)
class StepCost:
    """Squared rounding errors of a layer, relative to the squares of what is rounded.

    All are of rounding to nearest, so that they show the steps and nothing else.

    Attributes:
        layer: with weights.
        weights_free: its weights, with the best free steps.
        weights_used: its weights, with the steps of the plan.
        output: the value that it makes; "" where its sums leave the network.
        output_free: that value on the calibration images, with the best free step; 0 without one.
        output_used: the same with the step of the plan.
    """

    layer: str
    weights_free: float
    weights_used: float
    output: str
    output_free: float
    output_used: float


def step_costs(model: FloatModel, calibration: Calibration, plan: Plan) -> tuple[StepCost, ...]:
    """The errors of all layers with weights, in order; none of a plan with free steps."""
    if not plan.settings.pot:
        return ()
    free = plan.settings.with_free_steps(plan.settings.granularity)
    costs = []
    for layer in find_regions(model).weighted:
        used = plan.weights[layer.name]
        weight = model.weight_of(model.nodes[layer.name])
        best = choose_weight_steps(weight, used.bits, free)
        output_free, output_used = 0.0, 0.0
        if layer.output:
            value, histogram = plan.values[layer.output], calibration.histograms[layer.output]
            codes = choose_codes(histogram, value.bits, free, symmetric=value.zero_point == 0)
            output_free = relative_error(
                histogram, codes.step, codes.zero_point, value.bits, codes.signed
            )
            output_used = relative_error(
                histogram, value.step, value.zero_point, value.bits, value.signed
            )
        free_error, used_error = (_weight_error(weight, steps) for steps in (best, used))
        costs.append(
            StepCost(layer.name, free_error, used_error, layer.output, output_free, output_used)
        )
    return tuple(costs)


def _weight_error(weight: torch.Tensor, plan: WeightPlan) -> float:
    rows = weight.detach().double().flatten(1)
    steps = torch.tensor(plan.steps, dtype=torch.float64)[:, None]
    codes = torch.floor(rows / steps + 0.5).clamp(*learned_range(plan.bits))
    whole = float(rows.square().sum())
    return float((codes * steps - rows).square().sum()) / whole if whole else 0.0

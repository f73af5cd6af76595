"""Exponents are the best of those tried."""

import pytest
import torch
from quantization_cases import calibration, float_model

from tvmq.plan.planner import make_plan
from tvmq.reconstruct.compensation import compensate_weights
from tvmq.reconstruct.losses import MSE
from tvmq.reconstruct.step_search import WEIGHT_EXPONENTS, search_activation_steps
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.unit_work import unit_loss
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_searched_exponents_are_near_and_better(granularity):
    model = float_model("resnet_small")
    settings = Settings(2, 8, "pot", granularity, method=("rapq",))
    plan = make_plan(model, calibration("resnet_small"), settings)
    units, steps = find_units(model), network_steps(model, plan)
    cache = UnitCache(model, units, calibration("resnet_small"), steps)
    try:
        cache.float_outputs(0, float_unit(model, units[0]))
        losses = {}
        for exponents in ((0,), WEIGHT_EXPONENTS):
            unit = QuantizedUnit(model, plan, units[0], steps)
            nearest = unit.weights["conv2d"].exact_steps.clone()
            compensate_weights(unit, cache, cache.count, exponents)
            ratio = torch.log2(unit.weights["conv2d"].exact_steps / nearest)
            assert set(ratio.tolist()) <= set(map(float, exponents))
            losses[exponents] = unit_loss(unit, cache, MSE, slice(0, cache.count))
        assert losses[WEIGHT_EXPONENTS] <= losses[0,] * 1.05
    finally:
        cache.close()


def test_exponents_inside_a_unit_are_searched_and_those_of_its_outputs_stay():
    model = float_model("resnet_small")
    settings = Settings(8, 8, "pot", "channel", method=("rapq",))
    plan = make_plan(model, calibration("resnet_small"), settings)
    units, steps = find_units(model), network_steps(model, plan)
    cache = UnitCache(model, units, calibration("resnet_small"), steps)
    try:
        cache.float_outputs(0, float_unit(model, units[0]))
        cache.advance(0, QuantizedUnit(model, plan, units[0], steps))
        cache.float_outputs(1, float_unit(model, units[1]))
        unit = QuantizedUnit(model, plan, units[1], steps)
        (output,) = unit.unit.outputs
        (inside,) = [name for name in unit.unit.values if name != output]
        right = steps[inside].exact
        for name in (inside, output):
            steps[name].fix(steps[name].exact / 4)
        clipped = steps[output].exact
        search_activation_steps(unit, cache, MSE, cache.count)
        assert steps[inside].exact == right
        assert steps[output].exact == clipped
    finally:
        cache.close()

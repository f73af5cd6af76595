"""Compensating codes beat nearest ones on the layer's output, and exponents are the best tried."""

import pytest
import torch
from quantization_cases import calibration, float_model

from tvmq.plan import WeightPlan
from tvmq.planner import make_plan
from tvmq.reconstruct.soft_rounding import SoftWeight
from tvmq.reconstruct.step_search import (
    DAMPING,
    WEIGHT_EXPONENTS,
    compensate_weights,
    compensated_codes,
    unit_loss,
)
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.units import find_units
from tvmq.scheme import Settings


def _correlated(columns: int) -> torch.Tensor:
    """float64[1, D, D]: a covariance far from diagonal."""
    x = torch.randn(200, columns, generator=torch.Generator().manual_seed(0)).double()
    x = x + 2 * x.roll(1, 1)
    return (x.T @ x / 200)[None]


def _output_error(weight: SoftWeight, codes: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    error = codes.double() * weight.exact_steps[:, None] - weight.weight.double()
    damped = moments[0] + DAMPING * moments[0].diagonal().mean() * torch.eye(len(moments[0]))
    return ((error @ damped) * error).sum(dim=1)


def _compensated(weight: SoftWeight, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, errors = compensated_codes(weight, weight.exact_steps[None], moments)
    return codes[0], errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compensation_lowers_the_output_error_of_every_channel(bits):
    weight = torch.randn(6, 18, generator=torch.Generator().manual_seed(1)) * 0.3
    soft = SoftWeight(weight, WeightPlan((2.0**-bits,) * 6, bits, ""))
    moments = _correlated(18)
    codes, errors = _compensated(soft, moments)
    nearest = _output_error(soft, soft.nearest_codes(), moments)
    assert torch.all(errors < nearest)
    torch.testing.assert_close(errors, _output_error(soft, codes, moments))
    assert codes.min() >= soft.low
    assert codes.max() <= soft.high
    assert torch.equal(codes, codes.round())


def test_no_single_code_could_be_better():
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)) * 0.5
    soft = SoftWeight(weight, WeightPlan((0.25,) * 3, 3, ""))
    moments = _correlated(7)
    codes, errors = _compensated(soft, moments)
    for column in range(7):
        for change in (-1, 1):
            other = codes.clone()
            other[:, column] = (other[:, column] + change).clamp(soft.low, soft.high)
            assert torch.all(_output_error(soft, other, moments) >= errors - 1e-9)


def test_several_steps_at_once_are_as_one_after_the_other():
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(3)) * 0.5
    soft = SoftWeight(weight, WeightPlan((0.25,) * 6, 3, ""))
    moments = torch.cat([_correlated(7), torch.eye(7)[None].double()])  # two groups of 3 channels
    steps = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)).double() + 0.1
    codes, errors = compensated_codes(soft, steps, moments)
    for row, one in enumerate(steps):
        alone = compensated_codes(soft, one[None], moments)
        assert torch.equal(codes[row], alone[0][0])
        torch.testing.assert_close(errors[row], alone[1][0])


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
            losses[exponents] = unit_loss(unit, cache, 2.0, slice(0, cache.count))
        assert losses[WEIGHT_EXPONENTS] <= losses[0,] * 1.05
    finally:
        cache.close()

"""What residuals cost is the difference to the plan of the network without bits of their own."""

import pytest
from quantization_cases import float_model, images

from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import calibrate
from tvmq.cli.report import residual_lines
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.profile.plan_price import plan_price
from tvmq.profile.residual_cost import residual_cost
from tvmq.settings import Settings

NAME, SPEC = "resnet_projection", load_spec("e256")


def _planned(**settings):
    asked = Settings(2, 2, "pot", "channel", **settings)
    model = round_reads(float_model(NAME), asked)
    return model, make_plan(model, calibrate(model, [images(NAME)]), asked)


@pytest.mark.parametrize(("reads", "roundings"), [("rounded", 2), ("whole", 0)])
def test_the_cost_is_that_of_wider_tensors_and_of_rounding_them(reads, roundings):
    model, plan = _planned(residual_bits=8, residual_reads=reads)
    cost = residual_cost(model, plan, None, SPEC)
    assert (cost.bits, cost.values, cost.roundings) == (8, 4, roundings)
    assert cost.with_residuals == plan_price(model, plan, SPEC)
    assert cost.without == plan_price(*_planned(), SPEC)
    assert cost.with_residuals.cycles > cost.without.cycles
    (line,) = residual_lines(cost.as_json())
    assert line.startswith(
        f"  residuals of 8 bits: 4 values, {roundings} rounded copies of them, +"
    )
    assert "% cycles" in line


def test_without_an_npu_there_are_no_prices_and_without_bits_no_cost():
    cost = residual_cost(*_planned(residual_bits=8), None, None)
    assert (cost.with_residuals, cost.without) == (None, None)
    assert "cycles" not in residual_lines(cost.as_json())[0]
    assert residual_cost(*_planned(), None, SPEC) is None

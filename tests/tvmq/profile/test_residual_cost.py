"""What residuals cost is the difference to the plan of the network without bits of their own."""

import pytest
import torch
from models import export
from quantization_cases import float_model, images
from torch import nn

from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.cli.report import residual_lines
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.profile.plan_price import plan_price
from tvmq.profile.residual_cost import residual_cost
from tvmq.settings import Settings

NAME, SPEC = "resnet_projection", load_spec("e256")


def _planned(network=None, **settings):
    asked = Settings(2, 2, "pot", "channel", **settings)
    model = round_reads(network or float_model(NAME), asked)
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


class _Joined(nn.Module):
    """Residuals are joined with each other for the last layer, which has 8 bits anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.last(torch.cat([x, (x + self.dense(x)).relu()], 1))


@pytest.mark.parametrize("reads", ["rounded", "whole"])
def test_what_shares_a_step_has_the_bits_of_the_most_precise(reads):
    torch.manual_seed(0)
    network = capture_program(export((_Joined().eval(), images(NAME)[:2])))
    model, plan = _planned(network, residual_bits=8, residual_reads=reads)
    cost = residual_cost(model, plan, None, SPEC)
    assert cost.without == plan_price(*_planned(network), SPEC)


def test_without_an_npu_there_are_no_prices_and_without_bits_no_cost():
    cost = residual_cost(*_planned(residual_bits=8), None, None)
    assert (cost.with_residuals, cost.without) == (None, None)
    assert "cycles" not in residual_lines(cost.as_json())[0]
    assert residual_cost(*_planned(), None, SPEC) is None

"""What a pass refuses is said with the place in the user's source."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from targets.errors import UnsupportedError
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings


class Logarithm(nn.Module):
    """Of numbers above -1, where the codes that hold them reach below."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.log1p(self.conv(x))


def test_a_function_that_is_undefined_for_a_code_is_named_with_its_line():
    network, x = Logarithm().eval(), torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)])
    with torch.no_grad():
        network.conv.weight.fill_(1.3)
        network.conv.bias.fill_(-0.9)
    model = capture_program(torch.export.export(network, (x,)))
    plan = make_plan(model, calibrate(model, [[x]], 2), Settings(calib_method="minmax"))
    with pytest.raises(UnsupportedError) as error:
        lower(model, annotate(model, plan))
    text = str(error.value)
    assert text.startswith("test_lowering.py:")
    assert ": log1p: aten.log1p.default of " in text
    assert text.endswith("Clamp the tensor before it.")

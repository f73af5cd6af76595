"""Group norms: one layer norm, and what can't be one."""

import pytest
import torch
from torch import nn

from targets.errors import UnsupportedError
from targets.rows import LONGEST_NORM
from tvmq.capture.capture import capture_program

aten = torch.ops.aten


def targets_of(norm, shape=(8, 4, 5)):
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        program = torch.export.export(norm.eval(), (torch.randn(2, *shape),))
    nodes = capture_program(program).graph_module.graph.nodes
    return [node.target for node in nodes if node.op == "call_function"]


def test_one_group_has_its_factors_in_the_norm():
    found = targets_of(nn.GroupNorm(1, 8))
    assert found.count(aten.layer_norm.default) == 1
    assert aten.conv2d.default not in found
    assert aten.cat.default not in found


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)])
def test_of_several_groups_the_factors_are_a_layer(norm):
    found = targets_of(norm)
    assert found.count(aten.layer_norm.default) == found.count(aten.conv2d.default) == 1
    assert found.count(aten.cat.default) == 2


def test_groups_too_large_for_the_sums_are_refused():
    size = LONGEST_NORM // 4 + 1
    with pytest.raises(UnsupportedError, match=f"{4 * size}.* at most {LONGEST_NORM} numbers"):
        targets_of(nn.GroupNorm(2, 8), (8, size, 1))
    assert targets_of(nn.GroupNorm(2, 8), (8, size - 1, 1))

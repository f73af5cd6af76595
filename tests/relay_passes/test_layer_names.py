"""Every layer has the name of a node of the user's network, and a place in its source."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import placements
from relay_passes.read_layers import read_layers
from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings


class Tail(nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, tail):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 8, 3), tail

    def forward(self, x):
        return self.tail(self.conv(x))


TAILS = {
    "flatten and ReLU": lambda y: F.relu(y.flatten(1)),
    "flattened pixels": lambda y: y.flatten(2),
    "permuted": lambda y: y.permute(0, 2, 3, 1),
    "tokens": lambda y: F.gelu(y.flatten(2).transpose(1, 2)),
    "height and width exchanged": lambda y: F.relu(y.transpose(2, 3)),
    "image of another shape": lambda y: F.max_pool2d(y.reshape(-1, 4, 12, 6), 2),
    "stacked": lambda y: torch.stack([y[:, :4], y[:, 4:]], 2).flatten(1, 2),
}


@pytest.mark.parametrize("name", TAILS)
def test_layers_are_named_after_nodes_of_the_network(name):
    network, x = Tail(TAILS[name]).eval(), torch.randn(2, 3, 8, 8)
    model = capture_program(torch.export.export(network, (x,)))
    plan = make_plan(model, calibrate(model, [[x]], 2), Settings())
    integer = lower_to_integer(import_torch(annotate(model, plan)))
    sources = {node: str(origin) for node, origin in model.origins.items()}
    placed = placements(read_layers(integer, sources), load_spec("e256"))
    assert len({p.name for p in placed}) == len(placed)
    for placement in placed:
        assert not placement.name.startswith("lv"), placement
        assert placement.device == "npu" or "_codes" not in placement.name
        assert placement.source, placement
        assert bool(placement.reason) == (placement.device == "cpu")
        if placement.refusal is not None:
            assert placement.refusal.advice in placement.reason

"""Slices that cut off what padding made are no layers; the convolution is padded less."""

import pytest
import torch
from models import export
from torch import nn

from tvmq.capture.capture import capture_program

aten = torch.ops.aten


class Cut(nn.Module):
    """A layer, of whose output a function makes the result."""

    def __init__(self, layer: nn.Module, cut):
        super().__init__()
        self.layer, self.cut = layer, cut

    def forward(self, x):
        return self.cut(self.layer(x))


class Chomp(nn.Module):
    """Leaves the end out, then applies a layer."""

    def __init__(self, count: int, layer: nn.Module):
        super().__init__()
        self.count, self.layer = count, layer

    def forward(self, x):
        return self.layer(x[..., : -self.count])


def captured(module: nn.Module, *shape: int):
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.normal_(part.weight)
    x = torch.randn(2, *shape)
    model = capture_program(export((module.eval(), x)))
    with torch.no_grad():
        torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)
    return model


def conv(*sizes, **options):
    return nn.Conv2d(3, 4, *sizes, **options)


CROPPED = {
    "causal": (nn.Conv1d(3, 4, 3, padding=4, dilation=2), lambda y: torch.relu(y[..., :-4]), 12),
    "from a number on": (nn.Conv1d(3, 4, 3, padding=2), lambda y: y[..., 2:], 12),
    "both sides": (conv(3, padding=2), lambda y: y[..., 1:-1, 2:-2], 8, 9),
    "one side each": (conv(3, padding=2), lambda y: y[:, :, 1:, :-1], 8, 9),
    "strided": (conv(3, padding=3, stride=2), lambda y: y[:, :, 1:, 1:-1], 11, 11),
    "a pad before": (
        nn.Sequential(nn.ZeroPad2d((3, 1, 0, 0)), conv(3)),
        lambda y: y[..., 1:],
        *(8, 8),
    ),
    "behind functions": (
        nn.Sequential(nn.Conv1d(3, 4, 3, padding=2), nn.BatchNorm1d(4), nn.SiLU(), nn.ReLU()),
        lambda y: y[..., :-2],
        12,
    ),
    "before a batch norm": (
        nn.Conv1d(3, 4, 3, padding=2, bias=False),
        Chomp(2, nn.BatchNorm1d(4)),
        12,
    ),
}


@pytest.mark.parametrize("case", CROPPED.values(), ids=CROPPED)
def test_what_padding_made_is_not_made(case):
    layer, cut, *sizes = case
    model = captured(Cut(layer, cut), 3, *sizes)
    targets = [node.target for node in model.graph_module.graph.nodes]
    assert aten.slice.Tensor not in targets
    assert targets.count(aten.conv2d.default) == 1
    assert all(str(model.origins[n.name]) for n in model.nodes.values() if n.target is aten.conv2d)


KEPT = {
    "pixels that no padding touched": (conv(3, padding=1), lambda y: y[..., 3:]),
    "rows left out behind": (conv(3, padding=1), lambda y: y[:, :, :4]),
    "every other": (conv(3, padding=1), lambda y: y[..., ::2]),
    "a pad of channels": (
        nn.Sequential(nn.ConstantPad3d((1, 1, 1, 1, 0, 1), 0.0), nn.Conv2d(4, 4, 3, padding=1)),
        lambda y: y[..., 1:],
    ),
    "channels": (conv(3, padding=1), lambda y: y[:, 1:]),
    "what is read elsewhere, too": (conv(3, padding=2), lambda y: (y[..., :-2], y.relu())),
}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_other_slices_stay(case):
    layer, cut = case
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    module = Cut(layer, cut).eval()
    model = capture_program(export((module, x)))
    assert aten.slice.Tensor in [node.target for node in model.graph_module.graph.nodes]

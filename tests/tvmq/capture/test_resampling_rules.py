"""Other sizes and one dimension: few layers, without a zero multiplied, on the smaller image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.read_layers import read_layers
from targets.errors import UnsupportedError
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan

aten = torch.ops.aten


class Around(nn.Module):
    """A convolution of 3 channels to 8, and something behind it."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 8, 3, padding=1), function

    def forward(self, x):
        return self.function(self.first(x))


def captured(module, shape=(3, 6, 8)):
    with torch.no_grad():
        program = torch.export.export(module.eval(), (torch.randn(2, *shape),))
    return capture_program(program)


def layers_of(module, shape=(3, 6, 8)):
    """What is computed and moved, without the reshapes, which cost nothing; a layer reads it."""
    torch.manual_seed(0)
    images = torch.randn(4, *shape)
    last = nn.LazyConv1d(4, 1) if len(shape) == 2 else nn.LazyConv2d(4, 1)
    module = nn.Sequential(module, last).eval()
    module(images)
    model = captured(module, shape)
    plan = make_plan(model, calibrate(model, [images], samples=4))
    network = read_layers(lower_to_integer(import_torch(annotate(model, plan))))
    return [layer for layer in network.layers if not getattr(layer, "reshape", False)][:-1]


def kinds_of(module, shape=(3, 6, 8)):
    return [layer.kind for layer in layers_of(module, shape)]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 1), (5, 3, 1), (16, 8, 4)]
)
def test_a_transposed_convolution_multiplies_nothing_by_the_zeros_between(kernel, stride, padding):
    module = Around(nn.ConvTranspose2d(8, 6, kernel, stride, padding))
    layers = layers_of(module)
    assert layers[-1].kind == "move"
    height, width, _ = layers[0].output.shape
    # Each weight meets each pixel, and some that are beyond the edge.
    reach = -(-kernel // stride)
    most = (height + reach) * (width + reach) * kernel * kernel * 8 * 6
    assert sum(layer.macs for layer in layers[1:] if layer.kind == "conv2d") <= most


def test_phases_that_read_the_same_pixels_are_one_convolution():
    assert kinds_of(Around(nn.ConvTranspose2d(8, 6, 2, 2))) == ["conv2d", "conv2d", "move"]
    overlapping = kinds_of(Around(nn.ConvTranspose2d(8, 6, 4, 2, 1)))
    assert overlapping == ["conv2d"] * 5 + ["move"]
    assert kinds_of(Around(nn.ConvTranspose2d(8, 6, 16, 8, 4))) == overlapping


@pytest.mark.parametrize(
    "up",
    [
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.Upsample(scale_factor=2),
        nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
    ],
    ids=["like a pixel shuffle", "overlapping", "nearest", "pixel shuffle"],
)
def test_norms_and_bounds_behind_are_part_of_the_layers_in_front(up):
    plain = kinds_of(Around(up))
    assert kinds_of(Around(nn.Sequential(up, nn.BatchNorm2d(8), nn.ReLU()))) == plain
    assert kinds_of(Around(nn.Sequential(up, nn.ReLU6()))) == plain


def test_functions_behind_are_tables_of_the_smaller_image():
    layers = layers_of(Around(nn.Sequential(nn.Upsample(scale_factor=2), nn.SiLU())))
    assert [layer.kind for layer in layers] == ["conv2d", "lut", "move"]
    assert layers[1].output.shape == (6, 8, 8)


@pytest.mark.parametrize("factor", [2, 3, (2, 5), 16, 0.5])
def test_copies_are_moves(factor):
    kinds = kinds_of(Around(nn.Upsample(scale_factor=factor)))
    assert kinds[0] == "conv2d"
    assert set(kinds[1:]) == {"move"}
    assert len(kinds) <= 3


def test_a_pixel_shuffle_costs_the_convolution_in_front_nothing():
    module = Around(nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.PixelShuffle(2)))
    assert kinds_of(module) == ["conv2d", "conv2d", "move"]


@pytest.mark.parametrize(
    ("how", "layers"),
    [
        ({"scale_factor": 2}, ["depthwise_conv2d"] * 4),
        ({"scale_factor": 3}, ["depthwise_conv2d"] * 8),
        ({"scale_factor": (2, 1)}, ["depthwise_conv2d"] * 2),
        ({"scale_factor": 0.5}, ["depthwise_conv2d"]),
        ({"scale_factor": 8}, ["depthwise_conv2d"] * 16),
        ({"size": (13, 8)}, ["constant", "multiply", "constant", "multiply", "add"]),
    ],
)
def test_interpolations(how, layers):
    kinds = kinds_of(Around(nn.Upsample(mode="bilinear", **how)))
    assert [kind for kind in kinds[1:] if kind != "move"] == layers


@pytest.mark.parametrize("corners", [True, False])
def test_one_pixel_is_copied_whatever_the_interpolation(corners):
    up = nn.Upsample((4, 5), mode="bilinear", align_corners=corners)
    module = Around(nn.Sequential(nn.AdaptiveAvgPool2d(1), up))
    assert kinds_of(module) == ["conv2d", "avg_pool2d", "move", "move"]


def test_interpolations_by_two_have_exact_weights():
    model = captured(Around(nn.Upsample(scale_factor=2, mode="bilinear")))
    plan = make_plan(model, calibrate(model, [torch.randn(4, 3, 6, 8)], samples=4))
    names = [n for n in model.graph_module.graph.nodes if n.target is aten.conv2d.default][1:]
    for node in names:
        weight = getattr(model.graph_module, node.args[1].target)
        step = plan.weights[node.name].steps[0]
        assert torch.equal((weight / step).round() * step, weight)


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = torch.cat([x[:, :4], F.relu(x + self.b(x))[:, 4:]], 1)
        return F.max_pool1d(x, 2)


def test_rows_are_images_between_their_layers():
    assert kinds_of(Rows(), (4, 10)) == ["conv2d", "conv2d", "move", "max_pool2d"]
    reshapes = [
        node
        for node in captured(Rows(), (4, 10)).graph_module.graph.nodes
        if node.target is aten.reshape.default
    ]
    assert len(reshapes) == 2


REFUSED = {
    "antialias": (
        lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True),
        "_upsample_bilinear2d_aa",
    ),
    "flip of the batch": (lambda x: x.flip(0), "batch on axis 0"),
    "roll of the batch": (lambda x: x.roll(1, 0), "batch on axis 0"),
    "repeated batch": (lambda x: x.repeat(2, 1, 1, 1), "batch on axis 0"),
    "rolled flat": (lambda x: x.roll(1), "Name the axes"),
    "several indices": (lambda x: x[:, [0, 1], [1, 2]], "several axes at once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_with_a_reason(name):
    function, reason = REFUSED[name]

    def with_a_layer_behind(x):
        y = function(x)
        return F.linear(y, torch.ones(64, y.shape[-1]))

    with pytest.raises(UnsupportedError, match=reason):
        captured(Around(with_a_layer_behind))

"""Which nodes are values, which convolutions hold a residual, which steps are tied."""

import math

import torch
from quantization_cases import float_model

from tvmq.capture.capture import capture_program
from tvmq.regions import find_regions


def _capture(function, *shape):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(3, 3, 1)
            self.b = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return function(self, x)

    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(2, *(shape or (3, 8, 8)))
    return capture_program(torch.export.export(Net().eval(), (x,), dynamic_shapes=(batch,)))


def test_residual_network():
    regions = find_regions(float_model("resnet_small"))
    assert list(regions.values) == [
        "x",
        "relu",
        "relu_1",
        "relu_2",
        "relu_3",
        "relu_4",
        "avg_pool2d",
    ]
    assert regions.layers["conv2d_2"].residual == "relu"
    assert regions.layers["conv2d_4"].residual == "relu_2"  # through slices and a padding
    assert regions.layers["conv2d_2"].output == "relu_2"
    assert regions.layers["linear"].output == ""  # logits stay sums
    assert regions.layers["linear"].inputs == ("avg_pool2d",)
    assert regions.first == {"conv2d"}
    assert regions.last == {"linear"}
    assert "add" not in regions.layers


def test_of_two_convolutions_the_later_one_holds_the_sum():
    regions = find_regions(_capture(lambda net, x: torch.relu(net.a(x) + net.b(x)) * 1))
    assert regions.layers["conv2d_1"].residual == "conv2d"
    assert regions.layers["conv2d"].output == "conv2d"
    assert set(regions.values) == {"x", "conv2d", "relu"}


def test_a_convolution_read_twice_is_a_value_of_its_own():
    def forward(net, x):
        y = net.a(x)
        return torch.relu(y) + y

    regions = find_regions(_capture(forward))
    assert regions.layers["conv2d"].output == "conv2d"
    assert regions.layers["relu"].kind == "function"
    assert regions.layers["add"].inputs == ("relu", "conv2d")


def test_doubling_is_an_addition_of_a_value_to_itself():
    def forward(net, x):
        y = net.a(x)
        return y + y

    regions = find_regions(_capture(forward))
    assert regions.layers["add"].inputs == ("conv2d", "conv2d")
    assert regions.layers["conv2d"].residual == ""


def test_concatenation_ties_steps():
    regions = find_regions(float_model("densenet_small"))
    assert ("relu", "relu_1", "relu_2") in regions.tied
    assert sorted(name for group in regions.tied for name in group) == sorted(regions.values)


def test_bounds_of_clamps():
    regions = find_regions(float_model("mobilenet_small"))
    bounds = {(value.low, value.high) for value in regions.values.values()}
    assert bounds == {(0.0, 6.0), (-math.inf, math.inf)}

"""Which nodes are values, which convolutions hold a residual, what is joined where."""

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


def _joined_only(regions):
    return {name: join for name in regions.values if (join := regions.joined_only(name))}


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


def test_a_concatenation_is_a_value_that_no_layer_makes():
    regions = find_regions(float_model("densenet_small"))
    assert {name: value.joins for name, value in regions.values.items() if value.joins} == {
        "cat": ("relu", "relu_1"),
        "cat_1": ("cat", "relu_2"),
    }
    assert _joined_only(regions) == {"relu_1": "cat", "relu_2": "cat_1"}
    assert regions.layers["conv2d_2"].inputs == ("cat",)
    assert [name for name, value in regions.values.items() if value.is_input] == ["x"]


def test_a_concatenation_reaches_as_far_as_what_it_joins_and_to_zero():
    def forward(net, x):
        return torch.cat([net.a(x).clamp(1, 2), net.b(x).clamp(3, 6)], 1) * 2

    value = find_regions(_capture(forward)).values["cat"]
    assert (value.low, value.high) == (0.0, 6.0)


def test_what_is_read_in_front_of_a_concatenation_is_read_through_moves():
    def forward(net, x):
        y, z = torch.relu(net.a(x)), torch.relu(net.b(x))
        joined = torch.cat([y[:, :2], torch.max_pool2d(z, 3, 1, 1)], 1)
        return torch.relu(torch.cat([joined, y], 1) * 2)

    regions = find_regions(_capture(forward))
    assert [value.joins for value in regions.values.values() if value.joins] == [
        ("relu", "relu_1"),
        ("cat", "relu"),
    ]
    assert _joined_only(regions) == {"relu_1": "cat", "cat": "cat_1"}


def test_outputs_are_joined_behind_the_integers():
    regions = find_regions(float_model("detector_small"))
    assert [value.name for value in regions.values.values() if value.joins] == ["cat"]
    assert regions.returned == {"sigmoid"}
    assert regions.layers["conv2d_5"].output == ""  # boxes stay sums
    assert not {"cat_1", "permute", "reshape"} & regions.carried.keys()


def test_a_concatenation_that_is_computed_with_is_joined_in_codes_for_the_outputs_too():
    def forward(net, x):
        joined = torch.cat([torch.relu(net.a(x)), torch.relu(net.b(x))], 1)
        return joined.flatten(1), torch.sigmoid(joined)

    regions = find_regions(_capture(forward))
    assert regions.values["cat"].joins == ("relu", "relu_1")
    assert regions.returned == {"cat", "sigmoid"}
    assert "reshape" not in regions.carried
    assert _joined_only(regions) == {"relu": "cat", "relu_1": "cat"}


def test_bounds_of_clamps():
    regions = find_regions(float_model("mobilenet_small"))
    bounds = {(value.low, value.high) for value in regions.values.values()}
    assert bounds == {(0.0, 6.0), (-math.inf, math.inf)}


def test_an_island_takes_sums_and_codes_and_makes_a_value():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.sums, self.last = (torch.nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(x.cumsum(2) / self.sums(x)) + x

    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 4, 4),))
    model = capture_program(program, float_islands=True)
    regions = find_regions(model)
    assert list(model.islands) == ["island_0"]
    value = regions.values["div"]
    assert (value.island, value.layer, value.is_input) == ("island_0", "", False)
    assert regions.layers["conv2d_1"].output == ""  # its sums go to the island
    assert regions.layers["conv2d_2"].inputs == ("div",)
    assert "relu" in regions.returned
    assert regions.first == {"conv2d"}
    assert regions.last == {"conv2d_2"}

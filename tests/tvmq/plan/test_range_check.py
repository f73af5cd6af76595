"""What is too narrow for its step is found and weighed; most networks give nothing."""

import functools
from dataclasses import replace

import models
import pytest
import torch
from quantization_cases import calibration, float_model, images, plan
from torch import nn

from targets.errors import InputError
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import calibrate
from tvmq.calibrate.channel_ranges import ChannelRange
from tvmq.capture.capture import capture_program
from tvmq.plan.plan_file import plan_from_json, plan_to_json
from tvmq.plan.planner import make_plan
from tvmq.plan.range_check import check_ranges, few_steps
from tvmq.settings import Settings

UNEQUAL = ("mobilenet_rescaled", "vit_small")
"""Hidden channels of unlike sizes; a class token that of untrained weights hardly varies."""

LEVEL = [name for name in models.ZOO if name not in UNEQUAL]
SETTINGS = [
    Settings(bias_correction=False),
    Settings(4, 4, bias_correction=False),
    Settings(scales="free", granularity="channel", bias_correction=False),
]


def _captured(net, *shape):
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(3))
    return capture_program(torch.export.export(net.eval(), (x,), dynamic_shapes=(batch,))), x


def _findings(model, x, settings=SETTINGS[0]):
    seen = calibrate(model, [x])
    return check_ranges(model, make_plan(model, seen, settings), seen)


@pytest.mark.parametrize("settings", SETTINGS, ids=["w8a8", "w4a4", "free"])
@pytest.mark.parametrize("name", LEVEL)
def test_nothing_is_found_where_channels_have_like_sizes(name, settings):
    model = float_model(name)
    assert check_ranges(model, plan(name, settings), calibration(name)) == ()
    try:
        seen = ranges_from_batch_norm(model)
    except InputError:  # no batch norms
        return
    assert check_ranges(model, make_plan(model, seen, settings), seen) == ()


@functools.cache
def _features(size):
    """A dense network whose first feature is ``size`` times as large as the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight[:, 0] /= size
    model, x = _captured(net, 6)
    return model, x * torch.tensor([size, 1, 1, 1, 1, 1])


def test_features_that_a_large_one_hides():
    model, x = _features(1e4)
    (found,) = _findings(model, x)
    assert (found.kind, found.name, found.layer) == ("features", "input", "linear")
    assert (found.channels, found.count) == ((1, 2, 3, 4, 5), 6)
    assert found.steps[1] < 0.2
    assert 0.6 < found.lost < 1
    assert "like sizes" in found.remedy


def test_the_same_features_do_no_harm_where_they_matter_little():
    model, x = _features(1.0)
    assert _findings(model, x * torch.tensor([1e4, 1, 1, 1, 1, 1])) == ()
    assert _findings(model, x) == ()


def test_a_channel_that_is_always_the_same_loses_nothing():
    model, x = _features(1e4)
    constant = torch.tensor([[1e4, 0.1, 0.2, 0.0, -0.3, 0.4]]) * torch.ones(64, 1)
    constant[:, 0] = x[:, 0]
    assert _findings(model, constant) == ()


class _Joined(nn.Module):
    """The narrow branch is read by a convolution that makes up for its size, or by a function."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)
        self.read = read
        with torch.no_grad():
            for constant in (self.b.weight, self.b.bias):
                constant *= 1000
            self.c.weight[:, 4:] /= 1000

    def forward(self, x):
        y = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        return torch.relu(self.c(y)) if self.read == "conv" else torch.tanh(y)


@pytest.mark.parametrize("read", ["conv", "function"])
def test_a_branch_that_is_joined_with_a_wide_one(read):
    torch.manual_seed(0)
    (found,) = _findings(*_captured(_Joined(read), 3, 6, 6))
    assert (found.kind, found.name) == ("joined", "relu")
    assert found.channels == (0, 1, 2, 3)
    assert found.layer == ("conv2d_2" if read == "conv" else "cat")
    assert found.steps[1] < 1


def test_weights_of_channels_that_one_step_rounds_away():
    """As folded batch norms make them: large where what they read is small."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
    with torch.no_grad():
        net[0].weight[0] /= 500
        net[0].bias[0] /= 500
        net[2].weight[0] *= 500
    model, x = _captured(net, 3, 8, 8)
    (found,) = [f for f in _findings(model, x) if f.kind == "weights"]
    assert (found.name, found.channels, found.count) == ("conv2d_1", (1, 2, 3, 4, 5, 6, 7), 8)
    assert found.lost > 0.3
    assert "--granularity channel" in found.remedy
    per_channel = Settings(granularity="channel", bias_correction=False)
    assert "weights" not in [f.kind for f in _findings(model, x, per_channel)]


def test_rows_of_what_leaves_the_network_matter_each():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))
    with torch.no_grad():
        net[2].weight[:4] *= 1000  # boxes in pixels beside two scores
    (found,) = _findings(*_captured(net, 3, 8, 8))
    assert (found.kind, found.channels) == ("weights", (4, 5))


@pytest.mark.parametrize("groups", [1, 2])
def test_what_an_output_reads_matters_to_it_however_small(groups):
    torch.manual_seed(0)
    net = nn.Conv1d(6, 4, 1, groups=groups, bias=False)
    with torch.no_grad():
        if groups == 1:
            net.weight[:3, 3:], net.weight[3, :3] = 0, 0
    model, x = _captured(net, 6, 5)
    (found,) = _findings(model, x * torch.tensor([1e4, 1e4, 1e4, 1, 1, 1])[:, None])
    assert (found.kind, found.channels) == ("features", (3, 4, 5))
    assert found.lost == 1
    assert _findings(model, x) == ()


def test_dead_rows_are_no_loss():
    """Even where batch norms say that they vary, which weights of next to nothing can't."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[0], layer.weight[1] = 0, layer.weight[1] * 1e-9
    model, x = _captured(net, 3, 8, 8)
    seen = calibrate(model, [x])
    alike = ChannelRange(torch.zeros(4), torch.ones(4))
    seen = replace(seen, channels=dict.fromkeys(seen.channels, alike))
    assert check_ranges(model, make_plan(model, seen, SETTINGS[0]), seen) == ()


def test_a_plan_that_is_read_has_no_ranges_to_check():
    from tvmq.calibrate.calibrate import Calibration

    model, x = _features(1e4)
    first = make_plan(model, calibrate(model, [x]))
    again = plan_from_json(plan_to_json(first), model)
    assert check_ranges(model, again, Calibration({}, "plan p.json")) == ()


def test_few_is_less_where_codes_are_few():
    assert [few_steps(bits) for bits in (8, 5, 4, 3, 2)] == [4, 4, 2, 1, 0.5]


def test_a_rescaled_network_is_found_with_and_without_data():
    model = float_model("mobilenet_rescaled")
    settings = Settings(4, 4, bias_correction=False)
    for seen in (calibration("mobilenet_rescaled"), ranges_from_batch_norm(model)):
        found = check_ranges(model, make_plan(model, seen, settings), seen)
        assert {f.kind for f in found} == {"channels", "weights"}
        assert [f.layer for f in found] == ["conv2d_2", "conv2d_2", "conv2d_5", "conv2d_5"]


def test_extremes_by_channel():
    x, seen = images("resnet_small"), calibration("resnet_small").channels
    torch.testing.assert_close(seen["x"].low, x.amin((0, 2, 3)))
    torch.testing.assert_close(seen["x"].high, x.amax((0, 2, 3)))
    assert {"x", "relu", "relu_4", "avg_pool2d", "reshape"} <= seen.keys()
    known = ranges_from_batch_norm(float_model("resnet_small")).channels
    assert known.keys() == seen.keys()
    assert (known["relu"].high >= 0.5 * seen["relu"].high).all()
    assert (known["relu"].low == 0).all()

"""Values that only max pools read."""

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

SIGNS = torch.tensor([1.0, -1.0, 0.5, 2.0])[:, None, None]


class Read(nn.Module):
    """A convolution, and what reads it."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 4, 1), read

    def forward(self, x):
        return self.read(self.conv(x))


def _calibrated(read):
    """The float network, its calibration, and what its convolution makes of the images."""
    torch.manual_seed(0)
    network, x = Read(read).eval(), torch.randn(16, 3, 8, 8)
    model = capture_program(models.export((network, x[:2])))
    with torch.no_grad():
        return model, calibrate(model, [x[:9], x[9:]]), network.conv(x)


def _largest(x):
    return x.amax((2, 3))


def _both_ends(x):
    return torch.cat([_largest(x), -_largest(-x)], 1)


def _windows(x):
    return F.max_pool2d(x, 3, 1, 1)


def _thirds(x):
    return F.adaptive_max_pool2d(x, 3)


def _padded(x):
    return _largest(F.pad(x, (1, 1, 1, 1)))


LEFT = {
    "of the image": (_largest, _largest),
    "of rows, then of columns": (lambda x: x.amax(3).amax(2), _largest),
    "of windows that overlap": (_windows, _windows),
    "of windows, then of the image": (lambda x: _largest(_windows(x)), _largest),
    "of sizes that differ": (_thirds, _thirds),
    "of some channels": (lambda x: _largest(x[:, 1:3]), lambda x: _largest(x[:, 1:3])),
    "with zeros around": (_padded, lambda x: F.relu(_largest(x))),
    "of a function": (lambda x: _largest(torch.sigmoid(x)), _largest),
    "of a function that falls": (lambda x: _largest(torch.erfc(x)), lambda x: x.amin((2, 3))),
    "of a factor": (lambda x: _largest(2 * torch.tanh(x) + 1), _largest),
    "of both ends": (_both_ends, _both_ends),
    "of two that are joined": (lambda x: _largest(torch.cat([x, torch.tanh(x)], 1)), _largest),
}  # fmt: skip
"""What reads a value, and what is left of it."""


@pytest.mark.parametrize("name", LEFT)
def test_a_range_is_of_what_is_left(name):
    read, left = LEFT[name]
    _, calibration, made = _calibrated(read)
    histogram, expected = calibration.histograms["conv2d"], left(made)
    assert histogram.low == pytest.approx(float(expected.min()))
    assert histogram.high == pytest.approx(float(expected.max()))
    assert histogram.note == "16 images behind the max pools that read it"


ALL = {
    "by another": lambda x: (_largest(x), x.mean((2, 3))),
    "in front of the pool": lambda x: _largest(torch.sin(x)),
    "in front of one of two pools": lambda x: (_largest(x), _largest(torch.sin(x))),
    "as an output": lambda x: (_largest(x), x),
    "by what rises and falls": lambda x: _largest(x * x),
    "joined, by another": lambda x: F.avg_pool2d(torch.cat([x, _windows(x)], 1), 2),
    "by factors of both signs": lambda x: _largest(x.tanh() * SIGNS),
    "joined, by channel": lambda x: _largest(torch.cat([x, torch.tanh(x)], 1)[:, 2:]),
    "added": lambda x: _largest(x + torch.tanh(x)),
}  # fmt: skip
"""What reads all of a value, or might."""


@pytest.mark.parametrize("name", ALL)
def test_a_value_that_others_read_keeps_its_range(name):
    _, calibration, made = _calibrated(ALL[name])
    histogram = calibration.histograms["conv2d"]
    assert histogram.low == pytest.approx(float(made.min()))
    assert histogram.high == pytest.approx(float(made.max()))
    assert histogram.counts.sum() == made.numel()


@pytest.mark.parametrize(("read", "cut"), [(_largest, False), (lambda x: x.mean((2, 3)), True)])
def test_elements_that_are_few_are_not_cut_off_where_only_they_count(read, cut):
    torch.manual_seed(0)
    x = 0.1 * torch.randn(64, 3, 64, 64)
    x[:, :, 5, 7] = 2 + torch.rand(64, 3)
    network = Read(read).eval()
    with torch.no_grad():
        network.conv.weight.copy_(torch.eye(4, 3)[..., None, None])
        network.conv.bias.zero_()
    model = capture_program(models.export((network, x[:2])))
    value = make_plan(model, calibrate(model, [x]), Settings(activation_bits=4)).values["conv2d"]
    assert (value.step * (value.high + 0.5) < x.max()) == cut

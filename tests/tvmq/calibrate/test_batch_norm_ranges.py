"""Ranges from batch-norm statistics, against images drawn to fit them."""

import math

import models
import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model

from targets.errors import InputError
from tvmq.calibrate.batch_norm_ranges import Spread, ranges_from_batch_norm
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.data.preprocessing import Preprocessing

NORMALISED = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.5))


def _spread(mean, std, low=-math.inf, high=math.inf):
    return Spread(*(torch.tensor([[float(x)]]).double() for x in (mean, std, low, high)))


def test_moments_of_a_cut_normal():
    x = (torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * 2 + 1).clamp(0, 4)
    cut = _spread(1, 2, 0, 4).mapped(lambda y: y)
    assert float(cut.mean) == pytest.approx(float(x.mean()), abs=0.02)
    assert float(cut.std) == pytest.approx(float(x.std()), abs=0.02)
    assert (float(cut.low), float(cut.high)) == (0.0, 4.0)


@pytest.mark.parametrize(
    "name",
    ["resnet_small", "resnet_projection", "mobilenet_small", "densenet_small", "unet_small"],
)
def test_ranges_agree_with_images(name):
    found, seen = ranges_from_batch_norm(float_model(name)).histograms, calibration(name).histograms
    assert found.keys() == seen.keys()
    for value, histogram in found.items():
        if value != "x":
            _, high = histogram.percentile(99.9)
            _, expected = seen[value].percentile(99.9)
            assert expected / 2 < high < expected * 2.5, value


def test_relu_leaves_half_of_a_centred_channel_at_zero():
    histogram = ranges_from_batch_norm(float_model("resnet_small")).histograms["relu"]
    half = len(histogram.counts) // 2
    assert histogram.low == 0.0
    assert histogram.counts[:half].sum() == 0
    assert 0.2 < histogram.counts[half] / histogram.counts.sum() < 0.8


def test_the_largest_of_a_window_is_what_images_show():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.MaxPool2d(4),
        torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveMaxPool2d(1),
        torch.nn.Flatten(),
    ).train()  # fmt: skip
    x = torch.nn.functional.interpolate(  # neighbours resemble each other
        torch.randn(64, 3, 16, 16), scale_factor=2, mode="bilinear"
    )
    for _ in range(60):
        network(x)
    model = capture_program(models.export((network.eval(), x[:2])))
    found = ranges_from_batch_norm(model).histograms
    seen = calibrate(model, [x]).histograms
    assert "conv2d" in found
    for name in ("conv2d", "conv2d_1"):
        low, median = _median(found[name]), _median(seen[name])
        assert median / 2 < low < median * 2, name
        assert found[name].note == "batch-norm statistics behind the max pools that read it"


def _median(histogram):
    centres, counts = histogram.occupied()
    return float(centres[np.searchsorted(np.cumsum(counts), counts.sum() / 2)])


def test_clamp_bounds_the_range():
    found = ranges_from_batch_norm(float_model("mobilenet_small")).histograms
    assert max(h.high for name, h in found.items() if name.startswith("clamp")) <= 6.0


def test_input_range_is_exact_with_mean_and_std():
    histogram = ranges_from_batch_norm(float_model("resnet_small"), NORMALISED).histograms["x"]
    assert (histogram.low, histogram.high) == (-2.0, 2.0)
    assert "mean and std" in histogram.note


@pytest.mark.parametrize("preprocessing", [None, Preprocessing()], ids=["none", "empty"])
def test_input_range_is_assumed_and_said_otherwise(preprocessing):
    histogram = ranges_from_batch_norm(float_model("resnet_small"), preprocessing).histograms["x"]
    assert histogram.high == pytest.approx((1 - 0.406) / 0.225)
    assert "assumed" in histogram.note
    assert "--mean" in histogram.note


def test_network_without_batch_norm_is_refused():
    with pytest.raises(InputError, match=r"no batch norms.*--calib-data"):
        ranges_from_batch_norm(float_model("mlp"))


def test_every_value_behind_no_batch_norm_is_named():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3),
    ).eval()  # fmt: skip
    model = capture_program(models.export((network, torch.randn(2, 3, 12, 12))))
    said = r"large relu_1 \(module 4\), relu_2 \(module 6\) get: no batch norm.*--calib-data"
    with pytest.raises(InputError, match=said):
        ranges_from_batch_norm(model)


class _OfTokens(torch.nn.Module):
    """A linear layer of tokens, whose channels are behind them, with a batch norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(8, 6), torch.nn.BatchNorm1d(6)
        with torch.no_grad():
            self.norm.weight.copy_(torch.arange(6) + 1)

    def forward(self, x):
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y).mean(1)


def test_channels_of_tokens_lie_behind_them():
    model = capture_program(models.export((_OfTokens().eval(), torch.randn(2, 4, 8))))
    found = ranges_from_batch_norm(model)
    (name,) = (name for name in found.channels if name.startswith("linear"))
    reach = found.channels[name].reach
    assert (reach.diff() > 0).all()
    assert len(reach) == 6


def test_elements_of_a_channel_are_held_once():
    spread = Spread(*(torch.full((1, 2, 1, 1), x).double() for x in (1.0, 2.0, -9.0, 9.0)))
    padded = spread.moved(lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1)), (7, 2, 4, 4))
    assert padded.mean.shape == (1, 2, 6, 6)
    assert (padded.mean == 1).sum() == 2 * 4 * 4
    cut = padded.moved(lambda x: x[:, :, 1:5, 1:5], (7, 2, 6, 6))
    assert torch.equal(cut.mean, spread.mean)


def test_quadrature_does_not_grow_with_the_image(monkeypatch):
    sizes, mapped = [], Spread.mapped

    def counted(self, function):
        sizes.append(self.mean.numel())
        return mapped(self, function)

    monkeypatch.setattr(Spread, "mapped", counted)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.SiLU(),
        torch.nn.MaxPool2d(2), torch.nn.AvgPool2d(3), torch.nn.Hardswish(),
    ).eval()  # fmt: skip
    model = capture_program(models.export((network, torch.randn(2, 3, 32, 32))))
    histograms = ranges_from_batch_norm(model).histograms
    assert sizes == [4, 4, 4]
    assert histograms["silu"].counts.sum() == pytest.approx(4 * 15 * 15)  # a max pool reads it
    assert histograms["hardswish"].counts.sum() == pytest.approx(4 * 5 * 5)


class Tokens(torch.nn.Module):
    """A batch norm of tokens, whose channels are last, and products of them, as in LeViT."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)
        with torch.no_grad():
            self.norm.bias.copy_(torch.arange(8.0))
            self.norm.weight.fill_(0.1)

    def forward(self, x):
        y = self.first(x)
        y = self.norm(y.flatten(0, 1)).reshape_as(y)
        return y @ y.transpose(1, 2)


def test_channels_of_tokens_are_last():
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Tokens().eval(), (torch.randn(2, 5, 6),), dynamic_shapes=(batch,))
    model = capture_program(program)
    with pytest.raises(InputError, match="nothing says how large") as error:
        ranges_from_batch_norm(model)
    assert "matmul" in str(error.value)

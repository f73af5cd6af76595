"""Convolutions keep the taps that meet the image, and no others."""

from __future__ import annotations

import pytest
import torch
from models import export
from torch import nn

from tvmq.capture.capture import capture_program

aten = torch.ops.aten


def captured(layer, *shape):
    """The captured convolution's kernel, padding and dilation; it computes what the layer does."""
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    model = capture_program(export((layer.eval(), x)))
    with torch.no_grad():
        torch.testing.assert_close(model.graph_module(x)[0], layer(x), rtol=1e-5, atol=1e-6)
    (conv,) = model.graph_module.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    _, weight, _, _, padding, dilation, _ = conv.args
    return tuple(weight.meta["val"].shape[2:]), tuple(padding), tuple(dilation)


def dilated(apart, kernel=3, **options):
    options = {"padding": apart * (kernel // 2), **options}
    return nn.Conv2d(4, 6, kernel, dilation=apart, **options)


CASES = {
    "all but the middle": (dilated(24), (4, 14, 14), ((1, 1), (0, 0), (1, 1))),
    "as far as the image goes": (dilated(14), (4, 14, 14), ((1, 1), (0, 0), (1, 1))),
    "one pixel is met": (dilated(13), (4, 14, 14), ((3, 3), (13, 13), (13, 13))),
    "along one axis": (dilated(9), (4, 8, 30), ((1, 3), (0, 9), (1, 9))),
    "the outer two of five": (dilated(5, 5), (4, 9, 9), ((3, 3), (5, 5), (5, 5))),
    "strided": (dilated(6, stride=4), (4, 6, 9), ((1, 3), (0, 6), (1, 6))),
    "of one channel each": (dilated(9, groups=2), (4, 8, 8), ((1, 1), (0, 0), (1, 1))),
    "rows": (
        nn.Conv1d(4, 6, 3, dilation=16, padding=16),
        (4, 12),
        ((1, 1), (0, 0), (1, 1)),
    ),
    "small": (dilated(1), (4, 5, 5), ((3, 3), (1, 1), (1, 1))),
    "more padding than kernel": (
        nn.Conv2d(4, 6, 3, padding=4),
        (4, 5, 5),
        ((3, 3), (4, 4), (1, 1)),
    ),
    "a window that can't be cut alike": (
        nn.Conv2d(4, 6, 3, dilation=4, padding=2),
        (4, 5, 5),
        ((3, 3), (2, 2), (4, 4)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_taps_that_meet_nothing_but_padding_are_left_out(case):
    layer, shape, want = CASES[case]
    assert captured(layer, *shape) == want


class OfTwoSizes(nn.Module):
    """One layer on an image and on smaller ones, which fewer of its taps meet."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 5, dilation=3, padding=6)

    def forward(self, x):
        half, third = nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 4)
        return (
            self.layer(x).sum((2, 3)) + self.layer(half).sum((2, 3)) + self.layer(third).sum((2, 3))
        )


def test_a_layer_on_images_of_several_sizes_has_the_taps_of_each():
    torch.manual_seed(0)
    module, x = OfTwoSizes().eval(), torch.randn(2, 4, 12, 12)
    model = capture_program(export((module, x)))
    with torch.no_grad():
        torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-4)
    convs = model.graph_module.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert [conv.args[1].meta["val"].shape[2] for conv in convs] == [5, 3, 1]

"""What is put around an image: the same values as torch's, whatever the mode and the axes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from targets.errors import UnsupportedError
from tvmq.capture.capture import capture_program


class Padded(nn.Module):
    """A convolution, and its output with something around it."""

    def __init__(self, function, rows=False):
        super().__init__()
        self.layer = nn.Conv1d(3, 4, 1) if rows else nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def captured(module, shape):
    images = torch.randn(2, *shape)
    with torch.no_grad():
        model = capture_program(torch.export.export(module.eval(), (images,)))
        torch.testing.assert_close(model.graph_module(images)[0], module(images))
    return model


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("widths", [(1, 2, 3, 0), (0, 0, 2, 1), (4, 4), (0, 0, 0, 0), (3, 3, 3, 3)])
def test_every_mode_gives_what_torch_gives(mode, widths):
    if mode != "constant" and len(widths) == 2:
        widths = (*widths, 0, 0)
    captured(Padded(lambda x: F.pad(x, widths, mode=mode)), (3, 5, 7))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_rows_are_padded_along_their_length(mode):
    captured(Padded(lambda x: F.pad(x, (2, 1), mode=mode), rows=True), (3, 9))


@pytest.mark.parametrize(
    "module",
    [
        nn.ReflectionPad2d((1, 0, 2, 3)),
        nn.ReplicationPad2d(2),
        nn.ZeroPad2d((1, 0, 0, 2)),
        nn.CircularPad2d((0, 3, 1, 1)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 5, padding=2, padding_mode="circular", stride=2),
    ],
)
def test_modules_that_pad(module):
    captured(Padded(module), (3, 6, 8))


def test_widths_below_zero_cut_off():
    captured(Padded(lambda x: F.pad(x, (-1, 2, 1, -2))), (3, 6, 8))
    captured(Padded(lambda x: F.pad(x, (-1, -2))), (3, 6, 8))


def test_channels_are_padded():
    captured(Padded(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))), (3, 6, 8))


def test_operators_of_decomposed_programs():
    module, images = Padded(nn.ReflectionPad2d(1)).eval(), torch.randn(2, 3, 6, 8)
    with torch.no_grad():
        program = torch.export.export(module, (images,)).run_decompositions()
        model = capture_program(program)
        torch.testing.assert_close(model.graph_module(images)[0], module(images))


def test_images_are_not_repeated():
    with pytest.raises(UnsupportedError, match="batch elsewhere than on axis 0"):
        captured(Padded(lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))), (3, 6, 8))

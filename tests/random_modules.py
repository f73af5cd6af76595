"""Small random modules over the operators that export gives, for the tests of whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Step = Callable[[torch.Tensor], torch.Tensor]

FUNCTIONS: dict[str, Step] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.7, 0.9),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "abs": torch.abs,
    "exp": lambda x: torch.exp(0.25 * x),
    "expm1": lambda x: torch.expm1(0.25 * x),
    "square": torch.square,
    "power": lambda x: x**3,
    "sin": torch.sin,
    "atan": torch.atan,
    "erf": torch.erf,
    "sign": torch.sign,
    "round": torch.round,
    "at_least": lambda x: x.clamp(min=-0.5),
    "at_most": lambda x: x.clamp(max=0.5),
    "one_slope": lambda x: F.prelu(x, torch.tensor([0.3])),
    "negative": lambda x: -x,
    "scaled": lambda x: 1.5 * x - 0.25,
    "from_one": lambda x: 1.0 - x,
}
"""Of one tensor, element by element."""
JUMPS = ("sign", "round", "threshold", "hardshrink")
"""Those that a step of the codes can move by more than a step."""


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Between(nn.Module):
    """A convolution, a function, and a convolution."""

    def __init__(self, function: Step, channels: int = 8) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, channels, 3, padding=1), function
        self.last = nn.LazyConv2d(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


class Combined(nn.Module):
    """Two layers that read one tensor, and what joins them."""

    def __init__(self, channels: int, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.one(x), self.two(x))


JOINS = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "multiple": lambda a, b: torch.add(a, b, alpha=2),
    "joined": lambda a, b: torch.cat([a, b], 1),
    "stacked": lambda a, b: torch.stack([a, b], 2).flatten(1, 2),
    "residual": lambda a, b: F.relu(a) + b,
}
REDUCTIONS: dict[str, Step] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean_twice": lambda x: x.mean(3).mean(2),
    "flat_mean": lambda x: x.flatten(2).mean(-1),
    "sum": lambda x: x.sum((2, 3)),
    "amax": lambda x: x.amax((2, 3)),
    "max_twice": lambda x: x.max(3).values.max(2).values,
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
}
FACTORS = torch.linspace(0.2, 1, 8)[:, None, None]
RESIZES: dict[str, Step] = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest_by_half": lambda x: F.interpolate(x, scale_factor=1.5),
    "nearest_to_a_size": lambda x: F.interpolate(x, (11, 13), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear_by_three_and_eight": lambda x: F.interpolate(x, scale_factor=(3, 8), mode="bilinear"),
    "bilinear_to_corners": lambda x: F.interpolate(
        x, scale_factor=2, mode="bilinear", align_corners=True
    ),
    "bilinear_smaller": lambda x: F.interpolate(x, (4, 6), mode="bilinear"),
    "bilinear_of_one_pixel": lambda x: F.interpolate(
        F.adaptive_avg_pool2d(x, 1), (5, 7), mode="bilinear"
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="bicubic"),
    "bicubic_to_corners": lambda x: F.interpolate(x, (9, 11), mode="bicubic", align_corners=True),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_shuffle_of_a_maximum": lambda x: F.pixel_shuffle(F.max_pool2d(x, 2), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "rolled": lambda x: torch.roll(x, (2, -3), (2, 3)),
    "rolled_behind": lambda x: torch.roll(x.permute(0, 2, 3, 1), 1, 2).permute(0, 3, 1, 2),
    "flipped": lambda x: x.flip(1, 3),
    "reflected": lambda x: F.pad(x, (1, 0, 2, 1), mode="reflect"),
    "replicated": lambda x: F.pad(x, (0, 3, 1, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"),
    "repeated": lambda x: x.repeat(1, 2, 1, 3),
    "repeated_each": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 1),
    "picked": lambda x: x[:, [3, 1, 1, 0, 5, 6, 7]],
    "broadcast": lambda x: x.mean(2, keepdim=True) + x.mean(3, keepdim=True),
    "expanded": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x),
    "filled": lambda x: torch.cat([x, x.amax((2, 3), keepdim=True).expand_as(x)], 1),
    "scaled_sum": lambda x: torch.addcmul(F.relu(x), x, FACTORS),
}
"""Of images of 8 channels and an even size, to another size or order."""


def transposed(**how: Any) -> nn.Module:
    """A transposed convolution with what stands behind one."""
    norm = nn.BatchNorm2d(8)
    norm.running_mean.uniform_(-0.2, 0.2)
    norm.running_var.uniform_(0.05, 0.2)
    return nn.Sequential(nn.ConvTranspose2d(8, 8, **how), norm, nn.ReLU())


TRANSPOSED: dict[str, dict[str, Any]] = {
    "like a pixel shuffle": {"kernel_size": 2, "stride": 2},
    "overlapping": {"kernel_size": 4, "stride": 2, "padding": 1},
    "with output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "with gaps": {"kernel_size": 2, "stride": 3},
    "dilated": {"kernel_size": 3, "stride": 2, "dilation": 2},
    "along one axis": {"kernel_size": (1, 4), "stride": (1, 2), "padding": (0, 1)},
    "without a stride": {"kernel_size": 3, "padding": 1},
    "cut": {"kernel_size": 5, "stride": 3, "padding": 3, "output_padding": 2},
    "in groups": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    "by channel": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 8, "bias": False},
    "by eight": {"kernel_size": 16, "stride": 8, "padding": 4},
}


GROUP_NORMS: dict[str, Callable[[], nn.Module]] = {
    "of one group": lambda: nn.GroupNorm(1, 8),
    "of four groups": lambda: nn.GroupNorm(4, 8, eps=0.1),
    "of each channel": lambda: nn.InstanceNorm2d(8, affine=True),
    "without factors": lambda: nn.InstanceNorm2d(8),
    "of statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
}


def group_norm(name: str) -> nn.Module:
    """A group norm with factors of all sizes, and a bound behind it."""
    norm = GROUP_NORMS[name]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, -0.5, 1.5)
    return nn.Sequential(norm, nn.ReLU())


class RowBlock(nn.Module):
    """Most of what is done to rows (N, 8, L), L even."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm1d(8)
        self.gate = nn.Conv1d(8, 8, 1)
        self.up = nn.ConvTranspose1d(8, 8, 4, 2, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool1d(y, 1)))
        x = x + self.scale * y
        left, right = x.chunk(2, 1)
        late = F.pad(right, (2, 0))[:, :, :-2]
        x = torch.cat([left, late], 1)
        up = F.relu(self.up(F.max_pool1d(x, 2)))
        x = x + up + F.interpolate(F.avg_pool1d(x, 2), scale_factor=2, mode="linear")
        return torch.cat([x, F.interpolate(x, scale_factor=2), x.flip(2)], 2)


def _resize(rng: np.random.Generator, channels: int, size: int) -> tuple[nn.Module, int, int]:
    """A step that makes images larger, their channels and height."""
    names = ["nearest", "nearest_by_half", "bilinear", "bilinear_to_corners", "transposed", "flip"]
    name = str(rng.choice(names))
    if name == "transposed":
        made, kernel, padding = (int(rng.integers(*ends)) for ends in ((2, 9), (2, 5), (0, 2)))
        padding = min(padding, (2 * (size - 1) + kernel - 1) // 2)  # something is left
        conv = nn.ConvTranspose2d(channels, made, kernel, 2, padding)
        return conv, made, (size - 1) * 2 - 2 * padding + kernel
    if name == "flip":
        return Applied(lambda x: x.flip(2)), channels, size
    return Applied(RESIZES[name]), channels, int(size * (1.5 if name == "nearest_by_half" else 2))


def random_module(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A module in evaluation mode, and the shape of an image."""
    channels, size = int(rng.integers(1, 6)), int(rng.integers(6, 13))
    image = (channels, size, size + int(rng.integers(0, 3)))
    steps: list[nn.Module] = []
    for _ in range(int(rng.integers(1, 6))):
        kind = rng.choice(["conv", "conv", "function", "join", "pool", "norm", "resize"])
        if kind == "conv":
            made = int(rng.integers(2, 13))
            kernel = int(rng.choice([1, 3, 3, 5]))
            groups = channels if made % channels == 0 and rng.random() < 0.3 else 1
            padding = int(rng.integers(0, kernel // 2 + 1))
            stride = 2 if size > 5 and rng.random() < 0.2 else 1
            if size + 2 * padding < kernel:
                continue
            conv = nn.Conv2d(channels, made, kernel, stride, padding, groups=groups)
            steps.append(conv)
            channels, size = made, (size + 2 * padding - kernel) // stride + 1
        elif kind == "function":
            name = str(rng.choice([name for name in FUNCTIONS if name not in JUMPS]))
            steps.append(Applied(FUNCTIONS[name]))
        elif kind == "join":
            name = str(rng.choice(list(JOINS)))
            steps.append(Combined(channels, JOINS[name]))
            channels *= 2 if name in ("joined", "stacked") else 1
        elif kind == "pool" and size > 3:
            maximum = bool(rng.random() < 0.5)
            steps.append((nn.MaxPool2d if maximum else nn.AvgPool2d)(2))
            size //= 2
        elif kind == "resize" and size < 9:
            step, channels, size = _resize(rng, channels, size)
            steps.append(step)
        elif kind == "norm":
            steps.append(nn.BatchNorm2d(channels))
    if rng.random() < 0.7:
        name = str(rng.choice(list(REDUCTIONS)))
        steps.append(Applied(REDUCTIONS[name]))
        if rng.random() < 0.7:
            steps.append(nn.Linear(channels, int(rng.integers(1, 9))))
    if not steps:
        steps.append(nn.Conv2d(channels, 4, 1))
    module = nn.Sequential(*steps)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module.eval(), image

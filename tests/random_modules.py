"""Small random modules over the operators that export gives, for the tests of whole networks."""

from __future__ import annotations

from collections.abc import Callable

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


def random_module(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A module in evaluation mode, and the shape of an image."""
    channels, size = int(rng.integers(1, 6)), int(rng.integers(6, 13))
    image = (channels, size, size + int(rng.integers(0, 3)))
    steps: list[nn.Module] = []
    for _ in range(int(rng.integers(1, 6))):
        kind = rng.choice(["conv", "conv", "function", "join", "pool", "norm"])
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

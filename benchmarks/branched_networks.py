"""DenseNet-121, RepVGG-A0 and MobileOne-S0 for 224 x 224 pixels, untrained, as they are trained.

The blocks of RepVGG and MobileOne keep all their branches, which is what an export of the training
form holds; DenseNet joins everything with everything. Batch norms have seeded statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

PIXELS = 224
CLASSES = 1000

GROWTH, BOTTLENECK, DENSE_BLOCKS = 32, 128, (6, 12, 24, 16)
"""DenseNet-121 (arXiv 1608.06993, table 1)."""

REPVGG_A0 = ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1))
"""Channels and blocks of the stages, each of which halves the image (arXiv 2101.03697, table 2)."""

MOBILEONE_S0 = ((48, 1, 2), (48, 2, 2), (128, 8, 2), (256, 5, 2), (256, 5, 1), (1024, 1, 2))
"""Channels, blocks and first stride of the stages (arXiv 2206.04040, table 4)."""

MOBILEONE_BRANCHES = 4


class Branches(nn.Module):
    """The sum of parallel convolutions, each with a batch norm, and perhaps of the input's norm."""

    def __init__(
        self, inputs: int, outputs: int, kernels: tuple[int, ...], stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        branches = [_normed(inputs, outputs, kernel, stride, groups) for kernel in kernels]
        if stride == 1 and inputs == outputs:
            branches.append(nn.BatchNorm2d(inputs))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, inputs, H, W] to float32[N, outputs, H / stride, W / stride]."""
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y = y + branch(x)
        return torch.relu(y)


class DenseLayer(nn.Module):
    """What came in, with ``GROWTH`` more channels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze = _activated(inputs, BOTTLENECK, 1)
        self.grow = _activated(BOTTLENECK, GROWTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, inputs, H, W] to float32[N, inputs + GROWTH, H, W]."""
        return torch.cat([x, self.grow(self.squeeze(x))], 1)


def densenet121(seed: int = 0) -> ExportedProgram:
    """DenseNet-121, exported for any batch."""
    layers: list[nn.Module] = [_normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for number, count in enumerate(DENSE_BLOCKS):
        if number:
            layers += [_activated(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels))
            channels += GROWTH
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return _exported(layers, channels, seed)


def repvgg_a0(seed: int = 0) -> ExportedProgram:
    """RepVGG-A0 with the branches 3 x 3, 1 x 1 and identity, exported for any batch."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs, count in REPVGG_A0:
        for number in range(count):
            layers.append(Branches(channels, outputs, (3, 1), 1 if number else 2))
            channels = outputs
    return _exported(layers, channels, seed)


def mobileone_s0(seed: int = 0) -> ExportedProgram:
    """MobileOne-S0 with four copies of every branch, exported for any batch."""
    depthwise = (3,) * MOBILEONE_BRANCHES + (1,)
    pointwise = (1,) * MOBILEONE_BRANCHES
    (first, *_), *stages = MOBILEONE_S0
    layers: list[nn.Module] = [Branches(3, first, depthwise, 2)]
    channels = first
    for outputs, count, stride in stages:
        for number in range(count):
            step = 1 if number else stride
            layers.append(Branches(channels, channels, depthwise, step, channels))
            layers.append(Branches(channels, outputs, pointwise, 1))
            channels = outputs
    return _exported(layers, channels, seed)


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _activated(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


def _exported(layers: list[nn.Module], channels: int, seed: int) -> ExportedProgram:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(*layers, *head)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.1, 0.1)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
        example = torch.randn(2, 3, PIXELS, PIXELS)
    return export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))

"""ResNet-18 for 224 x 224 pixels and 1000 classes, untrained, with measured statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

PIXELS = 224
CLASSES = 1000
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels and stride of the first of two blocks (arXiv 1512.03385, table 1)."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, and what came in added to what comes out."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = _conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, inputs, H, W] to float32[N, outputs, H / stride, W / stride]."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """The network of arXiv 1512.03385."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 64, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], 64
        for outputs, stride in STAGES:
            blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, 3, 224, 224] to float32[N, 1000]."""
        y = self.blocks(self.pool(torch.relu(self.stem(x))))
        return self.classifier(y.mean([2, 3]))


def resnet18(seed: int = 0) -> ExportedProgram:
    """The exported network, for any batch; batch norms have the statistics of seeded noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = ResNet18()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # statistics of all that went through
        with torch.no_grad():
            module.train()(torch.randn(8, 3, PIXELS, PIXELS))
        example = torch.randn(2, 3, PIXELS, PIXELS)
    return export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))

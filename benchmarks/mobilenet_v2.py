"""MobileNetV2 of width 1.0 for 224 × 224 pixels and 1000 classes, untrained.

The weights are seeded noise, but the batch norms look like those of a trained network: their
statistics are those of noise that went through it, and spreads (gamma) and running variances
differ between channels by large factors, most of all in depthwise layers. Folded weights therefore
differ in range between channels as they do in practice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

PIXELS = 224
CLASSES = 1000
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of the first block (arXiv 1801.04381, table 2)."""


class InvertedResidual(nn.Module):
    """Expand by a 1 × 1, filter each channel by a 3 × 3, project by a 1 × 1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [*_conv(inputs, hidden, 1), nn.ReLU6()]
        layers += [*_conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, *_conv(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, inputs, H, W] to float32[N, outputs, H / stride, W / stride]."""
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The network of arXiv 1801.04381."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
        inputs = 32
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        layers += [*_conv(inputs, 1280, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """float32[N, 3, 224, 224] to float32[N, 1000]."""
        return self.classifier(self.features(x).mean([2, 3]))


def mobilenet_v2(seed: int = 0) -> ExportedProgram:
    """The exported network, for any batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MobileNetV2()
        with torch.no_grad():
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight.copy_(torch.exp(0.5 * torch.randn(norm.num_features)))
                    norm.bias.copy_(0.5 * torch.randn(norm.num_features))
                    norm.momentum = None  # statistics of all that went through
                elif isinstance(norm, nn.Conv2d):
                    # Trained channels differ in size, by which the batch norm then divides.
                    norm.weight.mul_(torch.exp(torch.randn(len(norm.weight), 1, 1, 1)))
            module.train()(torch.randn(8, 3, PIXELS, PIXELS))
        example = torch.randn(2, 3, PIXELS, PIXELS)
    return export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]

"""A small zoo of torch networks for the tests: every shape of trouble, at most 20 pixels.

Each function returns ``(module, example)``: an ``nn.Module`` in eval mode with seeded weights and
batch-norm statistics taken from seeded noise that went through it (so activations have sensible
ranges), and an example input float32[2, C, H, W]. ``ZOO`` lists them all by name; ``export`` gives
the ExportedProgram with a dynamic batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Network = tuple[nn.Module, Tensor]


def resnet_small() -> Network:
    """Two stages of a CIFAR ResNet with option A shortcuts: strided slice and zero channels."""
    return _finish(lambda: _ResNet(_OptionA), (3, 12, 12))


def resnet_projection() -> Network:
    """The same with 1 × 1 convolutions as shortcuts: both inputs of an add are convolutions."""
    return _finish(lambda: _ResNet(_Projection), (3, 12, 12))


def vgg_small() -> Network:
    """Plain stack, max pooling, flatten and two dense layers."""
    return _finish(
        lambda: nn.Sequential(
            *_conv(3, 16, 3),
            *_conv(16, 16, 3),
            nn.MaxPool2d(2),
            *_conv(16, 32, 3),
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(32 * 3 * 3, 24),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(24, 10),
        ),
        (3, 12, 12),
    )


def mobilenet_small() -> Network:
    """Depthwise separable, ReLU6, one inverted residual with a linear bottleneck."""
    return _finish(lambda: _MobileNet(nn.ReLU6), (3, 12, 12))


def mobilenet_rescaled() -> Network:
    """The same with ReLU and hidden channels of sizes 2^-6 to 1, which the next layer undoes."""
    module, example = _finish(lambda: _MobileNet(nn.ReLU), (3, 12, 12))
    with torch.no_grad():
        for block in module.blocks:
            size = torch.exp2(-(torch.arange(len(block.expand[1].weight)) % 7).float())
            block.expand[1].weight.mul_(size)
            block.expand[1].bias.mul_(size)
            block.depthwise[0].weight.div_(size.reshape(-1, 1, 1, 1))
    return module, example


def grouped() -> Network:
    """Grouped convolutions, 2 and 4 groups, with a pointwise one between."""
    return _finish(
        lambda: nn.Sequential(
            *_conv(4, 16, 3, groups=2),
            *_conv(16, 32, 3, stride=2, groups=4),
            *_conv(32, 16, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 6),
        ),
        (4, 10, 10),
    )


def densenet_small() -> Network:
    """Concatenations of everything before, an average-pooling transition."""
    return _finish(lambda: _DenseNet(), (3, 12, 12))


def odd_channels() -> Network:
    """Channel counts that fit no array: 3, 5, 17, 100."""
    return _finish(
        lambda: nn.Sequential(
            *_conv(3, 5, 3),
            *_conv(5, 17, 3, stride=2),
            *_conv(17, 100, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(100, 7),
        ),
        (3, 9, 9),
    )


def strides_dilation_padding() -> Network:
    """Asymmetric padding, dilation 2, strides 2 and 3, a kernel that isn't square."""
    return _finish(lambda: _Geometry(), (3, 20, 17))


def mlp() -> Network:
    """Dense layers alone; no batch norm, so it can't be quantized without data."""
    return _finish(
        lambda: nn.Sequential(
            nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 5)
        ),
        (20,),
    )


def silu_net() -> Network:
    """Smooth activations, which become tables: SiLU, sigmoid, hardswish, tanh, leaky ReLU."""
    return _finish(
        lambda: nn.Sequential(
            *_conv(3, 16, 3, activation=nn.SiLU()),
            *_conv(16, 16, 3, stride=2, activation=nn.Hardswish()),
            *_conv(16, 16, 3, activation=nn.LeakyReLU(0.1)),
            *_conv(16, 8, 1, activation=nn.Sigmoid()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 8),
            nn.Tanh(),
            nn.Linear(8, 4),
        ),
        (3, 10, 10),
    )


def preact() -> Network:
    """Pre-activation residual blocks: a batch norm that no convolution can absorb, a bare add."""
    return _finish(lambda: _PreAct(), (3, 10, 10))


def shufflenet_small() -> Network:
    """Half of the channels untouched, depthwise separable ones beside, then shuffled."""
    return _finish(lambda: _ShuffleNet(), (3, 10, 10))


def unet_small() -> Network:
    """Down and up again in four ways: transposed, nearest, bilinear and out of the channels."""
    return _finish(lambda: _UNet(), (3, 12, 16))


def rows_small() -> Network:
    """One dimension: convolutions, pools and a transposed convolution of (N, C, L)."""
    return _finish(lambda: _Rows(), (5, 24))


def vit_small() -> Network:
    """A vision transformer: class token, positions, fused queries, keys and values, two heads."""
    return _finish(lambda: _Transformer(16, 2), (3, 12, 12))


def excitation_small() -> Network:
    """Squeeze and excitation, gated linear units, and a product of two images."""
    return _finish(lambda: _Excitation(16), (3, 10, 10))


def detector_small() -> Network:
    """Branches of unlike size, joined inside, and behind the last layers: boxes, scores."""
    return _finish(lambda: _Detector(), (3, 12, 12))


_FUNCTIONS = (resnet_small, resnet_projection, vgg_small, mobilenet_small, grouped, densenet_small)
_FUNCTIONS += (odd_channels, strides_dilation_padding, mlp, silu_net, preact, mobilenet_rescaled)
_FUNCTIONS += (shufflenet_small, detector_small, vit_small, excitation_small)
_FUNCTIONS += (unet_small, rows_small)
ZOO: dict[str, Callable[[], Network]] = {function.__name__: function for function in _FUNCTIONS}


def export(network: Network) -> torch.export.ExportedProgram:
    """The ExportedProgram of a network of the zoo, with a dynamic batch."""
    module, example = network
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(batch,))


def _finish(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0) -> Network:
    """Seeded weights; batch-norm gammas, betas and statistics that are all non-trivial."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build()
        norms = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.uniform_(-0.4, 0.4)
            norm.momentum = None  # the plain average over the batches below
        module.train()
        for _ in range(4):
            module(torch.randn(16, *shape))
        return module.eval(), torch.randn(2, *shape)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> list[nn.Module]:
    """Convolution, batch norm, activation (ReLU unless another is given)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), activation or nn.ReLU()]


class _OptionA(nn.Module):
    """Every second pixel, new channels zero: the shortcut of the original CIFAR ResNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class _Projection(nn.Sequential):
    """Strided 1 × 1 convolution with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_conv(inputs, outputs, 1, stride=2)[:2])


class _Block(nn.Module):
    """Basic residual block; halves the size where the channel count changes."""

    def __init__(
        self, inputs: int, outputs: int, shortcut: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        stride = 2 if inputs != outputs else 1
        self.conv1, self.bn1, _ = _conv(inputs, outputs, 3, stride)
        self.conv2, self.bn2, _ = _conv(outputs, outputs, 3)
        self.shortcut = shortcut(inputs, outputs) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, shortcut: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 16, 3))
        self.layer1 = _Block(16, 16, shortcut)
        self.layer2 = _Block(16, 32, shortcut)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class _InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.expand = nn.Sequential(*_conv(inputs, hidden, 1, activation=activation()))
        self.depthwise = nn.Sequential(
            *_conv(hidden, hidden, 3, stride, groups=hidden, activation=activation())
        )
        self.project = nn.Sequential(*_conv(hidden, outputs, 1)[:2])
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class _MobileNet(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 16, 3, stride=2, activation=activation()))
        self.blocks = nn.Sequential(
            _InvertedResidual(16, 16, 1, activation), _InvertedResidual(16, 24, 2, activation)
        )
        self.head = nn.Sequential(*_conv(24, 32, 1, activation=activation()))
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean([2, 3]))


class _DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 8, 3))
        self.first = nn.Sequential(*_conv(8, 8, 3))
        self.second = nn.Sequential(*_conv(16, 8, 3))
        self.transition = nn.Sequential(*_conv(24, 16, 1), nn.AvgPool2d(2))
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x)], 1)
        x = torch.cat([x, self.second(x)], 1)
        return self.linear(F.adaptive_avg_pool2d(self.transition(x), 1).flatten(1))


class _Geometry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.wide = nn.Conv2d(16, 12, (1, 5), stride=(1, 3), padding=(0, 2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in (16, 16, 12))
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(F.pad(x, (0, 1, 2, 0)))))
        x = F.relu(self.norms[1](self.dilated(x)))
        x = F.relu(self.norms[2](self.wide(x)))
        return self.linear(x.mean([2, 3]))


class _PreAct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm1(x))
        x = x + self.conv2(F.relu(self.norm2(self.conv1(y))))
        x = x + y
        return self.linear(x.mean([2, 3]))


class _ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 24, 3))
        self.first, self.second = (
            nn.Sequential(
                *_conv(12, 12, 1),
                *_conv(12, 12, 3, groups=12, activation=nn.Identity()),
                *_conv(12, 12, 1),
            )
            for _ in range(2)
        )
        self.linear = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.first(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        left, right = x.chunk(2, 1)
        x = F.channel_shuffle(torch.cat([left, self.second(right)], 1), 4)
        return self.linear(x.mean([2, 3]))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Sequential(*_conv(3, 8, 3)), nn.Sequential(*_conv(8, 16, 3))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.join, self.wide = nn.Sequential(*_conv(16, 8, 3)), nn.Sequential(*_conv(8, 12, 1))
        self.head = nn.Sequential(*_conv(27, 4, 1, activation=nn.Hardtanh(-2.0, 2.0)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        low = self.down(F.max_pool2d(x, 2))
        x = self.join(torch.cat([x, self.up(low)], 1))
        lower = self.wide(F.pixel_unshuffle(F.max_pool2d(x, 2), 2)[:, :8])
        up = F.interpolate(lower, scale_factor=4, mode="bilinear")
        first, second = up.chunk(2, 1)
        smooth = F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:])
        sharp = F.pixel_shuffle(lower, 2).repeat(1, 1, 2, 2)
        parts = torch.cat([first, second, x[:, :4], smooth, sharp], 1)
        return self.head(parts)


class _Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(5, 16, 5, 2, 2, bias=False), nn.Conv1d(16, 16, 3)
        self.up, self.last = nn.ConvTranspose1d(16, 12, 4, 2), nn.Conv1d(12, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(count) for count in (16, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        x = F.relu(self.norms[1](self.second(x)))
        x = F.relu6(self.norms[2](self.up(F.max_pool1d(x, 2))))
        return self.last(F.avg_pool1d(x, 2))


class _Attention(nn.Module):
    """Queries, keys and values of one dense layer, as timm has it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query * (c // self.heads) ** -0.5) @ key.transpose(-2, -1)
        return self.out((weights.softmax(-1) @ value).transpose(1, 2).reshape(n, t, c))


class _Transformer(nn.Module):
    """Patches of 4 × 4 pixels, two blocks that normalize first, the class token's classifier."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.positions = nn.Parameter(torch.randn(1, 10, channels))
        self.attention = nn.ModuleList(_Attention(channels, heads) for _ in range(2))
        self.dense = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(5))
        self.head = nn.Linear(channels, 5)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.uniform_(0.3, 1.7)
                norm.bias.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.dense[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


class _Excitation(nn.Module):
    """Channels scaled by what their averages say, then one half of them by the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, channels, 3))
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Hardsigmoid()
        )
        self.both = nn.Sequential(*_conv(channels, 2 * channels, 1, activation=nn.Identity()))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.squeeze(x.mean((2, 3), keepdim=True))
        x, gate = self.both(x).chunk(2, 1)
        return self.head((x * gate.sigmoid()).mean((2, 3)))


class _Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 8, 3, stride=2))
        self.narrow, self.wide = (nn.Sequential(*_conv(8, 8, 3)) for _ in range(2))
        self.side = nn.Sequential(*_conv(8, 8, 1))
        self.neck = nn.Sequential(*_conv(24, 16, 1))
        self.box, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)
        with torch.no_grad():
            self.box.weight *= 100

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        narrow, wide = self.narrow(x), 40 * self.wide(x)
        x = self.neck(torch.cat([self.side(narrow), narrow, wide], 1))
        y = torch.cat([self.box(x), torch.sigmoid(self.score(x))], 1)
        return y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, 7)

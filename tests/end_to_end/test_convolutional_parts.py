"""What convolutional networks have besides convolutions in a row, on all devices, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from checked_modules import check
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Causal(nn.Module):
    """A residual block of a temporal network: dilated, the past only, weights by weight norm."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Conv1d(6, 6, 3, padding=4, dilation=2))
        self.second, self.norm = nn.Conv1d(6, 6, 2, padding=1), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        y = F.relu(self.first(x)[..., :-4])
        y = F.relu(self.norm(self.second(y)[..., :-1]))
        return self.last(F.relu(x + y)[:, :, -1])


class OfAnImage(nn.Module):
    """Attention whose queries, keys and values are channels of an image, as in YOLO11."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 8, 1)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.positions = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).view(n, 2, 16, h * w).split([4, 4, 8], 2)
        weights = (q.transpose(-2, -1) @ k * 0.5).softmax(-1)
        found = (v @ weights.transpose(-2, -1)).view(n, c, h, w)
        return self.out(found + self.positions(v.reshape(n, c, h, w)))


class Leaning(nn.Module):
    """Slopes below zero, whose values lean to one side and get zero points."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.slopes, self.last = nn.PReLU(8, 0.3), nn.Conv2d(8, 4, 1)
        nn.init.uniform_(self.slopes.weight, 0.1, 0.4)

    def forward(self, x):
        y = F.leaky_relu(self.first(x), 0.3)
        return self.last(y + self.slopes(self.middle(y)))


class Anchors(nn.Module):
    """A box and a score of each anchor and pixel, as heads of torchvision give them."""

    def __init__(self, anchors):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.anchors = nn.Conv2d(8, 5 * anchors, 1), anchors

    def forward(self, x):
        near = F.relu(self.stem(x))
        levels = near, F.max_pool2d(near, 2)
        return torch.cat([self._by_pixel(self.head(level)) for level in levels], 1)

    def _by_pixel(self, x):
        n, c, h, w = x.shape
        split = x.view(n, self.anchors, c // self.anchors, h, w).permute(0, 3, 4, 1, 2)
        return split.reshape(n, h * w * self.anchors, -1)


PARTS = {
    "causal convolutions": (Causal, (6, 11)),
    "attention of an image": (OfAnImage, (3, 4, 5)),
    "values that lean": (Leaning, (3, 6, 6)),
    "an anchor": (lambda: Anchors(1), (3, 6, 6)),
    "anchors": (lambda: Anchors(3), (3, 6, 6)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "causal convolutions" else [])
        for name in PARTS
    ],
)
def test_parts_are_the_same_everywhere(name):
    torch.manual_seed(1)
    make, shape = PARTS[name]
    check(make(), shape, devices=True, whole=True)

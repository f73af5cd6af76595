"""What transformers do with tokens besides plain attention, on all devices and to the same bits."""

import pytest
import torch
import torch.nn.functional as F
from checked_modules import check
from torch import nn

CHANNELS, HEADS, TOKENS = 24, 3, 12


class Mixer(nn.Module):
    """A way to mix tokens (N, T, C) between two dense layers."""

    def __init__(self, mix, *layers):
        super().__init__()
        self.first, self.last = nn.Linear(8, CHANNELS), nn.Linear(CHANNELS, 10)
        self.mix, self.layers = mix, nn.ModuleList(layers)

    def forward(self, x):
        return self.last(self.mix(self.first(x), *self.layers))


def heads_of(qkv):
    n, t, _ = qkv.shape
    return qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def causal(x, qkv):
    return joined(F.scaled_dot_product_attention(*heads_of(qkv(x)), is_causal=True))


class Positions(nn.Module):
    """A bias by distance and a mask that hides tokens, as buffers."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))
        self.register_buffer("hidden", torch.rand(TOKENS, TOKENS).fill_diagonal_(1.0) < 0.3)


def by_positions(x, qkv, positions):
    q, k, v = heads_of(qkv(x))
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=positions.bias))


def hidden(x, qkv, positions):
    q, k, v = heads_of(qkv(x))
    scores = q @ k.mT * 0.3 + positions.bias
    return joined(scores.masked_fill(positions.hidden, -torch.inf).softmax(-1) @ v)


def shown(x, qkv, positions):
    q, k, v = heads_of(qkv(x))
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=~positions.hidden))


def among_channels(x, qkv):
    n, t, c = x.shape
    q, k, v = qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 4, 1).unbind(0)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    y = (scores * torch.tensor([1.0, 2.0, 3.0])[:, None, None]).softmax(-1) @ v
    return y.permute(0, 3, 1, 2).reshape(n, t, c)


def talking_heads(x, qkv, before, behind):
    q, k, v = heads_of(qkv(x))
    scores = before((q @ k.mT * 0.3).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return joined(behind(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v)


def across_tokens(x, layer):
    return x + layer(x.transpose(1, 2)).transpose(1, 2)


def scaled_across_tokens(x, layer, norm):
    return x + norm.weight * layer(x.transpose(1, 2)).transpose(1, 2)


def root_mean_square(x, norm):
    return norm(x)


def root_written_out(x, norm):
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def of_length_one(x):
    return F.normalize(x, dim=-1)


def _qkv():
    return nn.Linear(CHANNELS, 3 * CHANNELS)


def _scales():
    norm = nn.RMSNorm(CHANNELS)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    return norm


MIXERS = {
    "causal": lambda: Mixer(causal, _qkv()),
    "positions": lambda: Mixer(by_positions, _qkv(), Positions()),
    "hidden": lambda: Mixer(hidden, _qkv(), Positions()),
    "shown": lambda: Mixer(shown, _qkv(), Positions()),
    "channels": lambda: Mixer(among_channels, _qkv()),
    "talking": lambda: Mixer(talking_heads, _qkv(), *(nn.Linear(3, 3) for _ in range(2))),
    "across": lambda: Mixer(across_tokens, nn.Linear(TOKENS, TOKENS)),
    "scaled": lambda: Mixer(scaled_across_tokens, nn.Linear(TOKENS, TOKENS), _scales()),
    "root_mean_square": lambda: Mixer(root_mean_square, nn.RMSNorm(CHANNELS)),
    "root_written_out": lambda: Mixer(root_written_out, nn.RMSNorm(CHANNELS)),
    "of_length_one": lambda: Mixer(of_length_one),
}


@pytest.mark.parametrize("name", MIXERS)
def test_tokens_are_mixed(name):
    torch.manual_seed(1)
    check(MIXERS[name](), (TOKENS, 8), devices=True, whole=True)


class Windows(nn.Module):
    """Attention within windows of an image, which may be shifted: then a mask hides neighbours."""

    def __init__(self, shift):
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, CHANNELS, 1), _qkv()
        self.shift = shift
        regions = torch.zeros(8, 8)
        for part in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            for other in (slice(0, -4), slice(-4, -2), slice(-2, None)):
                regions[part, other] = regions.max() + 1
        rows = regions.reshape(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)
        apart = rows[:, None, :] != rows[:, :, None]
        self.register_buffer("mask", torch.zeros(apart.shape).masked_fill(apart, -100.0))

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        if self.shift:
            x = torch.roll(x, (-2, -2), (1, 2))
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * 0.3
        if self.shift:
            scores = scores.view(-1, 4, HEADS, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, HEADS, 16, 16)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c)
        y = y.view(-1, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)
        if self.shift:
            y = torch.roll(y, (2, 2), (1, 2))
        return y.permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Attention among pixels at the same place of their patches, as in MobileViT."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.last = nn.Conv2d(3, 24, 1), _qkv(), nn.Conv2d(24, 10, 1)

    def forward(self, x):
        y = self.stem(x)
        n, c, h, w = y.shape
        y = y.reshape(n * c * h // 2, 2, w // 2, 2).transpose(1, 2)
        y = y.reshape(n, c, h * w // 4, 4).transpose(1, 3).reshape(n * 4, h * w // 4, c)
        q, k, v = heads_of(self.qkv(y))
        y = joined((q @ k.mT * 0.3).softmax(-1) @ v)
        y = y.contiguous().view(n, 4, h * w // 4, c).transpose(1, 3)
        y = y.reshape(n * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        return self.last(y)


@pytest.mark.parametrize("shift", [False, True], ids=["windows", "shifted"])
def test_windows_of_an_image(shift):
    torch.manual_seed(1)
    check(Windows(shift), (3, 8, 8), devices=True, whole=True)


def test_places_within_patches():
    torch.manual_seed(1)
    check(Patches(), (3, 8, 12), devices=True, whole=True)


class Queries(nn.Module):
    """A decoder whose queries are parameters, the batch behind the tokens, as in DETR."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, CHANNELS), nn.Linear(CHANNELS, 4)
        self.positions = nn.Parameter(torch.rand(TOKENS, 1, CHANNELS))
        self.queries = nn.Parameter(torch.rand(5, CHANNELS))
        self.own, self.other = (nn.MultiheadAttention(CHANNELS, HEADS) for _ in range(2))
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, x):
        memory = self.first(x).transpose(0, 1) + self.positions
        queries = self.queries.unsqueeze(1).repeat(1, memory.shape[1], 1)
        queries = self.norm(queries + self.own(queries, queries, queries, need_weights=False)[0])
        found = queries + self.other(queries, memory, memory, need_weights=False)[0]
        return self.last(self.norm(found).transpose(0, 1))


def test_queries_that_are_parameters():
    torch.manual_seed(1)
    check(Queries(), (TOKENS, 8), devices=True, whole=True)

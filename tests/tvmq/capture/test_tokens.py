"""Attention as networks write it becomes products of tokens, and no move of theirs is left."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph
from tvmq.capture.capture import capture_program
from tvmq.capture.moved_batch import Moved, as_moved, regrouped, settled
from tvmq.capture.program_nodes import PRIME

aten, own = torch.ops.aten, torch.ops.tvmq
CHANNELS, HEADS, TOKENS = 24, 3, 10


class Attention(nn.Module):
    """One dense layer for queries, keys and values; a way to part them."""

    def __init__(self, part):
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.part = part

    def forward(self, x):
        return self.out(self.part(self.qkv(x)))


def joined(x):
    n, h, t, d = x.shape
    return x.transpose(1, 2).reshape(n, t, h * d)


def timm(qkv):
    n, t, _ = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return joined((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v)


def fused(qkv):
    n, t, _ = qkv.shape
    qkv = qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    return joined(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]))


def chunks(qkv):
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
    return joined((q @ k.mT / 3.0).softmax(dim=3) @ v)


def interleaved(qkv):
    """Channels by head first, as LeViT and ViT-VQGAN have them."""
    n, t, _ = qkv.shape
    q, k, v = qkv.view(n, t, HEADS, -1).split(CHANNELS // HEADS, dim=3)
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return joined((q @ k.transpose(2, 3) * 0.25).softmax(-1) @ v)


def batched(qkv):
    """Heads joined with the batch, for bmm."""
    n, t, _ = qkv.shape
    d = CHANNELS // HEADS
    q, k, v = (
        x.reshape(n, t, HEADS, d).permute(0, 2, 1, 3).reshape(n * HEADS, t, d)
        for x in qkv.chunk(3, -1)
    )
    y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return y.view(n, HEADS, t, d).transpose(1, 2).reshape(n, t, CHANNELS)


class OfAnImage(nn.Module):
    """YOLO11's: queries, keys and values are channels of an image, head by head."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 2 * CHANNELS, 1)
        self.positions = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.out = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        depth = c // HEADS
        qkv = self.qkv(x).view(n, HEADS, 2 * depth, h * w)
        q, k, v = qkv.split([depth // 2, depth // 2, depth], 2)
        weights = (q.transpose(-2, -1) @ k * (depth // 2) ** -0.5).softmax(-1)
        found = (v @ weights.transpose(-2, -1)).view(n, c, h, w)
        return self.out(found + self.positions(v.reshape(n, c, h, w)))


class Torchs(nn.Module):
    """torch's own, with the batch in front or behind the tokens."""

    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(x, x, x, need_weights=False)[0]
        return y if self.batch_first else y.transpose(0, 1)


WAYS = {
    way.__name__: lambda way=way: Attention(way)
    for way in (timm, fused, chunks, interleaved, batched)
} | {"torch": lambda: Torchs(True), "torch, tokens first": lambda: Torchs(False)}


def operators_of(module, example, batch=True):
    """Operators of the canonical graph; capture proves that it is the same function."""
    dynamic = ({0: torch.export.Dim("n")},) if batch else None
    with torch.no_grad():
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=dynamic)
    graph = capture_program(program).graph_module.graph
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_values_with_their_channels_in_front_are_the_right_operand():
    torch.manual_seed(0)
    found = operators_of(OfAnImage(), torch.randn(2, CHANNELS, 2, 5))
    products = [target for target in found if "matmul" in str(target)]
    assert products == [own.matmul_rows.default, own.matmul_columns.default]
    assert found.count(aten.conv2d.default) == 5  # whose values are made once
    assert aten.slice.Tensor not in found


@pytest.mark.parametrize("batch", ["dynamic", 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_the_ways_to_part_heads(way, batch):
    torch.manual_seed(0)
    example = torch.randn(2 if batch == "dynamic" else batch, TOKENS, CHANNELS)
    found = operators_of(WAYS[way](), example, batch == "dynamic")
    linear, rows = aten.linear.default, own.matmul_rows.default
    columns, softmax = own.matmul_columns.default, own.softmax.default
    assert sorted(map(str, found)) == sorted(map(str, [linear] * 4 + [rows, softmax, columns]))


class Windows(nn.Module):
    """Attention within windows of an image, with a constant for each place of a window."""

    def __init__(self, size):
        super().__init__()
        self.size, self.attention = size, nn.Linear(CHANNELS, 3 * CHANNELS)
        self.bias = nn.Parameter(torch.randn(HEADS, size * size, size * size))

    def scores(self, x):
        return x

    def forward(self, x):
        n, h, w, c = x.shape
        s = self.size
        x = x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        b = x.shape[0]
        qkv = self.attention(x).reshape(b, s * s, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = self.scores(q @ k.transpose(-2, -1) + self.bias).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, s * s, c)
        y = y.view(n, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5)
        return y.reshape(n, h, w, c)


class Shifted(Windows):
    """The same with a mask of its own for each window, as windows that are shifted have it."""

    def scores(self, x):
        n = x.shape[0] // 6
        x = x.view(n, 6, HEADS, *x.shape[2:]) + torch.arange(6.0).reshape(1, 6, 1, 1, 1)
        return x.view(-1, HEADS, *x.shape[3:])


@pytest.mark.parametrize("windows", [Windows, Shifted])
def test_attention_within_windows_is_by_rows(windows):
    torch.manual_seed(0)
    found = operators_of(windows(2), torch.randn(2, 4, 6, CHANNELS))
    matrices = [t for t in found if t in (own.matmul_rows.default, own.matmul_columns.default)]
    assert matrices == [own.matmul_rows.default, own.matmul_columns.default]
    assert found.count(own.constant.default) == 1 + (windows is Shifted)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, (8,)),
        lambda x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
        lambda x: F.gelu(x.permute(1, 0, 2, 3)).permute(1, 0, 2, 3),
        lambda x: F.relu(x.permute(1, 0, 2, 3)).permute(1, 0, 2, 3),
        lambda x: 1 - x.permute(1, 0, 2, 3).clamp(-0.5, 0.5).neg().permute(1, 0, 2, 3),
        lambda x: F.layer_norm(x.flatten(0, 1), (8,)).unflatten(0, (-1, 3)),
        lambda x: (x.transpose(0, 1) * 2.0 + 1.0).transpose(0, 1),
        lambda x: x.permute(2, 0, 1, 3)[1:5].permute(1, 2, 0, 3),
        lambda x: x.softmax(1),
    ],
    ids=["norm", "softmax", "gelu", "relu", "clamp", "folded", "scaled", "sliced", "channels"],
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_batch_that_goes_and_comes_back_changes_nothing(function, dynamic):
    class Applied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return function(self.conv(x))

    operators_of(Applied(), torch.randn(2, 3, 6, 8), dynamic)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize(
    ("shape", "axes"), [((10, CHANNELS), (1,)), ((4, 6, CHANNELS), (1, 2)), ((CHANNELS, 9), (2,))]
)
def test_an_average_of_tokens_is_a_pooling(shape, axes, keepdim):
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(shape[-1], shape[-1])

        def forward(self, x):
            return self.linear(x).mean(axes, keepdim=keepdim)

    assert aten.avg_pool2d.default in operators_of(Averaged(), torch.randn(2, *shape))


class Woven(nn.Module):
    """A layer each for queries, keys and values, whose channels are head by head woven together."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, HEADS)).permute(0, 3, 1, 2) for f in self.qkv)
        return joined((q @ k.mT).softmax(-1) @ v)


def test_channels_in_another_order_are_rows_of_the_layer_in_another_order():
    found = operators_of(Woven(), torch.randn(2, TOKENS, CHANNELS))
    products = [own.matmul_rows.default, own.softmax.default, own.matmul_columns.default]
    assert sorted(map(str, found)) == sorted(map(str, [aten.linear.default] * 3 + products))


class OneHead(nn.Module):
    """Windows that are joined with the batch, and no heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        n, windows, t, c = x.shape
        x = x.reshape(n * windows, t, c)
        return (self.q(x) @ self.k(x).mT).view(n, windows, t, t)


def test_one_axis_is_windows_where_the_tokens_say_so():
    dynamic = ({0: torch.export.Dim("n")},)
    example = torch.randn(2, 5, TOKENS, CHANNELS)
    with torch.no_grad():
        program = torch.export.export(OneHead().eval(), (example,), dynamic_shapes=dynamic)
    nodes = capture_program(program).graph_module.graph.nodes
    (product,) = (node for node in nodes if node.target is own.matmul_rows.default)
    assert product.args[2:] == (1, 1.0, 5)


class HalvesOfALayer(nn.Module):
    """The same, where queries and keys are halves of a layer's channels, and a function of them."""

    def __init__(self):
        super().__init__()
        self.qk = nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x):
        n, windows, t, c = x.shape
        q, k = map(F.relu, self.qk(x.reshape(n * windows, t, c)).chunk(2, -1))
        return (q @ k.mT).view(n, windows, t, t)


def test_channels_of_windows_without_heads_are_made_by_a_layer_each():
    """Taken for heads, they would be of no tokens, and cut out of what the layer makes."""
    found = operators_of(HalvesOfALayer(), torch.randn(2, 5, TOKENS, CHANNELS))
    assert aten.slice.Tensor not in found
    assert own.matmul_rows.default in found


def test_every_second_channel_is_a_slice_however_it_is_written():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            x = self.conv(x)
            n, c, h, w = x.shape
            x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
            return torch.cat([x[1], x[0]], 1)

    found = operators_of(Halves(), torch.randn(2, 3, 4, 6))
    assert found == [aten.conv2d.default, *[aten.slice.Tensor] * 2, aten.cat.default]


def moved(sizes, axes, batch=PRIME):
    graph = CanonicalGraph(2, batch)
    return graph, Moved(graph.input("x", (2, *sizes)), axes, batch)


@pytest.mark.parametrize(
    ("sizes", "axes", "shape", "groups"),
    [
        ((6, 8), ((1,), (0,), (2,)), [6, PRIME * 2, 4], [[6], [PRIME, 2], [4]]),
        ((6, 8), ((0, 1), (2,)), [PRIME, 6, 8], [[PRIME], [6], [8]]),
        ((6, 8), ((0, 1), (2,)), [PRIME * 3, 2, 8], [[PRIME, 3], [2], [8]]),
        ((6, 8), ((1,), (0,), (2,)), [6 * PRIME, 8], [[6, PRIME], [8]]),
    ],
)
def test_axes_are_cut_and_joined_around_the_batch(sizes, axes, shape, groups):
    graph, value = moved(sizes, axes)
    new = regrouped(graph, value, shape)
    assert [[new.sizes[axis] for axis in group] for group in new.axes] == groups


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        *((PRIME, shape) for shape in ([4, PRIME * 12], [6, 2, PRIME * 4], [5, 5])),
        (4, [6, 2, 2, 8]),
        (4, [6, 2, 16]),
    ],
)
def test_a_batch_is_neither_cut_nor_lost(batch, shape):
    graph, value = moved((6, 8), ((1,), (0,), (2,)), batch)
    with pytest.raises(Refusal, match="splits the batch, or joins"):
        regrouped(graph, value, shape)


def test_a_batch_in_front_is_a_plain_value_again():
    graph, value = moved((6, 8), ((0,), (2,), (1,)))
    node = settled(graph, value)
    assert operator.attrgetter("target")(node) is aten.permute.default
    assert settled(graph, as_moved(node, PRIME)) is node

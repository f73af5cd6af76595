"""What can't be quantized at a network's ends stays in float; the integers end behind layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from targets.errors import UnsupportedError
from tvmq.capture.capture import capture_program

FREE = ({0: torch.export.Dim("n")},)
BATCHES = {"dynamic": (2, FREE), "of two": (2, None), "of one": (1, None)}


class Behind(nn.Module):
    """A small network with something behind it."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 5, padding=2), nn.BatchNorm2d(32)
        self.head, self.function = nn.Conv2d(32, 12, 1), function

    def forward(self, x):
        return self.function(self.head(F.relu(self.norm(self.conv(x)))))


class Before(nn.Module):
    """The same with something in front of it."""

    def __init__(self, function, channels=3):
        super().__init__()
        self.conv, self.function = nn.Conv2d(channels, 8, 3), function

    def forward(self, x):
        return self.conv(self.function(x))


def captured(module, example, shapes=FREE):
    return capture_program(
        torch.export.export(module.eval(), (example,), dynamic_shapes=shapes, strict=False)
    )


def whole(model, x):
    ends = model.ends
    made = ends.head.graph_module(x)
    count = len(model.inputs)
    return ends.tail.graph_module(*model.graph_module(*made[:count]), *made[count:])


def kinds(end):
    return [operator.kind for operator in end.operators]


def quantized(model):
    nodes = model.graph_module.graph.nodes
    return [str(n.target).split(".")[1] for n in nodes if n.op == "call_function"]


class Decoding(nn.Module):
    """Boxes as a detector decodes them: distances as expectations, a grid, strides."""

    def __init__(self):
        super().__init__()
        self.expectation = nn.Conv2d(2, 1, 1, bias=False)
        self.expectation.weight.data[:] = torch.arange(2.0).reshape(1, 2, 1, 1)

    def forward(self, x):
        n, _, height, width = x.shape
        boxes, scores = x.reshape(n, 12, -1).split((8, 4), 1)
        reach = boxes.reshape(n, 4, 2, -1).transpose(1, 2).softmax(1)
        reach = self.expectation(reach).reshape(n, 4, -1)
        row, column = torch.meshgrid(
            torch.arange(height, dtype=x.dtype) + 0.5,
            torch.arange(width).type_as(x) + 0.5,
            indexing="ij",
        )
        middle = torch.stack([column, row]).reshape(1, 2, -1)
        stride = x.new_full((height * width,), 4.0)
        left, right = reach.chunk(2, 1)
        low, high = middle - left, middle + right
        return torch.cat([(low + high) / 2 * stride, (high - low) * stride, scores.sigmoid()], 1)


ENDS = {
    "softmax": lambda x: x.mean((2, 3)).softmax(1),
    "log softmax": lambda x: F.log_softmax(x.mean((2, 3)), 1),
    "argmax of pixels": lambda x: x.argmax(1),
    "five best": lambda x: x.mean((2, 3)).topk(5),
    "sorted": lambda x: x.flatten(1).sort(1, descending=True)[0],
    "decoding": Decoding(),
    "mask": lambda x: torch.where(x > 0.1, x, torch.zeros_like(x)),
    "named": lambda x: {"logits": x.flatten(1), "class": x.flatten(1).argmax(1)},
    "beside a constant": lambda x: torch.cat([x, torch.ones(x.shape[0], 1, 6, 6)], 1).cumsum(1),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ENDS)
def test_an_end_stays_in_float_for_any_batch(name, batch):
    count, shapes = BATCHES[batch]
    module = Behind(ENDS[name])
    model = captured(module, torch.randn(count, 3, 6, 6), shapes)
    assert model.ends.tail.operators
    assert model.ends.head.operators == ()
    assert not {"softmax", "cat", "sigmoid"} & set(quantized(model))
    x = torch.randn(5, 3, 6, 6)
    want = module(x)
    if isinstance(want, dict):
        assert [spec.name for spec in model.network_outputs] == list(want)
        want = tuple(want.values())
    want = want if isinstance(want, tuple) else (want,)
    for spec, expected, found in zip(model.network_outputs, want, whole(model, x), strict=True):
        assert spec.shape[1:] == expected.shape[1:]
        assert spec.dtype == str(found.dtype)[6:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_grids_and_strides_are_computed_ahead():
    model = captured(Behind(Decoding()), torch.randn(2, 3, 6, 6))
    found = kinds(model.ends.tail)
    assert found.count("conv2d") == 1
    assert not {"meshgrid", "arange", "stack", "type_as", "new_full"} & set(found)
    assert quantized(model) == ["conv2d", "relu", "conv2d"]
    reasons = {operator.kind: operator.reason for operator in model.ends.tail.operators}
    assert "ends the network" in reasons["softmax"]
    assert all(operator.source for operator in model.ends.tail.operators)


HEADS = {
    "by its own deviation": lambda x: (
        (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True)
    ),
    "bytes": lambda x: x.float() / 255,
    "bytes, channels last": lambda x: x.permute(0, 3, 1, 2).float() / 255,
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", HEADS)
def test_what_is_in_front_stays_in_float(name, batch):
    count, shapes = BATCHES[batch]
    size = (8, 8, 3) if "last" in name else (3, 8, 8)
    x = (
        torch.randint(0, 256, (5, *size)).to(torch.uint8)
        if "bytes" in name
        else torch.rand(5, *size)
    )
    module = Before(HEADS[name])
    model = captured(module, x[:count], shapes)
    assert model.ends.head.operators
    assert model.ends.tail.operators == ()
    assert model.network_inputs[0].dtype == str(x.dtype)[6:]
    assert model.network_inputs[0].shape[1:] == size
    torch.testing.assert_close(whole(model, x)[0], module(x), rtol=1e-4, atol=1e-5)


def test_a_head_goes_no_further_than_to_floats():
    model = captured(Before(HEADS["bytes"]), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert kinds(model.ends.head) in (["to"], ["_to_copy"])


def test_words_are_looked_up_in_float():
    module = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 8))
    tokens = torch.randint(0, 9, (4, 5))
    model = captured(module, tokens[:2])
    assert kinds(model.ends.head) == ["embedding"]
    assert model.network_inputs[0].dtype == "int64"
    torch.testing.assert_close(whole(model, tokens)[0], module(tokens))


class Residual(nn.Module):
    """The tail reads the network's input, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.maximum(x.cumsum(2), self.conv(x))


def test_what_a_tail_reads_of_the_input_passes_by_the_integers():
    module = Residual()
    model = captured(module, torch.randn(2, 3, 6, 6))
    assert kinds(model.ends.tail) == ["cumsum", "maximum"]
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(whole(model, x)[0], module(x))


class Middle(nn.Module):
    def __init__(self, behind):
        super().__init__()
        self.first, self.behind = nn.Conv2d(3, 16, 3), nn.Conv2d(16, behind, 1)

    def forward(self, x):
        return self.behind(self.first(x).cumsum(1))


def test_hardly_any_work_comes_along_and_more_is_refused():
    model = captured(nn.Sequential(nn.Conv2d(3, 64, 5), Taken()), torch.randn(2, 3, 20, 20))
    assert kinds(model.ends.tail) == ["cumsum", "mean", "linear"]
    words = r"1 operator can't be quantized: aten\.cumsum.* 37% of the network's.* less than 1%"
    with pytest.raises(UnsupportedError, match=words):
        captured(Middle(16), torch.randn(2, 3, 8, 8))


class Taken(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 2)

    def forward(self, x):
        return self.last(x.cumsum(1).mean((2, 3)))


def test_attention_is_no_end_of_a_network():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(64, 48)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q[:, :1] @ k.transpose(1, 2)).softmax(-1) @ v  # hardly any work

    assert captured(Attention(), torch.randn(2, 5, 64)).ends is None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x: x.mean(0, keepdim=True).expand(x.shape[0], -1, -1, -1),
            "depends on the other images",
        ),
        (lambda x: x.flatten(1).cumsum(0), "depends on the other images"),
        (lambda x: x + torch.rand_like(x), "random"),
        (lambda x: x.flatten(1).nonzero(), "positions"),
    ],
)
def test_what_no_end_can_be_is_refused(function, words):
    with pytest.raises(UnsupportedError, match=words):
        captured(Behind(function), torch.randn(2, 3, 6, 6))


def test_boxes_of_more_axes_than_an_image_are_computed_in_float():
    def decoded(x):
        boxes = x.reshape(x.shape[0], 2, 6, 8, 8).permute(0, 1, 3, 4, 2)
        return boxes[..., :2].sigmoid() * 2 + 0.5, boxes[..., 2:].sigmoid()

    x, module = torch.randn(2, 3, 8, 8), Behind(decoded)
    model = captured(module, x)
    assert quantized(model)[-1] == "conv2d"
    torch.testing.assert_close(whole(model, x), module(x))


def test_what_an_index_comes_with_lets_the_sums_through():
    module = Behind(lambda x: x.flatten(2).sigmoid().max(1)[0].topk(4, 1)[0])
    model = captured(module, torch.randn(2, 3, 8, 8))
    assert quantized(model)[-1] == "conv2d"
    assert kinds(model.ends.tail)[-1] == "topk"


def test_integers_beside_a_value_go_into_the_tail():
    class Filled(Behind):
        def forward(self, x, mask):
            return super().forward(x).masked_fill(mask[:, None] == 0, -50.0)

    x, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    module, free = Filled(lambda x: x).eval(), {0: torch.export.Dim("n")}
    program = torch.export.export(module, (x, mask), dynamic_shapes=(free, free))
    model = capture_program(program)
    made = model.ends.head.graph_module(x, mask)
    (found,) = model.ends.tail.graph_module(*model.graph_module(*made[:1]), *made[1:])
    torch.testing.assert_close(found, module(x, mask))


def test_bytes_are_divided_as_floats():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    module = Before(lambda x: x / 255)
    model = captured(module, x)
    assert "torch.float32" in model.ends.head.graph_module.code
    torch.testing.assert_close(whole(model, x)[0], module(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(1, 0, 2, 3).softmax(0),
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, 12).softmax(-1),
        lambda x: x.softmax(1).mean(),
    ],
)
def test_outputs_have_the_batch_in_front(function):
    with pytest.raises(UnsupportedError, match="batch elsewhere than on axis 0 alone"):
        captured(Behind(function), torch.randn(2, 3, 8, 8))

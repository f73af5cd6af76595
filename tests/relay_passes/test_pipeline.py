"""The pipeline on whole networks: torch, the reference and TVM give the same integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from annotated_networks import (
    Average,
    Layer,
    Residual,
    export,
    graph_of,
    image,
    quantize,
    run_torch,
    run_tvm,
)
from placed_modules import run_placed
from torch import nn
from tvm import relax

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import PIPELINE, Step, lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.errors import ArithmeticRangeError, TvmqError, UnsupportedError
from targets.npu.machine.spec import load_spec
from tvmq.run.reference import run_reference


@pytest.mark.parametrize(
    "free", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["pot", "free"]
)
def test_each_pass_keeps_the_numbers_and_its_input(free):
    program = export(Residual(free), (3, 12, 9))
    x = image((3, 3, 12, 9))
    want = run_torch(program, x)[0]
    mod = import_torch(program)
    np.testing.assert_array_equal(run_tvm(mod, x)[0], want)
    for step in PIPELINE:
        untouched = mod.script()
        result = step.make()(mod)
        assert mod.script() == untouched, f"{step.name} edited the module it was given"
        mod = result
        if mod.script() != untouched:
            np.testing.assert_array_equal(run_tvm(mod, x)[0], want, err_msg=step.name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("free", [False, True], ids=["pot", "free"])
def test_all_tensors_equal_the_fake_quantized_forward(free, seed):
    """Conformance 10: every quantized tensor of the network, not only its output."""
    program = export(Residual(free, seed), (3, 12, 9))
    x = image((4, 3, 12, 9), seed)
    values = {}
    run_reference(lower_to_integer(import_torch(program)), {"x": x}, values.setdefault)
    seen = _fake_quantized(program, x)
    compared = 0
    for name, (real, step, zero_point) in seen.items():
        codes = values["x_codes" if name == "x" else name].astype(np.int64)
        codes = codes.transpose(0, 3, 1, 2) if codes.ndim == 4 else codes
        want = np.rint(real / step).astype(np.int64) + zero_point
        np.testing.assert_array_equal(codes, want.reshape(codes.shape), err_msg=name)
        compared += 1
    assert compared == 4
    assert len(np.unique(values["relu_1"])) > 50, "a saturated network would prove nothing"


def _fake_quantized(program, x):
    """Name of the quantized node -> (its values, step, zero point), weights left out."""
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if node.target is torch.ops.tvmq.fake_quantize.default and node.args[5] == -1:
                source = node.args[0]
                if source.op != "get_attr":
                    step = self.env[node.args[1]].item()
                    seen[source.name] = (result.numpy(), step, node.args[2])
            return result

    Watch(program).run(torch.tensor(x, dtype=torch.float64))
    return seen


@pytest.mark.parametrize("free", [False, True], ids=["pot", "free"])
def test_tvm_equals_the_reference(free):
    mod = lower_to_integer(import_torch(export(Residual(free), (3, 12, 9))))
    x = image((5, 3, 12, 9), 7, scale=40.0)  # beyond the range: saturates
    np.testing.assert_array_equal(run_tvm(mod, x)[0], run_reference(mod, {"x": x})[0])


class Moved(nn.Module):
    """A residual that is sliced and padded, finer than the sums (F > 0), on either side."""

    def __init__(self, first):
        super().__init__()
        rng = np.random.default_rng(3)
        self.first = first
        self.s = nn.Buffer(torch.tensor([2.0**-4], dtype=torch.float64))
        self.coarse = nn.Buffer(torch.tensor([2.0**2], dtype=torch.float64))
        self.conv = Layer(rng, (8, 4, 3, 3), self.s, self.s, False)
        self.conv.step *= 2.0**9  # sums coarser than the residual
        self.conv.weight *= 2.0**9
        self.conv.bias *= 2.0**9

    def forward(self, x):
        x = quantize(x, self.s, 100)
        y = F.conv2d(x, self.conv.quantized(), self.conv.bias, stride=2, padding=1)
        moved = torch.ops.aten.constant_pad_nd(x[:, :, ::2, ::2], [0, 0, 0, 0, 2, 2], 0.0)
        return quantize(moved + y if self.first else y + moved, self.coarse, 128)


@pytest.mark.parametrize("first", [True, False], ids=["residual + conv", "conv + residual"])
def test_moved_residual_with_fraction_bits(first):
    program = export(Moved(first), (4, 8, 8))
    mod = lower_to_integer(import_torch(program))
    x = image((4, 4, 8, 8), 5, scale=4.0)
    want = run_torch(program, x)
    np.testing.assert_array_equal(run_reference(mod, {"x": x})[0], want[0])
    np.testing.assert_array_equal(run_tvm(mod, x)[0], want[0])
    layers = {layer.kind: layer for layer in read_layers(mod).layers}
    assert layers["conv2d"].requantize.fraction > 0
    assert layers["conv2d"].requantize.residual.zero_point == 100
    move = layers["move"]
    (piece,) = move.pieces
    _, width, channels = piece.value.shape
    assert (move.fill, piece.at) == (100, (0, 0, 2))
    assert piece.strides == (2 * width * channels, 2 * channels, 1)


def relu6(x):
    return torch.clamp(x, 0.0, 6.0)


class Elementwise(nn.Module):
    """Addition, concat, unary function, flatten of an image, a 3 x 3 mean with a multiplier."""

    def __init__(self, function):
        super().__init__()
        rng = np.random.default_rng(4)
        self.function = function
        self.s = nn.Buffer(torch.tensor([2.0**-5], dtype=torch.float64))
        self.t = nn.Buffer(torch.tensor([2.0**-4], dtype=torch.float64))
        self.mean = Average(3, (3, 3), self.s, self.s)
        self.head = Layer(rng, (5, 4 * 3 * 3), self.s, self.s, False, per_channel=False)

    def forward(self, x):
        x = quantize(x, self.s, 3, -128, 127, "int8")
        a = quantize(self.function(x), self.t, 7, -128, 127, "int8")
        b = quantize(x + a, self.s, -4, -128, 127, "int8")
        m = quantize(self.mean(b), self.s, -4, -128, 127, "int8")
        c = torch.cat([m, m], 1)[:, 1:5]
        return F.linear(c.reshape([-1, 36]), self.head.quantized(), self.head.bias)


@pytest.mark.parametrize(
    "function",
    [
        F.sigmoid,
        F.silu,
        F.hardswish,
        F.hardsigmoid,
        torch.tanh,
        F.gelu,
        F.leaky_relu,
        F.elu,
        relu6,
    ],
    ids=lambda f: f.__name__,
)
def test_functions_adds_concatenation_and_flatten(function):
    program = export(Elementwise(function), (3, 9, 9))
    mod = lower_to_integer(import_torch(program))
    x = image((3, 3, 9, 9), 6)
    want = run_torch(program, x)[0]
    np.testing.assert_array_equal(run_reference(mod, {"x": x})[0], want)
    kinds = [layer.kind for layer in read_layers(mod).layers]
    assert "opaque" not in kinds, kinds
    assert {"lut", "add", "avg_pool2d", "move", "dense"} <= set(kinds)


class Rearranged(nn.Module):
    """A rearrangement of the network's input, and one of what a layer makes."""

    def __init__(self, function):
        super().__init__()
        rng = np.random.default_rng(3)
        self.function = function
        self.s = nn.Buffer(torch.tensor([2.0**-5], dtype=torch.float64))
        self.one = Layer(rng, (12, 12, 1, 1), self.s, self.s, False)
        self.two = Layer(rng, (5, 12, 1, 1), self.s, self.s, False)

    def forward(self, x):
        x = self.function(quantize(x, self.s, 7, -8, 7, "int8"))
        y = F.conv2d(x, self.one.quantized(), self.one.bias)
        y = self.function(quantize(y, self.s, 0, -128, 127, "int8"))
        return F.conv2d(y, self.two.quantized(), self.two.bias)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (
            lambda x: x.reshape([-1, 3, 4, 6, 5]).permute(0, 2, 1, 3, 4).reshape([-1, 12, 6, 5]),
            (6, 5),
        ),
        (lambda x: x.reshape([-1, 3, 4, 30]).permute(0, 2, 1, 3).reshape([-1, 12, 6, 5]), (6, 5)),
        (
            lambda x: x.reshape([-1, 2, 6, 1, 1]).permute(0, 2, 1, 3, 4).reshape([-1, 12, 1, 1]),
            (1, 1),
        ),
        (
            lambda x: x.reshape([-1, 2, 2, 3, 30]).permute(0, 3, 2, 1, 4).reshape([-1, 12, 6, 5]),
            (6, 5),
        ),
    ],
    ids=["five-axes", "four-axes", "one-pixel", "three-axes-of-channels"],
)
def test_channels_in_another_order_are_a_product_with_a_permutation(function, shape):
    program = export(Rearranged(function), (12, *shape))
    mod = lower_to_integer(import_torch(program))
    network = read_layers(mod)
    assert [layer.kind for layer in network.layers] == ["shuffle", "conv2d"] * 2
    assert [value.shape for value in network.inputs] == [(*shape, 12)]
    x = image((3, 12, *shape), 2)
    want = run_torch(program, x)[0]
    np.testing.assert_array_equal(run_reference(mod, {"x": x})[0], want)
    placed = place(mod, network, load_spec("e256"))
    assert {placement.device for placement in placed.placements} == {"npu"}
    (got,) = run_placed(placed, load_spec("e256"), x)
    np.testing.assert_array_equal(got, want)


def test_transpositions_that_move_nothing_are_reshapes():
    around = Rearranged(
        lambda x: x.reshape([-1, 1, 12, 6, 5]).permute(0, 2, 1, 3, 4).reshape([-1, 12, 6, 5])
    )
    program = export(around, (12, 6, 5))
    layers = read_layers(lower_to_integer(import_torch(program))).layers
    assert "opaque" not in [layer.kind for layer in layers]
    assert "shuffle" not in [layer.kind for layer in layers]


@pytest.mark.parametrize("axes", [(0, 1, 3, 2), (0, 2, 1, 3)])
def test_other_transpositions_are_moves(axes):
    """Height and width exchanged leave channels in place, but not pixels."""
    program = export(Rearranged(lambda x: x.permute(axes)), (12, 12, 12))
    layers = read_layers(lower_to_integer(import_torch(program))).layers
    # The input's codes are made in the order that is needed.
    assert [layer.kind for layer in layers] == ["conv2d", "move", "conv2d"]


def test_dumps_every_stage(tmp_path):
    seconds = {}
    mod = import_torch(export(Residual(), (3, 12, 9)))
    lower_to_integer(mod, dump=tmp_path, seconds=seconds)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names[:2] == ["00-Import.py", "01-FoldActivations.py"]
    assert len(names) == 1 + len(PIPELINE) == 1 + len(seconds)


def test_ratio_that_is_no_fraction_names_the_layer():
    module = Residual()
    module.s_b *= 1.1
    with pytest.raises(ArithmeticRangeError, match=r"conv2d_1: channel 0: the ratio of steps"):
        lower_to_integer(import_torch(export(module, (3, 12, 9))))


def test_bias_off_the_grid_names_the_channel():
    module = Residual()
    module.one.bias[3] += module.s_x[0] * module.one.step[3] / 3
    with pytest.raises(ArithmeticRangeError, match="conv2d, channel 3: the bias"):
        lower_to_integer(import_torch(export(module, (3, 12, 9))))


class Unquantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = nn.Buffer(torch.tensor([0.5], dtype=torch.float64))

    def forward(self, x):
        return quantize(torch.softmax(quantize(x, self.s), 1), self.s)


def test_operator_without_converter_is_named():
    with pytest.raises(UnsupportedError, match=r"no converter for aten\.softmax.*'softmax'"):
        import_torch(export(Unquantized(), (4,)))


class Float(Unquantized):
    """The function is added before it is quantized, to another tensor."""

    def forward(self, x):
        x = quantize(x, self.s)
        return quantize(torch.sigmoid(x) + F.max_pool2d(x, 3, 1, 1), self.s)


def test_value_that_stays_float_is_named():
    with pytest.raises(UnsupportedError, match=r"still computed in floating point"):
        lower_to_integer(import_torch(export(Float(), (2, 4, 4))))


def test_float32_graph_is_refused():
    program = graph_of(Residual().float(), torch.zeros(2, 3, 12, 9))
    with pytest.raises(UnsupportedError, match=r"expected '.*' in float64"):
        import_torch(program)


def test_pass_that_leaves_an_ill_formed_module_is_named(monkeypatch):
    @tvm.transform.module_pass(opt_level=0, name="Careless")
    class Careless:
        def transform_module(self, mod, _ctx):
            x = relax.Var("x", relax.TensorType((1,), "float32"))
            free = relax.Var("free", relax.TensorType((1,), "float32"))
            return tvm.IRModule({"main": relax.Function([x], relax.SeqExpr([], free), free.ty)})

    monkeypatch.setattr("relay_passes.pipeline.PIPELINE", (PIPELINE[0], Step(Careless)))
    with pytest.raises(TvmqError, match="Careless: left an ill-formed module"):
        lower_to_integer(import_torch(export(Residual(), (3, 12, 9))))

"""The importer: an annotated torch graph becomes float64 Relax with everything written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from annotated_networks import export, image, quantize, run_torch, run_tvm
from golden import HALF
from torch import nn
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.frontend.import_torch import import_torch
from relay_passes.relax_nodes import Graph
from targets.errors import UnsupportedError

RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-90, 90, (4, 3, 3, 2)) / 16
STEPS = np.array([0.5, 0.25, 0.125, 1.0])
BIAS = RNG.integers(-90, 90, 4) / 8
HEAD = RNG.integers(-90, 90, (2, 72)) / 16


class Network(nn.Module):
    """Convolution with a step per channel, ReLU, flatten, dense layer without bias."""

    def __init__(self):
        super().__init__()
        self.s = nn.Buffer(torch.tensor([0.25]))
        self.steps = nn.Buffer(torch.tensor(STEPS))
        self.weight = nn.Buffer(torch.tensor(WEIGHT))
        self.bias = nn.Buffer(torch.tensor(BIAS))
        self.head = nn.Buffer(torch.tensor(HEAD))

    def forward(self, x):
        x = quantize(x, self.s, 9, -128, 127, "int8")
        w = quantize(self.weight, self.steps, 0, -127, 127, "int8", 0)
        y = F.conv2d(x, w, self.bias, stride=(2, 1), padding=1)
        y = quantize(torch.relu(y), self.s)
        return F.linear(y.reshape([-1, 72]), quantize(self.head, self.s, 0, -7, 7, "int8"))


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor(("n", 3, 6, 5), "float32")) -> R.Tuple(R.Tensor(("n", 2), "float32")):
        n = T.int64()
        with R.dataflow():
            wide = R.astype(x, "float64")
            x_ratio = R.divide(wide, R.const(0.25, "float64"))
            x_whole = R.floor(R.add(x_ratio, R.const(HALF, "float64")))
            x_shifted = R.add(x_whole, R.const(9, "float64"))
            x_codes = R.astype(R.clip(x_shifted, -128, 127), "int8")
            x_centred = R.subtract(R.astype(x_codes, "float64"), R.const(9, "float64"))
            x_real = R.multiply(x_centred, R.const(0.25, "float64"))
            w_ratio = R.divide(
                R.const(WEIGHT, "float64"), R.const(STEPS.reshape(4, 1, 1, 1), "float64")
            )
            w_whole = R.floor(R.add(w_ratio, R.const(HALF, "float64")))
            w_codes = R.astype(R.clip(w_whole, -127, 127), "int8")
            w_real = R.multiply(
                R.astype(w_codes, "float64"), R.const(STEPS.reshape(4, 1, 1, 1), "float64")
            )
            products = R.nn.conv2d(x_real, w_real, strides=[2, 1], padding=[1, 1, 1, 1])
            conv2d = R.add(products, R.const(BIAS.reshape(1, 4, 1, 1), "float64"))
            relu = R.nn.relu(conv2d)
            y_ratio = R.divide(relu, R.const(0.25, "float64"))
            y_whole = R.floor(R.add(y_ratio, R.const(HALF, "float64")))
            y_codes = R.astype(R.clip(y_whole, 0, 255), "uint8")
            y_real = R.multiply(R.astype(y_codes, "float64"), R.const(0.25, "float64"))
            reshape = R.reshape(y_real, (n, 72))
            h_ratio = R.divide(R.const(HEAD, "float64"), R.const(0.25, "float64"))
            h_whole = R.floor(R.add(h_ratio, R.const(HALF, "float64")))
            h_codes = R.astype(R.clip(h_whole, -7, 7), "int8")
            h_real = R.multiply(R.astype(h_codes, "float64"), R.const(0.25, "float64"))
            turned = R.permute_dims(h_real)
            linear = R.matmul(reshape, turned)
            y = R.astype(linear, "float32")
            out = (y,)
            R.output(out)
        return out


def test_the_graph_is_written_out_in_relax():
    program = export(Network(), (3, 6, 5))
    text = str(program.graph)
    tensors = {name: value.clone() for name, value in program.named_buffers()}
    mod = import_torch(program)
    tvm.ir.assert_structural_equal(mod["main"], Expected["main"])
    assert str(program.graph) == text, "the importer edited the graph that it was given"
    assert all(torch.equal(value, tensors[name]) for name, value in program.named_buffers())
    x = image((3, 3, 6, 5), scale=8.0)
    np.testing.assert_array_equal(run_tvm(mod, x)[0], run_torch(program, x)[0])


def test_variables_are_called_as_the_torch_nodes():
    names = {var.name for var, _ in Graph(import_torch(export(Network(), (3, 6, 5)))).bindings}
    assert {"x_codes", "conv2d", "relu", "relu_codes", "reshape", "linear"} <= names


class Roots(nn.Module):
    """Square roots of two tensors that are joined; the second one may be negative."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.s, self.low = nn.Buffer(torch.tensor([0.5], dtype=torch.float64)), low

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = quantize(x, self.s, 0, 0, 127, "int8")
        b = quantize(x, self.s, 0, self.low, 127, "int8")
        return quantize(torch.sqrt(torch.cat([a, b], 1)), self.s, 0, 0, 127, "int8")


def test_a_function_must_be_defined_for_all_codes_that_occur():
    import_torch(export(Roots(0), (3, 4, 4)))
    with pytest.raises(UnsupportedError, match=r"sqrt.* of -0\.5 is no number.*Clamp the tensor"):
        import_torch(export(Roots(-1), (3, 4, 4)))

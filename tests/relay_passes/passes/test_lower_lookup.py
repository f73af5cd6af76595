"""LowerLookup: any function of one tensor of codes is a table."""

import math

import numpy as np
import pytest
import torch
from golden import HALF, check, codes, unchanged
from torch.nn import functional as F
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.forms.quantization import Quantize, emit_quantize
from relay_passes.forms.table import Table, match_table
from relay_passes.passes.lower_lookup import LowerLookup
from relay_passes.relax_nodes import Graph
from targets.rounding import HALF_UP


def test_a_function_of_unsigned_codes():
    """x * sigmoid(x), from a grid of 1/16 around 100 to one of 1/8 around 3."""
    reals = [(q - 100) / 16 for q in range(256)]
    values = [x / (1 + math.exp(-x)) for x in reals]
    table = np.array([min(max(math.floor(v * 8 + 0.5) + 3, 0), 100) for v in values])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8")) -> R.Tuple(R.Tensor((2, 300), "uint8")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(100, "float64"))
                real = R.multiply(centred, R.const(0.0625, "float64"))
                gate = R.sigmoid(real)
                value = R.multiply(real, gate)
                ratio = R.divide(value, R.const(0.125, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(3, "float64"))
                y = R.astype(R.clip(shifted, 0, 100), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8")) -> R.Tuple(R.Tensor((2, 300), "uint8")):
            with R.dataflow():
                y = R.take(R.const(table, "uint8"), R.astype(x, "int32"), axis=0)
                out = (y,)
                R.output(out)
            return out

    check(LowerLookup, Before, Expected, codes("uint8", 2, 300))


def test_a_change_of_step_of_signed_codes():
    """f is the identity; ties go up, the other grid saturates."""
    table = np.array([min(max((q + 1) // 2 - 20, -128), 20) for q in range(-128, 128)])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "int8")) -> R.Tuple(R.Tensor((2, 300), "int8")):
            with R.dataflow():
                real = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                ratio = R.divide(real, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-20, "float64"))
                y = R.astype(R.clip(shifted, -128, 20), "int8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "int8")) -> R.Tuple(R.Tensor((2, 300), "int8")):
            with R.dataflow():
                index = R.add(R.astype(x, "int32"), R.const(128, "int32"))
                y = R.take(R.const(table, "int8"), index, axis=0)
                out = (y,)
                R.output(out)
            return out

    check(LowerLookup, Before, Expected, codes("int8", 2, 300))


def test_a_function_of_two_tensors_is_no_table():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), z: R.Tensor((2, 3), "uint8")) -> R.Tuple(
            R.Tensor((2, 3), "uint8")
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                b = R.multiply(R.astype(z, "float64"), R.const(0.25, "float64"))
                ratio = R.divide(R.multiply(a, b), R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    unchanged(LowerLookup, Module)


FUNCTIONS = {
    "sigmoid": (relax.op.sigmoid, torch.sigmoid),
    "tanh": (relax.op.tanh, torch.tanh),
    "exp": (relax.op.exp, torch.exp),
    "silu": (relax.op.nn.silu, F.silu),
    "gelu": (relax.op.nn.gelu, F.gelu),
    "gelu_tanh": (relax.op.nn.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "leaky_relu": (lambda x: relax.op.nn.leakyrelu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_torch(name):
    """On eight grids, so that a value that is a 256th of a step off shows somewhere."""
    operator, function = FUNCTIONS[name]
    reals = function(torch.arange(-128, 128, dtype=torch.float64) / 32).numpy()
    for step in 2.0**-5 * np.arange(8, 16) / 8:
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((2, 3), "int8"))
        with builder.function("main", [x]):
            with builder.dataflow():
                wide = builder.emit(relax.op.astype(x, "float64"))
                real = builder.emit(relax.op.multiply(wide, relax.const(1 / 32, "float64")))
                value = builder.emit(operator(real))
                quantize = Quantize(value, np.array(step), 0, -128, 127, "int8", HALF_UP)
                result = builder.emit_output(emit_quantize(builder.emit, quantize))
            builder.emit_func_output(relax.Tuple([result]))
        graph = Graph(LowerLookup()(builder.get()))
        table = match_table(graph, graph.outputs[0])
        assert isinstance(table, Table)
        np.testing.assert_array_equal(
            table.entries, np.clip(np.floor(reals / step + HALF), -128, 127)
        )
